"""How a step changes the weights: learning rate, judging steps, clipping, and the optimizer."""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pydoc import ErrorDuringImport, locate
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from inheritune_lit.errors import UserError
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
def clip_gradients(optimizer: "Optimizer", max_norm: float | None) -> torch.Tensor:
    """Scale an optimizer's gradients down to ``max_norm`` (None only measures); their norm before, an fp32 scalar.

    A fused optimizer is told the scale and applies it in its step, which saves a pass over the gradients. Norms are
    taken in fp32 whatever the gradients are in: bf16 has two digits. Shards of one parameter on several ranks count as
    the whole; parameters without gradient are left out.
    """
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = isinstance(gradients[0], DTensor)
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    total = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in local]).square().sum()
    if isinstance(gradients[0], DTensor):
        # Over the last dimension of the mesh, which shards; the replicas of a hybrid mesh hold the same.
        mesh = gradients[0].device_mesh
        torch.distributed.all_reduce(total, group=mesh.get_group(mesh.ndim - 1))
    norm = total.sqrt()
    if max_norm is not None:
        # As torch.nn.utils.clip_grad_norm_: no scale above 1, and no division by zero.
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        inner: Any = optimizer.optimizer if isinstance(optimizer, MasterWeights) else optimizer
        if inner.defaults.get("fused") and not sharded:
            inner.grad_scale = scale.reciprocal()  # by which the step divides, as ``torch.amp.GradScaler`` has it do
        else:
            torch._foreach_mul_(local, scale)
    return norm


Groups = list[dict[str, Any]]


class MasterWeights:
    """An optimizer over fp32 copies, the masters, of low-precision parameters, which add up their gradients too.

    bf16 has 8 bits of precision: an update below 1/256 of a weight is lost when it is added to it, and so is a small
    gradient in the sum over many micro-batches. Both are added in fp32 here, gradients as soon as the backward pass has
    them; once a step the weights become their masters, rounded. Parameters in fp32 are their own masters.

    Args:
        masters: of every parameter that is trained.
        optimizer: over the masters.
        are_weights: whether the masters are saved as the model's weights, and so are no state of the optimizer.
    """

    def __init__(
        self,
        masters: dict[torch.nn.Parameter, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        are_weights: bool = False,
    ) -> None:
        self.optimizer, self.masters, self.are_weights = optimizer, masters, are_weights
        self._rounded = [parameter for parameter, master in masters.items() if master is not parameter]
        parameter: Any
        for parameter in self._rounded:
            if hasattr(parameter, "gradient_hook"):  # of an optimizer before this one
                parameter.gradient_hook.remove()
            parameter.gradient_hook = parameter.register_post_accumulate_grad_hook(self._take_gradient)

    @property
    def param_groups(self) -> Groups:
        """The masters' groups, whose options may be changed."""
        return self.optimizer.param_groups

    def _take_gradient(self, parameter: torch.nn.Parameter) -> None:
        master, gradient = self.masters[parameter], parameter.grad
        if gradient is not None:
            master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    @torch.no_grad()
    def reduce(self, world_size: int) -> None:
        """Average the summed gradients over ranks, in fp32."""
        for parameter in self._rounded:
            if (gradient := self.masters[parameter].grad) is not None:
                torch.distributed.all_reduce(gradient)
                gradient.div_(world_size)

    @torch.no_grad()
    def step(self) -> None:
        """One step of the optimizer on the masters, which are then rounded into the parameters."""
        self.optimizer.step()
        self._round()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and the masters in the order of the parameters where they are not weights."""
        if self.are_weights:
            return self.optimizer.state_dict()
        masters = [self.masters[parameter].detach() for parameter in self._rounded]
        return {"optimizer": self.optimizer.state_dict(), "masters": masters}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state over; where masters are in it, the parameters become what they are rounded to."""
        if self.are_weights:
            self.optimizer.load_state_dict(state_dict)
            return
        self.optimizer.load_state_dict(state_dict["optimizer"])
        for parameter, saved in zip(self._rounded, state_dict["masters"], strict=True):
            self.masters[parameter].copy_(saved)
        self._round()

    def _round(self) -> None:
        torch._foreach_copy_([*self._rounded], [self.masters[parameter].detach() for parameter in self._rounded])


Optimizer = torch.optim.Optimizer | MasterWeights


def build_optimizer(model: torch.nn.Module, args: OptimizerArgs, round_linear: bool = False) -> Optimizer:
    """The optimizer over all parameters that are trained; in bf16 they get fp32 masters if ``args.master_weights``.

    ``round_linear`` turns fp32 weights of linear layers into masters and leaves them rounded to bf16 in the model:
    what autocast does anew in every micro-batch is done once a step.
    An optimizer that does not exist, or does not take the arguments, is a ``UserError``.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = {parameter: parameter for parameter in parameters}
    low = [each for each in parameters if args.master_weights and each.dtype != torch.float32]
    masters.update({parameter: torch.nn.Parameter(parameter.detach().float()) for parameter in low})
    if round_linear:
        for parameter in linear_parameters(model, trained=True):
            masters[parameter] = torch.nn.Parameter(parameter.detach())
            parameter.data = parameter.detach().bfloat16()
    groups: Groups = [{"params": [], "weight_decay": decay} for decay in (args.weight_decay, 0.0)]
    for master in masters.values():
        groups[args.decay == "matrices" and master.dim() < 2]["params"].append(master)
    optimizer = _build([group for group in groups if group["params"]], args)
    return MasterWeights(masters, optimizer, are_weights=round_linear) if low or round_linear else optimizer


def linear_parameters(model: torch.nn.Module, trained: bool) -> list[torch.nn.Parameter]:
    """Parameters of linear layers that are trained, or frozen; without those that other modules share."""
    owners = Counter(each for module in model.modules() for each in module.parameters(recurse=False))
    linear = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    found = (each for module in linear for each in module.parameters() if owners[each] == 1)
    return [each for each in found if each.requires_grad == trained]


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
