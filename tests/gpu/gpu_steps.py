"""Optimizer steps on the GPU, and the same on the CPU by a plain loop."""

from dataclasses import dataclass

import numpy as np
import torch
from litgpt.model import GPT
from torch.nn import functional as F

from inheritune_lit.train.args import OptimizerArgs, Precision, SpeedArgs, TrainArgs, TrainingArgs
from inheritune_lit.train.loop import Trainer
from inheritune_lit.train.plan import ResourceEstimate, RunPlan
from inheritune_lit.train.setup import build_fabric, choose_kernels, set_up, training_switches

DEVICE = torch.device("cuda")
SHAPE = {"n_embd": 400, "n_head": 4, "n_query_groups": 4, "intermediate_size": 512, "block_size": 256}
SAMPLES, MICRO, LR = 4, 2, 1e-3
WEIGHTS = {"bf16-true": torch.bfloat16, "bf16-mixed": torch.float32, "32-true": torch.float32}
DAYS = 1e18  # FLOPs of a run whose kernels are chosen


class TokenArray:
    """Tokens (N, T + 1) where the trainer looks for packed data and its sampler."""

    seed = first_sample = 0

    def __init__(self, tokens_NT1: np.ndarray) -> None:
        self.tokens_NT1 = tokens_NT1

    def blocks(self, samples: range) -> np.ndarray:
        return np.arange(samples.start, samples.stop)

    def targets(self, blocks: np.ndarray) -> np.ndarray:
        return np.full(len(blocks), self.tokens_NT1.shape[1] - 1)

    def batch(self, blocks: np.ndarray) -> np.ndarray:
        return self.tokens_NT1[blocks]


def draw_tokens(steps: int, T: int, vocabulary: int) -> np.ndarray:
    """Tokens (N, T + 1) of a number of steps with something to learn in them."""
    ranks = np.random.default_rng(0).zipf(1.3, size=(steps * SAMPLES, T + 1))
    return (ranks % vocabulary).astype(np.int64)


@dataclass
class Steps:
    """What some optimizer steps gave: losses, gradient norms, bytes of the peak, and those that the plan predicted."""

    losses: list[float]
    norms: list[float]
    peak: int
    predicted: int
    trainer: Trainer


def train(gpt: GPT, tokens_NT1: np.ndarray, precision: Precision, optimizer: str = "adamw", **speed: object) -> Steps:
    """Train as ``inheritune pretrain`` does, on the GPU."""
    torch._dynamo.reset()
    train = TrainArgs(
        global_batch_size=SAMPLES, micro_batch_size=MICRO, schedule="constant", lr_warmup_steps=0, max_loss_jump=None
    )
    args = TrainingArgs(train=train, optimizer=OptimizerArgs(name=optimizer, lr=LR), speed=SpeedArgs(**speed))
    steps, T = len(tokens_NT1) // SAMPLES, tokens_NT1.shape[1] - 1
    fabric = build_fabric(1, 1, "auto", precision)
    assert fabric.device.type == DEVICE.type
    kernels = choose_kernels(gpt.config, args.speed, fabric.device, 0.0, DAYS)
    parameters = sum(parameter.numel() for parameter in gpt.parameters())
    plan = RunPlan(steps, 0, 0, SAMPLES // MICRO, T, SAMPLES * T, 0, parameters, 1.0, None)
    predicted = ResourceEstimate(gpt.config, plan, args, precision, kernels, fabric.device).memory.total
    before = 0
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    state = set_up(fabric, gpt, args, T, precision, kernels)
    data = TokenArray(tokens_NT1)
    trainer = Trainer(fabric, state, plan, args, data, data, data, None, None)
    gpt.train()
    losses, norms = [], []
    with training_switches(fabric.device, precision, args.deterministic, args.speed.activation_budget):
        for trainer.step in range(steps):
            loss, norm, _ = trainer.train_step()
            losses.append(loss)
            norms.append(norm)
    peak = torch.cuda.max_memory_allocated() - before if DEVICE.type == "cuda" else 0
    return Steps(losses, norms, peak, predicted, trainer)


def train_plainly(gpt: GPT, tokens_NT1: np.ndarray) -> tuple[list[float], list[float]]:
    """The same steps written down once more, in fp32 on the CPU: losses, and norms of gradients before clipping."""
    decayed = [parameter for parameter in gpt.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in gpt.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    losses, norms = [], []
    for start in range(0, len(tokens_NT1), SAMPLES):
        tokens_BT1 = torch.from_numpy(tokens_NT1[start : start + SAMPLES])
        logits_BTV = gpt(tokens_BT1[:, :-1])
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT1[:, 1:].flatten())
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0).item())
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms
