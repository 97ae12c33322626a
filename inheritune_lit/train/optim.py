"""How a step changes the weights: learning rate, judging steps, clipping, and the optimizer with its state by name."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import replace_file
from inheritune_lit.train.args import OptimizerArgs, TrainArgs


def learning_rate(step: int, total_steps: int, train: TrainArgs, lr: float) -> float:
    """Linear warm-up, of which step 0 already has lr / lr_warmup_steps, then the schedule.

    ``cosine`` falls as half a cosine to ``min_lr``; ``constant`` stays at ``lr``; ``wsd`` (warm-up, stable, decay)
    stays at ``lr`` and falls linearly to ``min_lr`` over the last ``lr_decay_steps``. Steps are numbered from 0; step
    ``lr_warmup_steps`` - 1 has the highest rate ``lr``, the last of ``total_steps`` has ``min_lr``.
    """
    if step < train.lr_warmup_steps:
        return lr * (step + 1) / train.lr_warmup_steps
    if train.schedule == "constant":
        return lr
    if train.schedule == "wsd":
        decayed = max(0, step + 1 - (total_steps - train.lr_decay_steps))
        return lr - (lr - train.min_lr) * decayed / train.lr_decay_steps
    done = (step + 1 - train.lr_warmup_steps) / (total_steps - train.lr_warmup_steps)
    return train.min_lr + 0.5 * (lr - train.min_lr) * (1 + math.cos(math.pi * done))


_MEMORY = 0.98  # weight of the past in the running mean: about the last 50 steps
_SETTLED = 20  # steps before a jump is judged
MAX_SKIPPED = 10  # steps left out in a row after which a run stops: what they have in common is not chance


@dataclass
class LossGuard:
    """Judges steps before their gradients are applied."""

    max_jump: float | None  # nats that a loss may lie above the running mean; None judges no jumps
    mean: float = math.nan  # of the good steps
    steps: int = 0  # good ones so far
    skipped: int = 0  # bad ones that were left out
    in_row: int = 0  # of those, since the last good one

    def fault(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with a step, or None after taking its loss into the mean."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss} and gradient norm {grad_norm}"
        if self.max_jump is not None and self.steps >= _SETTLED and loss > self.mean + self.max_jump:
            return f"loss {loss:.4f} jumps from a mean of {self.mean:.4f}"
        self.mean = loss if self.steps == 0 else _MEMORY * self.mean + (1 - _MEMORY) * loss
        self.steps, self.in_row = self.steps + 1, 0
        return None

    def skip(self) -> None:
        """Count a bad step that is left out."""
        self.skipped, self.in_row = self.skipped + 1, self.in_row + 1

    def state(self) -> dict[str, Any]:
        """What a restart needs, by field."""
        return {name: value for name, value in vars(self).items() if name != "max_jump"}


@torch.no_grad()
def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """Scale gradients down to ``max_norm`` (None only measures) and return their norm before, an fp32 scalar.

    Norms are taken in fp32 whatever the gradients are in: bf16 has two digits. Shards of one parameter on several ranks
    count as the whole; parameters without gradient are left out.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    total = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in local]).square().sum()
    if isinstance(gradients[0], DTensor):
        # Over the last dimension of the mesh, which shards; the replicas of a hybrid mesh hold the same.
        mesh = gradients[0].device_mesh
        torch.distributed.all_reduce(total, group=mesh.get_group(mesh.ndim - 1))
    norm = total.sqrt()
    if max_norm is not None:
        # As torch.nn.utils.clip_grad_norm_: no scale above 1, and no division by zero.
        torch._foreach_mul_(local, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


Groups = list[dict[str, Any]]
Parameters = list[torch.nn.Parameter]
BUCKET_ELEMENTS = 1 << 27  # parameters whose fp32 gradients are in memory at a time: half a GB


class MasterWeights(torch.optim.Optimizer):
    """An optimizer over fp32 copies of low-precision parameters.

    bf16 has 8 bits of precision: an update below 1/256 of a weight is lost when it is added to it. Here it is added to
    the copy, and the weight is the copy rounded. Parameters are stepped in buckets, each with an optimizer of its own,
    so that only one bucket's gradients exist in fp32. ``build`` makes an optimizer from groups of copies with the same
    options as those of the parameters; what that does to one parameter must not depend on the others.
    """

    def __init__(self, groups: Groups, build: Callable[[Groups], torch.optim.Optimizer]) -> None:
        super().__init__(groups, {})
        self.buckets: list[tuple[dict[str, Any], Parameters, Parameters, torch.optim.Optimizer]] = []
        for group in self.param_groups:
            for bucket in _split(group["params"]):
                masters = [torch.nn.Parameter(parameter.detach().float().clone()) for parameter in bucket]
                self.buckets.append((group, bucket, masters, build([{**group, "params": masters}])))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # what it takes no closure for
        """One step of the inner optimizers on the copies, which are then rounded into the parameters."""
        for group, bucket, masters, inner in self.buckets:
            inner.param_groups[0].update({**group, "params": masters})
            for parameter, master in zip(bucket, masters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
            inner.step()
            for parameter, master in zip(bucket, masters, strict=True):
                parameter.copy_(master)
                master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """State and copies of every bucket."""
        buckets = [
            {"optimizer": inner.state_dict(), "masters": [master.detach() for master in masters]}
            for _, _, masters, inner in self.buckets
        ]
        return {"buckets": buckets}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state over; the parameters become the rounded copies."""
        for (_, bucket, masters, inner), state in zip(self.buckets, state_dict["buckets"], strict=True):
            inner.load_state_dict(state["optimizer"])
            for parameter, master, saved in zip(bucket, masters, state["masters"], strict=True):
                master.copy_(saved)
                parameter.copy_(master)


def _split(parameters: Parameters) -> Iterator[Parameters]:
    """Buckets of at most ``BUCKET_ELEMENTS``, or of one larger parameter."""
    bucket = parameters[:1]
    for parameter in parameters[1:]:
        if sum(each.numel() for each in (*bucket, parameter)) > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(parameter)
    yield bucket


def build_optimizer(model: torch.nn.Module, args: OptimizerArgs) -> torch.optim.Optimizer:
    """The optimizer over all parameters that are trained; in bf16 they get fp32 copies if ``args.master_weights``.

    An optimizer that does not exist, or does not take the arguments, is a ``UserError``.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: Groups = [{"params": [], "weight_decay": decay} for decay in (args.weight_decay, 0.0)]
    for parameter in parameters:
        groups[args.decay == "matrices" and parameter.dim() < 2]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    if args.master_weights and any(parameter.dtype != torch.float32 for parameter in parameters):
        return MasterWeights(groups, lambda copies: _build(copies, args))
    return _build(groups, args)


def _build(groups: Groups, args: OptimizerArgs) -> torch.optim.Optimizer:
    adam: dict[str, Any] = {"lr": args.lr, "betas": (args.beta1, args.beta2), "eps": args.eps}
    if args.name == "adamw":
        return torch.optim.AdamW(groups, **adam, fused=True)
    if args.name == "adamw8bit":
        device = groups[0]["params"][0].device
        if device.type != "cuda":
            raise UserError(f"--optimizer.name adamw8bit needs a CUDA device, this run is on {device.type}; use adamw")
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise UserError("--optimizer.name adamw8bit needs bitsandbytes; install it, or use adamw") from error
        return AdamW8bit(groups, **adam)
    found = None
    with suppress(ErrorDuringImport):
        found = locate(args.name)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        known = "adamw, adamw8bit or the path of an optimizer class, such as torch.optim.SGD"
        raise UserError(f"--optimizer.name is {args.name!r}; give {known}")
    build: Callable[..., torch.optim.Optimizer] = found
    try:
        return build(groups, lr=args.lr, **(args.init_args or {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"{args.name} does not take --optimizer.init_args {args.init_args}: {error}") from error


OPTIMIZER = "optimizer.pth"
_MASTER = "master"


def save_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write name -> state of every parameter, such as ``exp_avg``, ``exp_avg_sq`` and ``step`` of AdamW."""
    content: dict[str, dict[str, Any]] = {}
    for names, inner, masters in _parts(model, optimizer):
        states = inner.state_dict()["state"]
        content |= {name: dict(states.get(number, {})) for number, name in enumerate(names)}
        for name, master in zip(names, masters, strict=False):
            content[name][_MASTER] = master.detach()
    replace_file(path, lambda aside: torch.save(content, aside))


def load_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give parameters the state saved under their names, if there is one; a file of something else is a UserError."""
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        for names, inner, masters in _parts(model, optimizer):
            saved = {number: dict(content[name]) for number, name in enumerate(names) if content.get(name)}
            copies = {number: state.pop(_MASTER) for number, state in saved.items() if _MASTER in state}
            with torch.no_grad():
                for number, master in enumerate(masters):
                    master.copy_(copies.get(number, master))
            inner.load_state_dict({**inner.state_dict(), "state": saved})
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} is not an optimizer state of this model; give --optimizer_state reset") from error


def _parts(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[list[str], torch.optim.Optimizer, list[torch.nn.Parameter]]]:
    """Plain optimizers with their parameters' names in order, and the fp32 copies where they work on such."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    if isinstance(optimizer, MasterWeights):
        for _, bucket, masters, inner in optimizer.buckets:
            yield [names[each] for each in bucket], inner, masters
    else:
        yield [names[each] for group in optimizer.param_groups for each in group["params"]], optimizer, []
