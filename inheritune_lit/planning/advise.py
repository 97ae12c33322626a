"""Advice on n: what is known about each depth before anything is trained."""

import math
from dataclasses import dataclass

from inheritune_lit.analysis.args import AdviceArgs
from inheritune_lit.analysis.page import markdown
from inheritune_lit.analysis.result import Analysis
from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import count_parameters, tensor_shapes
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.plan import student_config
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.model.flops import LONGEST_BLOCK, flops_per_token
from inheritune_lit.train.args import OptimizerArgs, SpeedArgs
from inheritune_lit.train.gpus import find_gpus
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
        config, _ = student_config(reference, SliceArgs(reference.name, n=n))
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
    (card,) = find_gpus(training.gpu, "--advice.gpu")
    block_size = min(config.block_size, LONGEST_BLOCK) if training.max_seq_length is None else training.max_seq_length
    if not 1 <= block_size <= config.block_size:
        raise UserError(
            f"--advice.max_seq_length is {block_size}; give 1 to {config.block_size}, what the model attends to"
        )
    return block_size, card.peak_flops


def advice_text(advice: Advice) -> str:
    """Advice as Markdown: a table of every n, and what it cannot say."""
    training = advice.training
    rows = [_row(depth) for depth in advice.depths]
    header = ["n", "step-0 loss", "lazy layers left", "parameters", "memory", f"hours on {training.gpu}", ""]
    return "\n".join(
        [
            "## Advice on n",
            "",
            *markdown(header, rows),
            "",
            f"Step-0 loss: of the first n layers before any training, in nats a token, on {advice.sequences} sequences "
            f"of {advice.seq_length} tokens; longer ones score lower, and guessing scores ln {advice.vocabulary:,} = "
            f"{math.log(advice.vocabulary):.3f}. Memory: of a training step with "
            f"{training.micro_batch_size} x {advice.block_size} tokens a micro-batch, bf16-mixed, AdamW, compiled. "
            f"Hours: for {training.max_tokens:,} tokens on one {training.gpu} at {training.mfu:.0%} of its peak.",
            "",
            "The loss after healing is not in this table and cannot be told from it: a slice that starts worse may "
            "heal better, and how much a layer, lazy or not, is worth after training shows only when slices of "
            "several n are trained: `inheritune grow` does that.",
        ]
    )


def _row(depth: Depth) -> list[str]:
    marks = "; ".join(depth.marks)
    cells = [
        str(depth.n),
        f"{depth.loss:.3f} ± {depth.stderr:.3f}",
        str(depth.lazy),
        f"{depth.parameters:,}",
        f"{_digits(depth.memory / 1e9)} GB",
        _digits(depth.hours),
    ]
    return [*(f"**{cell}**" if marks else cell for cell in cells), marks]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
