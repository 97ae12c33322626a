"""The optimizer: gradient clipping, fp32 copies of low-precision weights, and its state by parameter name."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import replace_file
from inheritune_lit.model.devices import multiply_all
from inheritune_lit.train.args import OptimizerArgs


@torch.no_grad()
def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """Scale gradients down to ``max_norm`` and return their norm before, an fp32 scalar.

    Norms are taken in fp32 whatever the gradients are in: bf16 has two digits. Shards of one parameter on several ranks
    count as the whole.

    Args:
        parameters: those without gradient are left out.
        max_norm: None only measures.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    squares = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in local]).square()
    total = squares.sum()
    if isinstance(gradients[0], DTensor):
        # Over the last dimension of the mesh, which shards; the replicas of a hybrid mesh hold the same.
        mesh = gradients[0].device_mesh
        torch.distributed.all_reduce(total, group=mesh.get_group(mesh.ndim - 1))
    norm = total.sqrt()
    if max_norm is not None:
        # As torch.nn.utils.clip_grad_norm_: no scale above 1, and no division by zero.
        multiply_all(local, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


Groups = list[dict[str, Any]]
BUCKET_ELEMENTS = 1 << 27
"""Parameters whose fp32 gradients are in memory at a time: half a GB."""


class MasterWeights(torch.optim.Optimizer):
    """An optimizer over fp32 copies of low-precision parameters.

    bf16 has 8 bits of precision: an update below 1/256 of a weight is lost when it is added to it. Here it is added to
    the copy, and the weight is the copy rounded. Parameters are stepped in buckets, each with an optimizer of its own,
    so that only one bucket's gradients exist in fp32.

    Args:
        groups: parameter groups of the low-precision parameters, with their options.
        build: makes the optimizer from groups of the copies with the same options. What it does to one parameter must
            not depend on the others.
    """

    def __init__(self, groups: Groups, build: Callable[[Groups], torch.optim.Optimizer]) -> None:
        super().__init__(groups, {})
        self._buckets: list[tuple[dict[str, Any], list[torch.nn.Parameter], torch.optim.Optimizer]] = []
        for group in self.param_groups:
            for bucket in _buckets(group["params"]):
                copies = [torch.nn.Parameter(parameter.detach().float().clone()) for parameter in bucket]
                self._buckets.append((group, bucket, build([{**group, "params": copies}])))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # what it takes no closure for
        """One step of the inner optimizers on the copies, which are then rounded into the parameters."""
        for group, bucket, inner in self._buckets:
            options = inner.param_groups[0]
            options.update({name: value for name, value in group.items() if name != "params"})
            for parameter, master in zip(bucket, options["params"], strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
            inner.step()
            for parameter, master in zip(bucket, options["params"], strict=True):
                parameter.copy_(master)
                master.grad = None

    def buckets(self) -> Iterator[tuple[list[torch.nn.Parameter], torch.optim.Optimizer]]:
        """The low-precision parameters of each bucket, and the optimizer over their copies, in the same order."""
        return ((parameters, inner) for _, parameters, inner in self._buckets)

    def state_dict(self) -> dict[str, Any]:
        """State and copies of every bucket."""
        return {
            "buckets": [
                {"optimizer": inner.state_dict(), "masters": [p.detach() for p in inner.param_groups[0]["params"]]}
                for _, _, inner in self._buckets
            ]
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state over; the parameters become the rounded copies."""
        for (_, bucket, inner), state in zip(self._buckets, state_dict["buckets"], strict=True):
            inner.load_state_dict(state["optimizer"])
            masters = inner.param_groups[0]["params"]
            for parameter, master, saved in zip(bucket, masters, state["masters"], strict=True):
                master.copy_(saved)
                parameter.copy_(master)


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    elements = 0
    for parameter in parameters:
        if bucket and elements + parameter.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
        bucket.append(parameter)
        elements += parameter.numel()
    if bucket:
        yield bucket


def build_optimizer(model: torch.nn.Module, args: OptimizerArgs) -> torch.optim.Optimizer:
    """The optimizer of a run over all parameters that are trained.

    Parameters in bf16 get fp32 copies unless ``args.master_weights`` is off.

    Raises:
        UserError: there is no such optimizer, or it does not take the arguments.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = decay_groups(parameters, args)
    if args.master_weights and any(parameter.dtype != torch.float32 for parameter in parameters):
        return MasterWeights(groups, lambda copies: _build(copies, args))
    return _build(groups, args)


def decay_groups(parameters: Sequence[torch.Tensor], args: OptimizerArgs) -> Groups:
    """Parameter groups with their weight decay: matrices, and all the rest with none, or everything alike."""
    if args.decay == "all":
        return [{"params": list(parameters), "weight_decay": args.weight_decay}]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _build(groups: Groups, args: OptimizerArgs) -> torch.optim.Optimizer:
    adam: dict[str, Any] = {"lr": args.lr, "betas": (args.beta1, args.beta2), "eps": args.eps}
    if args.name == "adamw":
        return torch.optim.AdamW(groups, **adam, fused=True)
    if args.name == "adamw8bit":
        return _adamw8bit(groups, adam)
    return _by_path(groups, args)


def _adamw8bit(groups: Groups, adam: dict[str, Any]) -> torch.optim.Optimizer:
    device = groups[0]["params"][0].device
    if device.type != "cuda":
        raise UserError(f"--optimizer.name adamw8bit needs a CUDA device, this run is on {device.type}; use adamw")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError("--optimizer.name adamw8bit needs bitsandbytes; install it, or use adamw") from error
    return AdamW8bit(groups, **adam)


def _by_path(groups: Groups, args: OptimizerArgs) -> torch.optim.Optimizer:
    module, _, name = args.name.rpartition(".")
    try:
        found = getattr(import_module(module), name) if module else None
    except (ImportError, AttributeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise UserError(
            f"--optimizer.name is {args.name!r}; give adamw, adamw8bit or the path of an optimizer class, such as "
            f"torch.optim.SGD"
        )
    build: Callable[..., torch.optim.Optimizer] = found
    try:
        return build(groups, lr=args.lr, **(args.init_args or {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"{args.name} does not take --optimizer.init_args {args.init_args}: {error}") from error


OPTIMIZER = "optimizer.pth"
_MASTER = "master"


def save_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write name -> state of every parameter, such as ``exp_avg``, ``exp_avg_sq`` and ``step`` of AdamW.

    Args:
        path: the file; a kill leaves the whole of it or nothing.
        model: whose parameters the optimizer has; not sharded.
    """
    content: dict[str, dict[str, Any]] = {}
    for names, inner, masters in _parts(model, optimizer):
        states = inner.state_dict()["state"]
        content |= {name: dict(states.get(number, {})) for number, name in enumerate(names)}
        for name, master in zip(names, masters, strict=False):
            content[name][_MASTER] = master.detach()
    replace_file(path, lambda aside: torch.save(content, aside))


def load_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give parameters the state saved under their names; those without one start afresh.

    Raises:
        UserError: the file is missing or damaged, or of another optimizer.
    """
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        for names, inner, masters in _parts(model, optimizer):
            state_dict = inner.state_dict()
            saved = {number: dict(content[name]) for number, name in enumerate(names) if content.get(name)}
            copies = {number: state.pop(_MASTER) for number, state in saved.items() if _MASTER in state}
            with torch.no_grad():
                for number, master in enumerate(masters):
                    if number in copies:
                        master.copy_(copies[number])
            inner.load_state_dict({**state_dict, "state": saved})
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} is not an optimizer state of this model; give --optimizer_state reset") from error


def _parts(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[list[str], torch.optim.Optimizer, list[torch.Tensor]]]:
    """Plain optimizers with their parameters' names in order, and the fp32 copies where they work on such."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    if isinstance(optimizer, MasterWeights):
        for parameters, inner in optimizer.buckets():
            yield [names[parameter] for parameter in parameters], inner, inner.param_groups[0]["params"]
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    yield [names[parameter] for parameter in parameters], optimizer, []
