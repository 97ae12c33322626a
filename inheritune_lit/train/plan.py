"""What a run will do and cost, worked out or measured in a few steps before anything is spent."""

import logging
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from statistics import median

import torch

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import HEAD
from inheritune_lit.data.sampler import Mixture
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import resolve
from inheritune_lit.io.arguments import Precision
from inheritune_lit.model.devices import USABLE, free_memory, peak_memory
from inheritune_lit.model.flops import flops_per_token, kept_bytes, layers_reached
from inheritune_lit.model.gpt import build_model
from inheritune_lit.train import setup
from inheritune_lit.train.args import DistillArgs, EvalArgs, OptimizerArgs, SpeedArgs, TrainArgs, TrainingArgs
from inheritune_lit.train.loss import CHUNK_TOKENS
from inheritune_lit.train.optim import clip_gradients
from inheritune_lit.train.trainable import TrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPlan:
    """Numbers of a run."""

    total_steps: int
    budget: int  # tokens asked for; what is over whole steps is not trained
    tokens: int  # to train on (targets; the expected number where samples hold padding)
    accumulation: int  # micro-batches per step
    block_size: int  # tokens per sample
    tokens_per_step: int  # inputs, padding included
    val_blocks: int  # samples per validation
    parameters: int  # of the model, a tied head counted once
    flops_per_token: float  # forward and backward as far as parameters are trained, and a teacher's forward
    peak_flops: float | None  # of one device in bf16, FLOP/s; None where it is not known
    validation_flops: float = 0.0  # of all validations
    teacher_flops: float = 0.0  # per token, of those above

    @property
    def flops(self) -> float:
        """FLOPs of the whole run: training, a teacher, validation."""
        return self.total_steps * self.tokens_per_step * self.flops_per_token + self.validation_flops

    def flops_text(self) -> str:
        """Those, and which part of them is for what."""
        of_teacher = self.total_steps * self.tokens_per_step * self.teacher_flops / self.flops
        taught = f", {of_teacher:.1%} the teacher" if of_teacher else ""
        return f"{self.flops:.2e} FLOPs, {self.validation_flops / self.flops:.1%} of them validation{taught}"


