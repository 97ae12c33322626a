"""Advice on n: what is known about each depth before anything is trained."""

import math
from dataclasses import dataclass

from inheritune_lit.advice.args import AdviceArgs
from inheritune_lit.analysis.result import Analysis
from inheritune_lit.budget import LONGEST_BLOCK, flops_per_token
from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.checkpoint.shapes import count_parameters, tensor_shapes
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.options import SliceOptions
from inheritune_lit.inherit.plan import student_config
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.planning.cards import find_cards
from inheritune_lit.train.args import OptimizerArgs, SpeedArgs
from inheritune_lit.train.memory import step_memory


@dataclass(frozen=True)
class Depth:
    """The first n layers.

    Attributes:
        loss, stderr: of the untrained slice, nats a token: measured by truncating.
        lazy: lazy layers among them.
        parameters: a tied head counted once.
        memory: bytes of a training step, bf16-mixed, AdamW, compiled.
        hours: of training on one GPU.
        marks: why this n stands out.
    """

    n: int
    loss: float
    stderr: float
    lazy: int
    parameters: int
    memory: int
    hours: float
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """Every n from 1 to the reference's depth, and under which settings it was worked out.

    Attributes:
        sequences, seq_length: how many sequences of how many tokens the loss was measured on.
        block_size: tokens a sample of the training.
        vocabulary: tokens that the model chooses from.
    """

    depths: list[Depth]
    sequences: int
    seq_length: int
    block_size: int
    vocabulary: int
    training: AdviceArgs


def advise(analysis: Analysis, reference: ReferenceModel, training: AdviceArgs) -> Advice:
    """Work out what is known about each n.

    Args:
        analysis: of ``reference``, with the logit-lens loss.
        reference: what would be sliced.
        training: the healing whose cost is told.

    Raises:
        UserError: arguments out of range, or the analysis is of a model of another depth.
    """
    block_size, peak = check_training(training, reference.config)
    if analysis.model["n_layer"] != reference.config.n_layer:
        raise UserError(
            f"the analysis is of {analysis.model['n_layer']} layers, {reference.folder} has "
            f"{reference.config.n_layer}; analyze it again"
        )
    lens = analysis.layers["logit_lens_loss"]
    depth, sequences = reference.config.n_layer, analysis.settings["num_sequences"]
    lazy = sorted(analysis.lazy["layers"])
    depths = []
    for n in range(1, depth + 1):
        config, _ = student_config(reference, SliceOptions(n=n))
        parameters = count_parameters(tensor_shapes(config, reference.tied))
        memory = step_memory(
            config,
            parameters,
            training.micro_batch_size,
            block_size,
            "bf16-mixed",
            SpeedArgs(),
            OptimizerArgs(),
            loss_kernel="plain",
            compiled=True,
        )
        marks = {
            "paper's choice, k/2": n == depth // 2,
            "all layers before the first lazy one": bool(lazy) and n == lazy[0],
            "the reference": n == depth,
        }
        depths.append(
            Depth(
                n=n,
                loss=lens["mean"][n],
                stderr=lens["std"][n] / math.sqrt(sequences),
                lazy=sum(layer < n for layer in lazy),
                parameters=parameters,
                memory=memory.total,
                hours=training.max_tokens * flops_per_token(config, block_size) / (peak * training.mfu) / 3600,
                marks=tuple(mark for mark, holds in marks.items() if holds),
            )
        )
    return Advice(depths, sequences, analysis.settings["seq_length"], block_size, reference.config.vocab_size, training)


def check_training(training: AdviceArgs, config: Config) -> tuple[int, float]:
    """Tokens a sample, and the GPU's peak in FLOP/s.

    Raises:
        UserError: arguments out of range.
    """
    for name, value in (("max_tokens", training.max_tokens), ("micro_batch_size", training.micro_batch_size)):
        if value < 1:
            raise UserError(f"--advice.{name} is {value}; give 1 or more")
    if not 0 < training.mfu <= 1:
        raise UserError(f"--advice.mfu is {training.mfu}; give a share above 0, at most 1")
    (card,) = find_cards(training.gpu, "--advice.gpu")
    block_size = min(config.block_size, LONGEST_BLOCK) if training.max_seq_length is None else training.max_seq_length
    if not 1 <= block_size <= config.block_size:
        raise UserError(
            f"--advice.max_seq_length is {block_size}; give 1 to {config.block_size}, what the model attends to"
        )
    return block_size, card.peak_flops
