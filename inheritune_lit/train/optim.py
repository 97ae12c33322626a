"""The optimizer by name, with decay on matrices only unless asked otherwise."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch

from inheritune_lit.errors import UserError
from inheritune_lit.train.args import OptimizerArgs
from inheritune_lit.train.master_weights import Groups, MasterWeights


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
