"""Training arguments: litgpt's names, one meaning each. Free of torch so that ``--help`` is instant."""

from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import MOST_SEED, CommandArgs, Precision, check_numbers
from inheritune_lit.io.manifest import read_manifest

Strategy = Literal["auto", "ddp", "fsdp", "hybrid"]
Documents = Literal["packed", "separate"]
LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class TrainArgs:
    """How long and in which batches to train. A step is an optimizer step."""

    global_batch_size: int = 64
    """Samples per optimizer step, over all devices; a multiple of micro_batch_size times devices"""
    micro_batch_size: int = 4
    """Samples per forward pass"""
    max_seq_length: int | None = None
    """Tokens per sample; the model's block size when not given"""
    max_tokens: int | None = None
    """Token budget; give exactly one of max_tokens, max_steps and epochs"""
    max_steps: int | None = None
    """Budget in optimizer steps"""
    epochs: int | None = None
    """Budget in tokens as passes over the training data; with weights, domains see more or fewer passes each"""
    max_time: float | None = None
    """Seconds after which a call saves and leaves; the same command continues"""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """Learning rate after the warm-up: cosine to min_lr, constant, or constant with a linear decay at the end"""
    lr_warmup_steps: int = 1000
    """Steps of linear warm-up"""
    lr_decay_steps: int = 0
    """Last steps of the wsd schedule, in which the rate falls to min_lr"""
    min_lr: float = 3e-5
    """Learning rate at the end of the cosine or of the decay"""
    trainable: str | None = None
    """What is trained, the rest is frozen: names of the model's parts as litgpt has them, such as lm_head,ln_f,h.12-14,
    h.last:3 or h.*.attn; everything when not given"""
    max_norm: float | None = 1.0
    """Gradient norm above which gradients are scaled down; null switches clipping off"""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser in the loss"""
    bad_step: Literal["stop", "skip"] = "stop"
    """On a loss or gradient that is not finite, or a loss that jumps: save and stop, or leave the step out (ten in a
    row stop too)"""
    max_loss_jump: float | None = 3.0
    """Nats by which a step's loss may exceed the running mean; null switches the check off"""
    log_interval: int = 10
    """Steps between log lines"""
    save_interval: int | None = 1000
    """Steps between saves; null saves only when stopped by a signal, and at the end until final/ is written"""
    keep_last: int = 0
    """Newest saves to keep as checkpoints, step-00001000/ and so on; weights only"""
    average_last: int = 0
    """Write the mean of the last so many saves, the final weights among them, as averaged/ at the end"""
    keep_best: bool = False
    """Keep the weights with the lowest held-out loss as best/"""
    async_save: bool = False
    """Save while training continues, from a copy in host memory"""

    def __post_init__(self) -> None:
        check_numbers(self, "global_batch_size", "micro_batch_size", "log_interval", "save_interval", group="train.")
        check_numbers(self, "max_norm", "max_time", "max_loss_jump", group="train.")
        check_numbers(self, "lr_warmup_steps", "lr_decay_steps", "keep_last", "z_loss", group="train.", least=0)
        check_numbers(self, "average_last", group="train.", least=0)
        if self.average_last > self.keep_last + 1:
            few = f"--train.keep_last {self.keep_last} keeps fewer"
            raise UserError(f"--train.average_last {self.average_last}: {few}; give {self.average_last - 1}")
        if (self.schedule == "wsd") != (self.lr_decay_steps > 0):
            raise UserError(
                f"--train.schedule {self.schedule} with --train.lr_decay_steps {self.lr_decay_steps}: the wsd schedule "
                "needs decay steps, the others have none"
            )
        if [self.max_tokens, self.max_steps, self.epochs].count(None) < 2:
            self.budget()

    def budget(self) -> tuple[str, int]:
        """Returns the name of the budget that is given, and its value; none or several are a ``UserError``."""
        values = [(name, getattr(self, name)) for name in ("max_tokens", "max_steps", "epochs")]
        given = [(name, value) for name, value in values if value is not None]
        if len(given) != 1:
            seen = ", ".join(f"{name} {value}" for name, value in given) or "none"
            raise UserError(
                f"give exactly one of --train.max_tokens, --train.max_steps and --train.epochs; seen: {seen}"
            )
        return given[0]

    def accumulation(self, devices: int = 1) -> int:
        """Returns the micro-batches per step on so many devices over all nodes; a ``UserError`` with a rest."""
        count, rest = divmod(self.global_batch_size, self.micro_batch_size * devices)
        if rest:
            times = f" times {devices} devices" if devices > 1 else ""
            raise UserError(
                f"--train.global_batch_size {self.global_batch_size} is not a multiple of --train.micro_batch_size "
                f"{self.micro_batch_size}{times}; change one of them"
            )
        return count


@dataclass(frozen=True)
class MixtureArgs:
    """How often each domain is drawn."""

    weights: dict[str, float] | Literal["proportional", "uniform"] = "proportional"
    """Relative weights by domain, such as {arxiv: 0.025, cc: 0.67}, where cc also stands for cc_2019-30 and its like;
    a domain left out is not drawn. "uniform" weighs all alike; "proportional" goes through all the data in epochs, each
    token once in each"""


@dataclass(frozen=True)
class EvalArgs:
    """When and on how much to validate."""

    interval: int = 200
    """Steps between validations; the last step is always validated"""
    max_iters: int | None = None
    """Micro-batches per validation, of the size that a run starts with, always the same ones; the whole validation
    split when not given"""
    initial_validation: bool = True
    """Validate before the first step: the loss of the slice before healing"""
    samples: int | None = None
    """Samples per validation, where max_iters is not to count"""

    def __post_init__(self) -> None:
        check_numbers(self, "interval", "max_iters", "samples", group="eval.")

    def count(self, micro_batch_size: int) -> int | None:
        """Returns the samples per validation, None for all there are."""
        return self.samples or (self.max_iters and self.max_iters * micro_batch_size)

    def continued(self, folder: Path) -> "EvalArgs":
        """Returns them with the number of samples that the run or growth in a folder validates on, if it is theirs.

        ``max_iters`` counts micro-batches, whose size may be another when it is continued.
        """
        recorded: Any = read_manifest(folder) or {}
        for name in ("settings", "eval"):
            recorded = recorded[name] if isinstance(recorded.get(name), dict) else {}
        samples, count = recorded.get("samples"), recorded.get("max_iters")
        same = type(samples) is int and self.samples is None and self.max_iters is not None and self.max_iters == count
        return replace(self, samples=samples) if same else self


@dataclass(frozen=True)
class OptimizerArgs:
    """The optimizer: AdamW unless named otherwise."""

    name: str = "adamw"
    """adamw, adamw8bit (bitsandbytes, CUDA), or the path of an optimizer class"""
    lr: float = 3e-4
    """Highest learning rate"""
    weight_decay: float = 0.1
    """Weight decay"""
    decay: Literal["matrices", "all"] = "matrices"
    """What decays: matrices, or norms and biases as well"""
    beta1: float = 0.9
    """Decay of the mean of the gradients"""
    beta2: float = 0.95
    """Decay of the mean of the squared gradients"""
    eps: float = 1e-8
    """Added to the denominator"""
    master_weights: bool = True
    """With bf16-true: keep fp32 copies of the weights, without which small updates are lost"""
    init_args: dict[str, Any] | None = None
    """Further arguments of an optimizer given by its path, which takes none of the betas and eps above"""

    def __post_init__(self) -> None:
        check_numbers(self, "lr", "eps", group="optimizer.")
        check_numbers(self, "weight_decay", group="optimizer.", least=0)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--optimizer.{name} is {getattr(self, name)}; give a number from 0 to below 1")


