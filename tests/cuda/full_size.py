"""The project's own trainer with a model of any size on the simulated GPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inheritune_lit.inherit.reference import reference_of_hf
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.model.gpt import build_model
from inheritune_lit.planning.estimate import ModelSpec
from inheritune_lit.references import find_reference
from inheritune_lit.train.args import Precision, TrainingArgs
from inheritune_lit.train.loop import Trainer
from inheritune_lit.train.plan import RunPlan, StepMemory, step_memory
from inheritune_lit.train.setup import Kernels, build_fabric, check_machine, choose_kernels, set_up, training_switches
from inheritune_lit.train.trainable import TrainedModel

LONG_RUN = 1e20  # FLOPs: what is worth compiling is compiled


class Tokens:
    """Token 0 without end, where the trainer looks for packed data and its sampler."""

    seed = 0

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def blocks(self, samples: range) -> range:
        """The samples in their order."""
        return samples

    def targets(self, blocks: range) -> np.ndarray:
        """How many each sample has."""
        return np.full(len(blocks), self._block_size)

    def batch(self, blocks: range) -> np.ndarray:
        """Tokens, (B, T + 1)."""
        return np.zeros((len(blocks), self._block_size + 1), np.int64)


def model_of(ref: str, n: int | None) -> ModelSpec:
    """The first n layers of a named reference, all when None; without network, also of GPT-2, which litgpt lacks."""
    known = find_reference(ref)
    if known is None or not known.name.startswith("gpt2"):
        return ModelSpec.of_reference(ref, n)
    hf = {
        "model_type": "gpt2",
        "n_layer": known.layers,
        "n_embd": known.width,
        "n_head": known.width // 64,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "vocab_size": 50257,
        "tie_word_embeddings": True,
    }
    return ModelSpec.of_slice(reference_of_hf(Path(), "openai-community", known.name, hf), ref, n)


@dataclass
class Training:
    """A trainer that is ready, and what it was made of."""

    trainer: Trainer
    model: ModelSpec
    kernels: Kernels
    predicted: StepMemory
    switches: tuple[Any, ...]  # arguments of ``training_switches``

    @classmethod
    def of(cls, model: ModelSpec, block_size: int, args: TrainingArgs, precision: Precision) -> "Training":
        """Puts model, kernels, optimizer and trainer together as ``inheritune pretrain`` does, without files."""
        config, train = model.config, args.train
        fabric = build_fabric(1, 1, "auto", precision)
        check_machine(args, fabric.device)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if precision == "bf16-true" else torch.float32)
        gpt = build_model(config)
        torch.set_default_dtype(default)
        gpt.cos, gpt.sin = gpt.rope_cache()  # in fp32, whatever the weights are
        if model.tied:
            gpt.lm_head.weight = gpt.transformer.wte.weight
        kernels = choose_kernels(config, args.speed, fabric.device, train.z_loss, LONG_RUN)
        state = set_up(fabric, gpt, args, block_size, precision, kernels)
        gpt.train()
        per_token, tokens = flops_per_token(config, block_size), train.global_batch_size * block_size
        plan = RunPlan(100, 0, 0, train.accumulation(1), block_size, tokens, 0, model.parameters, per_token, None)
        data: Any = Tokens(block_size)
        saver: Any = None
        trainer = Trainer(fabric, state, plan, args, data, data, data, saver, None)
        size = (TrainedModel.of(gpt, train.trainable), train.micro_batch_size, block_size)
        settings = (precision, args.speed, args.optimizer, kernels.loss, kernels.compiled)
        switches = (fabric.device, precision, args.deterministic, args.speed.activation_budget)
        return cls(trainer, model, kernels, step_memory(*size, *settings), switches)

    def step(self) -> None:
        """One optimizer step."""
        with training_switches(*self.switches):
            self.trainer.train_step()
        self.trainer.step += 1
