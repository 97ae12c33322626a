"""A few real training steps on the machine at hand, in place of assumptions."""

import time
from dataclasses import dataclass
from statistics import median

import torch

from inheritune_lit.model.devices import peak_memory
from inheritune_lit.model.forward import checkpoint_activations
from inheritune_lit.model.gpt import build_model
from inheritune_lit.planning.estimate import Job
from inheritune_lit.train.devices import build_fabric
from inheritune_lit.train.gpus import peak_flops
from inheritune_lit.train.memory import step_memory
from inheritune_lit.train.optim import clip_gradients
from inheritune_lit.train.setup import check_machine, choose_kernels, set_up

_WARM_UP, _TIMED = 2, 3


@dataclass(frozen=True)
class Measured:
    """What was seen.

    Attributes:
        machine: the device.
        tokens_per_s: of whole steps.
        mfu: share of the device's peak, None where that is not known.
        memory: most bytes in use at once by the model and its training.
        predicted: the same as predicted for these kernels.
    """

    machine: str
    tokens_per_s: float
    mfu: float | None
    memory: int
    predicted: int


def measure(job: Job) -> Measured:
    """Train a model of random weights on random tokens for a few micro-batches.

    Time does not depend on the values. A whole step would take minutes where it has many micro-batches: one micro-batch
    and one optimizer step are timed, and put together.

    Raises:
        UserError: a setting that this machine cannot serve.
    """
    fabric = build_fabric(1, 1, "auto", job.precision)
    check_machine(job.optimizer, job.speed, fabric.device)
    before = peak_memory(fabric.device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gpt = build_model(job.subject.config)
        size = (job.train.micro_batch_size, job.block_size + 1)
        tokens_BT1 = torch.randint(job.subject.config.vocab_size, size).to(fabric.device)
    gpt.to(torch.bfloat16 if job.precision == "bf16-true" else torch.float32)
    if job.subject.tied:
        gpt.lm_head.weight = gpt.transformer.wte.weight
    gpt.max_seq_length = job.block_size
    if job.recomputes:
        checkpoint_activations(gpt)
    kernels = choose_kernels(gpt.config, job.speed, fabric.device, job.train.z_loss, job.flops)
    state = set_up(fabric, gpt, job.optimizer, job.speed, job.precision, kernels, job.train.z_loss)
    gpt.train()
    batches, updates = [], []
    for number in range(_WARM_UP + _TIMED):
        clock = _now(fabric.device)
        summed = state.loss(tokens_BT1[:, :-1], tokens_BT1[:, 1:])
        fabric.backward(summed / tokens_BT1[:, 1:].numel())
        halfway = _now(fabric.device)
        clip_gradients(gpt.parameters(), job.train.max_norm)
        state.optimizer.step()
        state.optimizer.zero_grad()
        if number >= _WARM_UP:
            batches.append(halfway - clock)
            updates.append(_now(fabric.device) - halfway)
    accumulation = job.train.global_batch_size // (job.train.micro_batch_size * job.devices)
    tokens = accumulation * job.train.micro_batch_size * job.block_size
    rate = tokens / (accumulation * median(batches) + median(updates))
    is_gpu = fabric.device.type == "cuda"
    machine = torch.cuda.get_device_name(fabric.device) if is_gpu else "CPU"
    peak = peak_flops(machine) if is_gpu else None
    predicted = step_memory(
        job.subject.config,
        job.subject.parameters,
        job.train.micro_batch_size,
        job.block_size,
        job.precision,
        job.speed,
        job.optimizer,
        kernels.loss,
        kernels.compiled,
    )
    return Measured(
        machine,
        rate,
        rate * job.flops_per_token / peak if peak else None,
        peak_memory(fabric.device) - before,
        predicted.total,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
