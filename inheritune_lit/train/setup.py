"""The model, its loss and its optimizer made ready for training."""

import sys
from pathlib import Path
from typing import cast

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT

from inheritune_lit.model.forward import checkpoint_activations
from inheritune_lit.model.load import load_model
from inheritune_lit.train.args import OptimizerArgs, Precision, SpeedArgs
from inheritune_lit.train.distillation import Distillation
from inheritune_lit.train.kernels import Kernels, apply_kernels
from inheritune_lit.train.loop import Trainee
from inheritune_lit.train.loss import TrainingModel
from inheritune_lit.train.optim import build_optimizer


def prepare_model(initial_checkpoint_dir: Path, precision: Precision, speed: SpeedArgs, block_size: int) -> GPT:
    """Load a checkpoint on the CPU in the type that its weights are trained in.

    Raises:
        UserError: the folder is no checkpoint.
    """
    gpt = load_model(initial_checkpoint_dir, dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32)
    gpt.max_seq_length = block_size
    if speed.activation_checkpointing:
        checkpoint_activations(gpt)
    return gpt


def set_up(
    fabric: Fabric,
    gpt: GPT,
    optimizer: OptimizerArgs,
    speed: SpeedArgs,
    precision: Precision,
    kernels: Kernels,
    z_loss: float,
    distillation: Distillation | None = None,
) -> Trainee:
    """Move the model to its device and add kernels, compiler, loss and optimizer; say which were chosen.

    ``check_machine`` says beforehand whether the settings can be served.
    """
    if speed.fp8:
        _use_fp8(gpt)
    told = apply_kernels(gpt, kernels, speed, precision, fabric.device)
    if fabric.global_rank == 0:
        print(f"      {told}", file=sys.stderr, flush=True)
    if distillation:
        if distillation.teacher:
            apply_kernels(distillation.teacher.gpt, kernels, speed, precision, fabric.device)
        model: torch.nn.Module = distillation.model(gpt, kernels.compiled, fabric.device)
    else:
        assert kernels.loss != "distilled"
        model = TrainingModel(gpt, kernels.loss, z_loss)
        if kernels.compiled:
            model = cast(torch.nn.Module, torch.compile(model, dynamic=False))
    return Trainee(gpt, fabric.setup_module(model), build_optimizer(gpt, optimizer))


def _use_fp8(gpt: GPT) -> None:
    """Swap the blocks' linear layers for torchao's, which multiply in fp8 with a scale a tensor."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # The head stays in bf16: its gradients span too many magnitudes.
    convert_to_float8_training(
        gpt,
        config=Float8LinearConfig.from_recipe_name("tensorwise"),
        module_filter_fn=lambda module, name: name != "lm_head" and all(size % 16 == 0 for size in module.weight.shape),
    )