@dataclass(frozen=True)
class SpeedArgs:
    """Choices of speed and memory that leave the mathematics as it is."""

    compile: bool | None = None
    """torch.compile of model and loss; on CUDA, and for runs of 1e14 FLOPs and more on CPU, when not given"""
    loss_kernel: Literal["auto", "plain", "chunked"] = "auto"
    """How the loss is computed: on whole logits, or on 1024 tokens of logits at a time"""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more computing, far less memory"""
    activation_budget: float = 1.0
    """Share of a compiled model's activations to keep for the backward pass, 0 to 1: torch recomputes the rest, what
    costs least first; less memory than nothing recomputed, less computing than activation_checkpointing"""
    fp8: bool = False
    """fp8 matrix products through torchao (Hopper and later); this one does change the mathematics"""

    def __post_init__(self) -> None:
        check_numbers(self, "activation_budget", group="speed.", least=0, most=1)
        if self.activation_budget < 1 and self.activation_checkpointing:
            given = f"--speed.activation_budget {self.activation_budget} and --speed.activation_checkpointing true"
            raise UserError(f"{given} both recompute; give one")
        if self.compile is not None:
            self.check_compiled(self.compile)

    def check_compiled(self, compiled: bool) -> None:
        """Refuses what cannot be compiled where it is to be, and what only the compiler does where it is not."""
        if self.activation_budget < 1 and not compiled:
            raise UserError(f"--speed.activation_budget {self.activation_budget} needs --speed.compile true")
        if compiled and self.loss_kernel == "chunked":
            raise UserError("--speed.loss_kernel chunked cannot be compiled; use plain, or --speed.compile false")


@dataclass(frozen=True)
class DistillArgs:
    """A teacher, and how much of it goes into the loss (paper, Appendix C.1)."""

    teacher: str | None = None
    """The model to learn from, of the same tokenizer: a folder, or what --ref of `inheritune slice` takes"""
    teacher_logits: Path | None = None
    """Its predictions on this data, written by `inheritune teach`, instead of teacher"""
    alpha: float = 0.6
    """Weight of the plain loss; that of the teacher's predictions is 1 - alpha, and 1 is plain training"""
    temperature: float = 1.0
    """Both distributions are softened by it, and their divergence is multiplied by its square"""
    align: Literal["none", "last", "layers"] = "none"
    """Hidden states that are drawn to the teacher's: last are those before the head, by their cosine, as DistilBERT's;
    layers are the outputs of a slice's layers, each to what the next layer was given in the reference, the teacher"""
    align_weight: float = 1.0
    """Weight of each such distance; DistilBERT's weights of divergence, plain loss and cosine are 5, 2 and 1"""

    @property
    def active(self) -> bool:
        """Whether anything of a teacher goes into the loss."""
        given = self.teacher is not None or self.teacher_logits is not None
        return given and not (self.alpha == 1 and self.align == "none")

    def __post_init__(self) -> None:
        teacher, logits = self.teacher, self.teacher_logits
        if teacher is not None and logits is not None:
            raise UserError(f"--distill.teacher {teacher} and --distill.teacher_logits {logits}: give one")
        check_numbers(self, "alpha", group="distill.", least=0, most=1)
        check_numbers(self, "temperature", "align_weight", group="distill.")
        if self.align != "none" and logits is not None:
            raise UserError(
                f"--distill.align {self.align} compares hidden states, which --distill.teacher_logits does not have; "
                "give --distill.teacher"
            )


