"""Training arguments: litgpt's names, one meaning each. Free of torch so that ``--help`` is instant."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class TrainArgs:
    """How long and in which batches to train. A step is an optimizer step."""

    global_batch_size: int = 64
    """Samples an optimizer step, over all devices; a multiple of micro_batch_size times devices"""
    micro_batch_size: int = 4
    """Samples a forward pass"""
    max_seq_length: int | None = None
    """Tokens a sample; the model's block size when not given"""
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
    max_norm: float | None = 1.0
    """Gradient norm above which gradients are scaled down; null switches clipping off"""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser in the loss"""
    bad_step: Literal["stop", "skip"] = "stop"
    """On a loss or gradient that is not finite, or a loss that jumps: save and stop, or leave the step out"""
    max_loss_jump: float | None = 3.0
    """Nats by which a step's loss may exceed the running mean; null switches the check off"""
    log_interval: int = 10
    """Steps between log lines"""
    save_interval: int | None = 1000
    """Steps between saves; null saves only when stopped by a signal"""
    keep_last: int = 0
    """Newest saves to keep as checkpoints, step-00001000/ and so on; weights only"""
    keep_best: bool = False
    """Keep the weights with the lowest held-out loss as best/"""
    async_save: bool = False
    """Save while training goes on, from a copy in host memory"""


@dataclass
class MixtureArgs:
    """How often each domain is drawn."""

    weights: dict[str, float] | Literal["proportional", "uniform"] = "proportional"
    """Relative weights by domain, such as {arxiv: 0.025, cc: 0.67}, where cc also stands for cc_2019-30 and its like;
    a domain left out is not drawn. "uniform" weighs all alike; "proportional" goes through all the data in epochs, each
    token once in each"""


@dataclass
class EvalArgs:
    """When and on how much to validate."""

    interval: int = 200
    """Steps between validations; the last step is always validated"""
    max_iters: int | None = None
    """Micro-batches a validation, always the same ones; the whole validation split when not given"""
    initial_validation: bool = True
    """Validate before the first step: the loss of the slice before healing"""


@dataclass
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


@dataclass
class SpeedArgs:
    """Choices of speed and memory that leave the mathematics as it is."""

    compile: bool | None = None
    """torch.compile of model and loss; on CUDA, and for runs of 1e14 FLOPs and more on CPU, when not given"""
    loss_kernel: Literal["auto", "plain", "chunked", "liger"] = "auto"
    """How the loss is computed: whole logits, 1024 tokens of logits at a time, or Liger-Kernel's fused loss"""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more computing, far less memory"""
    fp8: bool = False
    """fp8 matrix products through torchao (Hopper and later); this one does change the mathematics"""
