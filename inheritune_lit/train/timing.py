"""A few real training steps on this machine, instead of assumptions."""

import time
from dataclasses import dataclass
from statistics import median

import torch

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import count_parameters, tensor_shapes
from inheritune_lit.model.devices import peak_memory
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.model.forward import checkpoint_activations
from inheritune_lit.model.gpt import build_model
from inheritune_lit.train.args import OptimizerArgs, Precision, SpeedArgs, TrainArgs
from inheritune_lit.train.devices import build_fabric
from inheritune_lit.train.gpus import peak_flops
from inheritune_lit.train.memory import step_memory
from inheritune_lit.train.optim import clip_gradients
from inheritune_lit.train.setup import check_machine, choose_kernels, set_up

_WARM_UP, _TIMED = 2, 3


@dataclass(frozen=True)
class MeasuredSteps:
    """Speed and memory of training steps on this machine.

    Attributes:
        machine: the device.
        tokens_per_s: of whole steps.
        mfu: share of the device's peak, None where that is not known.
        memory: most bytes in use at once by the model and its training.
        predicted: the prediction of that for these kernels.
    """

    machine: str
    tokens_per_s: float
    mfu: float | None
    memory: int
    predicted: int


def measure_steps(
    config: Config,
    tied: bool,
    block_size: int,
    train: TrainArgs,
    optimizer: OptimizerArgs,
    speed: SpeedArgs,
    precision: Precision,
    devices: int,
    flops: float,
) -> MeasuredSteps:
    """Train a model of random weights on random tokens for a few micro-batches.

    Time does not depend on the values. A whole step would take minutes where it has many micro-batches: one micro-batch
    and one optimizer step are timed, and put together.

    Args:
        config, tied: of the model, and whether its head is the embedding.
        block_size: tokens per sample.
        train, optimizer, speed, precision: as ``inheritune pretrain`` takes them.
        devices: GPUs that will share the samples of a step.
        flops: of the whole run, which decide whether it is worth compiling for.

    Raises:
        UserError: a setting that this machine cannot serve.
    """
    fabric = build_fabric(1, 1, "auto", precision)
    check_machine(optimizer, speed, fabric.device)
    before = peak_memory(fabric.device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gpt = build_model(config)
        size = (train.micro_batch_size, block_size + 1)
        tokens_BT1 = torch.randint(config.vocab_size, size).to(fabric.device)
    gpt.to(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    if tied:
        gpt.lm_head.weight = gpt.transformer.wte.weight
    gpt.max_seq_length = block_size
    if speed.activation_checkpointing:
        checkpoint_activations(gpt)
    kernels = choose_kernels(gpt.config, speed, fabric.device, train.z_loss, flops)
    state = set_up(fabric, gpt, optimizer, speed, precision, kernels, train.z_loss)
    gpt.train()
    batches, updates = [], []
    for number in range(_WARM_UP + _TIMED):
        clock = _now(fabric.device)
        summed = state.loss(tokens_BT1[:, :-1], tokens_BT1[:, 1:])
        fabric.backward(summed / tokens_BT1[:, 1:].numel())
        halfway = _now(fabric.device)
        clip_gradients(gpt.parameters(), train.max_norm)
        state.optimizer.step()
        state.optimizer.zero_grad()
        if number >= _WARM_UP:
            batches.append(halfway - clock)
            updates.append(_now(fabric.device) - halfway)
    accumulation = train.global_batch_size // (train.micro_batch_size * devices)
    tokens = accumulation * train.micro_batch_size * block_size
    rate = tokens / (accumulation * median(batches) + median(updates))
    is_gpu = fabric.device.type == "cuda"
    machine = torch.cuda.get_device_name(fabric.device) if is_gpu else "CPU"
    peak = peak_flops(machine) if is_gpu else None
    predicted = step_memory(
        config,
        count_parameters(tensor_shapes(config, tied)),
        train.micro_batch_size,
        block_size,
        precision,
        speed,
        optimizer,
        kernels.loss,
        kernels.compiled,
    )
    return MeasuredSteps(
        machine,
        rate,
        rate * flops_per_token(config, block_size) / peak if peak else None,
        peak_memory(fabric.device) - before,
        predicted.total,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