@dataclass(frozen=True)
class TrainingArgs(CommandArgs):
    """What every command that trains takes."""

    _: KW_ONLY
    train: TrainArgs = TrainArgs()
    """Budget, batches and schedule."""
    eval: EvalArgs = EvalArgs()
    """Validation."""
    optimizer: OptimizerArgs = OptimizerArgs()
    """Which optimizer, and its settings."""
    speed: SpeedArgs = SpeedArgs()
    """Kernels, compiler, memory."""
    distill: DistillArgs = DistillArgs()
    """A teacher to learn from."""
    precision: Precision | None = None
    """bf16-mixed on a GPU that has bf16, else 32-true, when not given; bf16-true keeps fp32 copies of the weights."""
    devices: int | Literal["auto"] = 1
    """GPUs (or CPU processes) per node, or "auto" for every GPU."""
    num_nodes: int = 1
    """Nodes, each started with this command by torchrun or SLURM."""
    strategy: Strategy = "auto"
    """ddp, or fsdp to shard the model over all devices, or hybrid to shard within nodes only."""
    mixture: MixtureArgs = MixtureArgs()
    """How often each domain is drawn."""
    documents: Documents = "packed"
    """"packed" cuts text into samples wherever they end, across documents; "separate" keeps each sample within one
    document and pads what is left."""
    seed: int = 1337
    """Seed of the data order."""
    deterministic: bool = False
    """On CUDA too, a run that was stopped continues with the same bits, by kernels that are slower; it may change when
    a run is continued. On CPU that is always so."""
    logger_name: LoggerName = "csv"
    """Logger beside ``metrics.csv``."""
    dry_run: bool = False
    """Print the plan and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lr, min_lr, z_loss, kernel = self.optimizer.lr, self.train.min_lr, self.train.z_loss, self.speed.loss_kernel
        if not 0 <= min_lr <= lr:
            raise UserError(f"--train.min_lr is {min_lr}; give a number from 0 to --optimizer.lr {lr}")
        if z_loss and kernel not in ("auto", "plain"):
            raise UserError(f"--train.z_loss {z_loss} needs --speed.loss_kernel plain, not {kernel}")
        if self.distill.active and z_loss:
            raise UserError(f"--train.z_loss {z_loss} is not part of the distillation's loss; leave one of them out")
        if self.distill.active and kernel not in ("auto", "chunked"):
            raise UserError(f"--speed.loss_kernel {kernel}: distillation has a loss of its own; leave it out")
        check_numbers(self, "seed", least=0, most=MOST_SEED)
        self.train.accumulation(1 if self.devices == "auto" else max(1, self.devices * self.num_nodes))
        if self.sharded and self.precision == "bf16-true":
            use = f"with --strategy {self.strategy} use bf16-mixed"
            raise UserError(f"--precision bf16-true keeps whole copies of the weights; {use}")

    @property
    def sharded(self) -> bool:
        """Whether parameters are spread over devices."""
        return self.strategy in ("fsdp", "hybrid")


@dataclass(frozen=True)
class PretrainArgs(TrainingArgs):
    """Continue the training of a checkpoint on packed data. The same command again continues a stopped run."""

    initial_checkpoint_dir: Path
    """Litgpt checkpoint to start from, such as a slice."""
    data: Path
    """Packed data from ``inheritune prepare``."""
    out_dir: Path
    """Run folder: ``metrics.csv``, resumable state, and ``final/``, the trained checkpoint."""
    _: KW_ONLY
    n: int | None = None
    """Number of layers, for recipes with ``{n}`` in their paths."""
    allow_data_change: bool = False
    """Continue a run although its data, mixture or ``documents`` is another than when it was started; from the next
    step on the new one counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths = {"initial_checkpoint_dir": self.initial_checkpoint_dir, "out_dir": self.out_dir}
        for name, path in {**at_depth(paths, self.n), "n": None}.items():  # once filled in, there is nothing to fill in
            object.__setattr__(self, name, path)
        self.train.budget()


def at_depth(paths: dict[str, Path], n: int | None) -> dict[str, Path]:
    """Replaces ``{n}`` in paths, which have their arguments' names, by a number of layers: one recipe for many depths.

    A number without a place for it, a place without a number, or a number below 1 is a ``UserError``.
    """
    places = [name for name, path in paths.items() if "{n}" in str(path)]
    if n is None and places:
        raise UserError(f"--{places[0]} {paths[places[0]]} is for several depths; give one, such as --n 13")
    if n is not None and (n < 1 or not places):
        raise UserError(f"--n {n} needs {{n}} in --{' or --'.join(paths)}, and to be at least 1")
    return {name: Path(str(path).replace("{n}", str(n))) for name, path in paths.items()}


@dataclass(frozen=True)
class TeachArgs(CommandArgs):
    """Write a teacher's predictions on packed data, for ``inheritune pretrain --distill.teacher_logits``.

    The same command again continues a killed one.
    """

    teacher: str
    """The teacher: a checkpoint folder, or what --ref of ``inheritune slice`` takes."""
    data: Path
    """Packed data from ``inheritune prepare``."""
    out_dir: Path
    """The new folder."""
    _: KW_ONLY
    max_seq_length: int
    """Tokens per sample, as the student will be trained."""
    documents: Documents = "packed"
    """As the student will be trained."""
    samples: int | None = None
    """Tokens to draw at each position from the teacher's distribution, 2 bytes each, or 4 where there are more than
    65,536 tokens; as many as take 50 bytes when neither this nor top_k is given."""
    top_k: int | None = None
    """Keep the likeliest tokens of each position and their log-probabilities instead, 4 or 6 bytes each."""
    temperature: float = 1.0
    """What the student's --distill.temperature will be."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the log-probabilities that top_k keeps."""
    batch_size: int = 4
    """Samples per forward pass."""
    seed: int = 1337
    """Seed of the draws."""
    devices: int | Literal["auto"] = 1
    """GPUs (or CPU processes) that share the work, or "auto" for every GPU."""
    dry_run: bool = False
    """Print the plan and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "max_seq_length", "samples", "top_k", "temperature", "batch_size")
        if self.samples is not None and self.top_k is not None:
            raise UserError(f"--samples {self.samples} and --top_k {self.top_k}: give one")
        check_numbers(self, "seed", least=0, most=MOST_SEED)