def flops_of_validation(config: Config, eval: EvalArgs, total_steps: int, block_size: int, samples: int) -> float:
    """FLOPs of all validations of a run, which are forward passes."""
    times = -(-total_steps // eval.interval) + eval.initial_validation
    return times * samples * block_size * flops_per_token(config, block_size, trained=())


def block_size_of(train: TrainArgs, config: Config) -> int:
    """Returns the tokens per sample; a UserError where the model cannot attend to as many."""
    block_size = config.block_size if train.max_seq_length is None else train.max_seq_length
    if not 1 <= block_size <= config.block_size:
        limit = f"the model attends to at most {config.block_size} tokens, give 1 to {config.block_size}"
        raise UserError(f"--train.max_seq_length is {block_size}; {limit}")
    return block_size


def plan_run(
    model: TrainedModel,
    train: TrainArgs,
    eval: EvalArgs,
    mixture: Mixture,
    val_blocks: int,
    devices: int = 1,
    peak_flops: float | None = None,
    teacher_flops: float = 0.0,
) -> RunPlan:
    """Work out a run's numbers; arguments that contradict each other or make no run are a ``UserError``.

    ``val_blocks`` are all samples of the validation data, ``teacher_flops`` those per token of a teacher that runs
    along; ``devices`` counts those of all nodes.
    """
    block_size = block_size_of(train, model.config)
    targets_per_step = train.global_batch_size * mixture.tokens_per_sample
    name, value = train.budget()
    units = {"max_tokens": Fraction(1), "max_steps": targets_per_step, "epochs": Fraction(mixture.tokens)}
    budget = value * units[name]
    if budget < targets_per_step:
        raise UserError(
            f"--train.{name} {value} makes no optimizer step: a step takes {int(targets_per_step):,} tokens and the "
            f"data has {mixture.samples:,} samples; give a larger budget or a smaller --train.global_batch_size"
        )
    total_steps = int(budget // targets_per_step)
    if train.lr_warmup_steps + train.lr_decay_steps >= total_steps:
        decay = f" and --train.lr_decay_steps {train.lr_decay_steps}" if train.lr_decay_steps else ""
        raise UserError(
            f"--train.lr_warmup_steps {train.lr_warmup_steps}{decay} leave no step for the {train.schedule} schedule: "
            f"the run has {total_steps} steps; give fewer warm-up steps or a larger budget"
        )
    val_blocks = min(val_blocks, eval.count(train.micro_batch_size) or val_blocks)
    return RunPlan(
        total_steps=total_steps,
        budget=int(budget),
        tokens=int(total_steps * targets_per_step),
        accumulation=train.accumulation(devices),
        block_size=block_size,
        tokens_per_step=train.global_batch_size * block_size,
        val_blocks=val_blocks,
        parameters=model.count(),
        flops_per_token=model.flops_per_token(block_size) + teacher_flops,
        peak_flops=peak_flops,
        validation_flops=flops_of_validation(model.config, eval, total_steps, block_size, val_blocks),
        teacher_flops=teacher_flops,
    )


def teacher_flops(distill: DistillArgs, block_size: int) -> float:
    """FLOPs per token of the forward pass of a teacher, whose weights need not be there; 0 where none runs along."""
    if not distill.active or distill.teacher is None:
        return 0.0
    with resolve(distill.teacher) as resolved:
        return flops_per_token(resolved.reference.config, block_size, trained=())


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device during a training step."""

    weights: int  # that the forward pass reads
    gradients: int  # summed over the step's micro-batches
    optimizer: int  # its state, and fp32 masters of weights
    casts: int  # bf16 copies of fp32 weights that the backward pass needs
    activations: int  # what the forward pass of one micro-batch keeps for the backward pass
    loss: int  # logits and their gradients
    fresh: int  # gradients of one micro-batch that are not summed yet, when its activations are gone
    checkpoint: int  # weights as they are written
    state: int  # on the disk, to continue from: weights that are trained, and the optimizer's state
    teacher: int = 0  # a teacher and its forward pass

    @property
    def model(self) -> int:
        """What does not depend on the batch: weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """The most at once: a step's second micro-batch turns around, or is at the end of its backward pass."""
        return self.model + self.casts + max(self.activations + self.loss, self.fresh) + self.teacher

    def kept_on_disk(self, train: TrainArgs) -> tuple[int, int]:
        """Bytes of the state to continue from (two of it, while one replaces the other) and of the checkpoints."""
        checkpoints = 1 + train.keep_last + 2 * train.keep_best + (train.average_last > 1)
        return 2 * self.state, checkpoints * self.checkpoint

    def __str__(self) -> str:
        batch = self.total - self.model - self.teacher
        teacher = f"{_size(self.teacher)} teacher, " if self.teacher else ""
        return f"{_size(self.total)} ({_size(self.model)} model and optimizer, {teacher}{_size(batch)} per micro-batch)"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def step_memory(
    model: TrainedModel,
    micro_batch_size: int,
    block_size: int,
    precision: Precision,
    speed: SpeedArgs,
    optimizer: OptimizerArgs,
    loss_kernel: str,
    compiled: bool,
    devices: int = 1,
    sharded: bool = False,
    teacher: int = 0,
) -> StepMemory:
    """Predict the memory of one training step on one device, with a chosen loss kernel, not "auto".

    The parameters, a tied head counted once, are on each of the ``devices`` or sharded over them; each device holds a
    ``teacher`` of so many bytes. Frozen ones have neither gradient nor state, and in linear layers are held in bf16.
    """
    config, parameters, trained = model.config, model.count(), model.count(trained=True)
    vocabulary, width, tokens = config.padded_vocab_size, config.n_embd, micro_batch_size * block_size
    half, mixed, low = 4 if precision == "32-true" else 2, precision == "bf16-mixed", precision == "bf16-true"
    linear, linear_trained = (model.count(of_trained, embeddings=False) for of_trained in (False, True))
    rounded = {"bf16-true": trained, "bf16-mixed": linear_trained if devices == 1 else 0, "32-true": 0}[precision]
    mastered = rounded if optimizer.master_weights else 0
    rounded = rounded if low else mastered
    frozen = parameters - trained if low else (linear - linear_trained) * (mixed and not sharded)  # that are in bf16
    weights = 4 * parameters - 2 * (rounded + frozen)
    gradients = 4 * trained - 2 * (rounded - mastered)
    moments = (2 if optimizer.name == "adamw8bit" else 8) * trained
    casts = 2 * (linear - rounded - frozen) * mixed
    if mixed and model.tied:
        casts += 2 * vocabulary * width  # of the head, which is the embedding in fp32
    if sharded:  # two blocks are gathered at a time
        casts = 4 * linear // config.n_layer
    if speed.activation_checkpointing:
        block = kept_bytes(replace(config, n_layer=1), block_size, precision, compiled)
        inputs = (layers_reached(config, model.names) - 1) * block_size * width * (2 if low else 4)
        kept = block + inputs if inputs >= 0 else 0
    else:
        kept = kept_bytes(config, block_size, precision, compiled, speed.activation_budget, model.names)
    chunk, ends = min(tokens, CHUNK_TOKENS), (4 * vocabulary * (HEAD in model.names) + half * tokens) * width
    loss = {
        # A chunk's logits in both types and their gradient, and the finished gradients of head and hidden states.
        "chunked": chunk * vocabulary * (8 + half) + ends,
        # Student and teacher: logits, softened logits, log-probabilities, and what autograd adds.
        "distilled": chunk * vocabulary * (32 + 2 * half) + 2 * ends,
        # Compiled, the gradient takes the logits' place, and nothing is in fp32.
        "plain": tokens * vocabulary * (half if compiled else 8 + half),
    }[loss_kernel]
    shards, fresh = devices if sharded else 1, 4 * trained - 2 * rounded if compiled else 0
    held = (weights // shards, gradients // shards, (moments + 4 * mastered) // shards)
    written = (2 if low else 4) * parameters
    saved = moments + (2 * trained + 4 * mastered if low else 4 * (parameters if sharded else trained))
    return StepMemory(*held, casts, micro_batch_size * kept, loss, fresh // shards, written, saved, teacher)


def largest_micro_batch(available: int, memory: StepMemory, micro_batch_size: int) -> int:
    """How many samples per forward pass fit into ``available`` bytes, from the prediction for another number."""
    left = available - memory.model - memory.casts - memory.teacher
    fits = left >= memory.fresh
    return max(0, int(left * micro_batch_size / (memory.activations + memory.loss))) if fits else 0


@dataclass(frozen=True)
class ResourceEstimate:
    """What a run needs of one device; ``devices`` and ``teacher`` as of ``step_memory``."""

    model: TrainedModel
    plan: RunPlan
    args: TrainingArgs
    precision: Precision
    kernels: setup.Kernels
    device: torch.device
    devices: int = 1
    teacher: int = 0

    @cached_property
    def memory(self) -> StepMemory:
        """Predicted for a step."""
        return self._memory(self.args.speed)

    def _memory(self, speed: SpeedArgs) -> StepMemory:
        size = (self.model, self.args.train.micro_batch_size, self.plan.block_size)
        loss, compiled, optimizer = self.kernels.loss, self.kernels.compiled, self.args.optimizer
        settings = (*size, self.precision, speed, optimizer, loss, compiled)
        return step_memory(*settings, self.devices, self.args.sharded, self.teacher)

    def warn(self) -> None:
        """Say what would help where the predicted memory is not there; the run still tries."""
        available, needed = free_memory(self.device), self.memory.total
        if available is not None and needed > available:
            lacking = f"a step needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"
            logger.warning(f"inheritune: warning: {lacking}; {self._advice(available)}")

    def out_of_memory(self) -> UserError:
        """What to do after a GPU ran out of memory."""
        total, needed = torch.cuda.get_device_properties(self.device).total_memory, self.memory.total
        fits = min(int(total * USABLE), needed - 1)  # what was tried did not fit, whatever was predicted
        predicted = f"a step was predicted to need {needed / 1e9:.1f} GB of {total / 1e9:.1f}"
        return UserError(f"out of memory: {predicted}; {self._advice(fits)}: give it and run the same command again")

    def _advice(self, available: int) -> str:
        asked = self.args.train.micro_batch_size
        if fits := largest_micro_batch(available, self.memory, asked):
            return f"--train.micro_batch_size {fits} fits"
        checkpointed = self._memory(replace(self.args.speed, activation_checkpointing=True))
        if fits := largest_micro_batch(available, checkpointed, asked):
            return f"--speed.activation_checkpointing true with --train.micro_batch_size {min(fits, asked)} fits"
        return (
            f"the model and its optimizer alone take {self.memory.model / 1e9:.1f} GB: try --optimizer.name adamw8bit, "
            "--strategy fsdp over several GPUs, or fewer layers"
        )


_WARM_UP, _TIMED = 2, 3


@dataclass(frozen=True)
class MeasuredSteps:
    """Speed and memory of training steps on this machine."""

    machine: str
    tokens_per_s: float
    mfu: float | None  # share of the machine's peak, None where that is not known
    memory: int  # most bytes in use at once by the model and its training
    predicted: int  # the prediction of that


def measure_steps(
    config: Config, tied: bool, block_size: int, args: TrainingArgs, precision: Precision, devices: int, flops: float
) -> MeasuredSteps:
    """Train a model of random weights on random tokens for a few micro-batches.

    Time does not depend on the values. A whole step would take minutes where it has many micro-batches: one micro-batch
    and one optimizer step are timed, and put together as if ``devices`` shared the samples of a step. The FLOPs of the
    whole run decide whether it is worth compiling for. A setting that this machine cannot serve is a ``UserError``.
    """
    train = args.train
    fabric = setup.build_fabric(1, 1, "auto", precision)
    device = fabric.device
    setup.check_machine(args, device)
    before = peak_memory(device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gpt = build_model(config)
        tokens_BT1 = torch.randint(config.vocab_size, (train.micro_batch_size, block_size + 1)).to(device)
    gpt.to(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    if tied:
        gpt.lm_head.weight = gpt.transformer.wte.weight
    model = TrainedModel.of(gpt, train.trainable)
    kernels = setup.choose_kernels(gpt.config, args.speed, device, train.z_loss, flops)
    with setup.training_switches(device, precision, args.deterministic, args.speed.activation_budget):
        state = setup.set_up(fabric, gpt, args, block_size, precision, kernels)
        gpt.train()
        times = []
        for _ in range(_WARM_UP + _TIMED):
            start = _now(device)
            summed = state.loss(tokens_BT1[:, :-1], tokens_BT1[:, 1:])
            fabric.backward(summed / tokens_BT1[:, 1:].numel())
            halfway = _now(device)
            clip_gradients(state.optimizer, train.max_norm)
            state.optimizer.step()
            state.optimizer.zero_grad()
            times.append((halfway - start, _now(device) - halfway))
    accumulation = train.accumulation(devices)
    batch_seconds, update_seconds = (median(each) for each in zip(*times[_WARM_UP:], strict=True))
    rate = accumulation * train.micro_batch_size * block_size / (accumulation * batch_seconds + update_seconds)
    peak = setup.peak_flops_of(device)
    mfu = rate * model.flops_per_token(block_size) / peak if peak else None
    settings = (train.micro_batch_size, block_size, precision, args.speed, args.optimizer)
    predicted = step_memory(model, *settings, kernels.loss, kernels.compiled)
    return MeasuredSteps(setup.machine_name(fabric), rate, mfu, peak_memory(device) - before, predicted.total)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
