"""What a run needs of its machine, checked before anything is written."""

from importlib import import_module
from importlib.util import find_spec

import torch

from inheritune_lit.errors import UserError
from inheritune_lit.train.args import LoggerName, OptimizerArgs, SpeedArgs
from inheritune_lit.train.optim import build_optimizer


def check_machine(
    optimizer: OptimizerArgs, speed: SpeedArgs, device: torch.device, logger_name: LoggerName = "csv"
) -> None:
    """Refuse settings that this machine cannot serve.

    Args:
        device: where the run computes.

    Raises:
        UserError: no such optimizer or it does not take its arguments, no fp8 here, or a package is missing.
    """
    build_optimizer(torch.nn.Linear(1, 1, device=device), optimizer)
    if speed.fp8:
        _check_fp8(device)
    if logger_name in ("wandb", "mlflow"):  # TensorBoard comes with this package
        try:
            import_module(logger_name)
        except ImportError as error:
            raise UserError(
                f"--logger_name {logger_name} needs the package {logger_name}; install it, or use csv"
            ) from error


def _check_fp8(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(f"--speed.fp8 needs a Hopper or Ada GPU, this run is on {device.type}; leave it out")
    if find_spec("torchao") is None:
        raise UserError("--speed.fp8 needs torchao; install inheritune-lit[gpu], or leave it out")
