"""Training arguments: litgpt's names, one meaning each. Free of torch so that ``--help`` is instant."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class TrainArgs:
    """How long and in which batches to train. A step is an optimizer step."""

    global_batch_size: int = 64
    """Samples an optimizer step; a multiple of micro_batch_size"""
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
    lr_warmup_steps: int = 1000
    """Steps of linear warm-up"""
    min_lr: float = 3e-5
    """Learning rate at the end of the cosine"""
    max_norm: float | None = 1.0
    """Gradient norm above which gradients are scaled down; null switches clipping off"""
    log_interval: int = 10
    """Steps between log lines"""
    save_interval: int | None = 1000
    """Steps between resumable saves; null saves only when stopped by a signal"""


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
    """AdamW."""

    lr: float = 3e-4
    """Highest learning rate"""
    weight_decay: float = 0.1
    """Decay of matrices; norms and biases are never decayed"""
    beta1: float = 0.9
    """Decay of the mean of the gradients"""
    beta2: float = 0.95
    """Decay of the mean of the squared gradients"""
    eps: float = 1e-8
    """Added to the denominator"""
