"""``inheritune analyze`` with advice on n: what is known about each depth before anything is trained."""

import math
from dataclasses import dataclass

from inheritune_lit import (
    LONGEST_BLOCK,
    AdviceArgs,
    Analysis,
    AnalysisResult,
    AnalyzeArgs,
    Config,
    OptimizerArgs,
    ReferenceModel,
    SliceArgs,
    SpeedArgs,
    UserError,
    analyze_model,
    count_parameters,
    find_gpus,
    flops_per_token,
    resolve_reference,
    step_memory,
    student_config,
    tensor_shapes,
)
from inheritune_lit.io.tables import markdown_table


@dataclass(frozen=True)
class Depth:
    """The first n layers.

    Attributes:
        n: how many.
        loss, stderr: of the untrained slice, nats per token: measured by truncating.
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
    """Every n from 1 to the reference's depth, and the settings it holds for; ``str()`` of it is Markdown.

    Attributes:
        depths: one entry per n.
        sequences, seq_length: how many sequences of how many tokens the loss was measured on.
        block_size: tokens per sample of the training.
        vocabulary: tokens that the model chooses from.
        training: the training whose cost is estimated.
    """

    depths: list[Depth]
    sequences: int
    seq_length: int
    block_size: int
    vocabulary: int
    training: AdviceArgs

    def __str__(self) -> str:
        training = self.training
        header = ["n", "step-0 loss", "lazy layers left", "parameters", "memory", f"hours on {training.gpu}", ""]
        return (
            f"## Advice on n\n\n{markdown_table(header, [_row(depth) for depth in self.depths])}\n\n"
            f"Step-0 loss: of the first n layers before any training, in nats per token, on {self.sequences} sequences "
            f"of {self.seq_length} tokens; longer ones score lower, and guessing scores ln {self.vocabulary:,} = "
            f"{math.log(self.vocabulary):.3f}. Memory: of a training step with "
            f"{training.micro_batch_size} x {self.block_size} tokens per micro-batch, bf16-mixed, AdamW, compiled. "
            f"Hours: for {training.max_tokens:,} tokens on one {training.gpu} at {training.mfu:.0%} of its peak.\n\n"
            "The loss after healing is not in this table and does not follow from it: a slice that starts worse may "
            "heal better, and how much a layer, lazy or not, is worth after training shows only when slices of "
            "several n are trained: `inheritune grow` does that."
        )


def analyze(args: AnalyzeArgs) -> AnalysisResult:
    """Measure a model unless ``out_dir`` holds the same analysis; write page and figures, with advice if asked for.

    Raises:
        UserError: bad input; nothing is left behind.
    """
    if not args.advise:
        return analyze_model(args)
    with resolve_reference(args.ref) as located:
        reference = located.reference
        _block_and_peak(args.advice, reference.config)
        return analyze_model(args, lambda analysis: str(advise(analysis, reference, args.advice)))


def advise(analysis: Analysis, reference: ReferenceModel, training: AdviceArgs) -> Advice:
    """Collect what is known about each n.

    Args:
        analysis: of ``reference``, with the logit-lens loss.
        reference: the model to slice.
        training: the training of a slice whose cost is estimated.

    Raises:
        UserError: training that does not fit the model, or the analysis is of a model of another depth.
    """
    block_size, peak = _block_and_peak(training, reference.config)
    if analysis.model.n_layer != reference.config.n_layer:
        raise UserError(
            f"the analysis is of {analysis.model.n_layer} layers, {reference.folder} has "
            f"{reference.config.n_layer}; analyze it again"
        )
    lens = analysis.layers["logit_lens_loss"]
    depth, sequences = reference.config.n_layer, analysis.settings["num_sequences"]
    lazy = sorted(analysis.lazy.layers)
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
                loss=lens.mean[n],
                stderr=lens.std[n] / math.sqrt(sequences),
                lazy=sum(layer < n for layer in lazy),
                parameters=parameters,
                memory=memory.total,
                hours=training.max_tokens * flops_per_token(config, block_size) / (peak * training.mfu) / 3600,
                marks=tuple(mark for mark, holds in marks.items() if holds),
            )
        )
    return Advice(depths, sequences, analysis.settings["seq_length"], block_size, reference.config.vocab_size, training)


def _block_and_peak(training: AdviceArgs, config: Config) -> tuple[int, float]:
    """Tokens per sample, and the GPU's peak in FLOP/s.

    Raises:
        UserError: an unknown GPU, or samples that are too long for the model.
    """
    (gpu,) = find_gpus(training.gpu, "--advice.gpu")
    block_size = training.max_seq_length or min(config.block_size, LONGEST_BLOCK)
    if block_size > config.block_size:
        raise UserError(
            f"--advice.max_seq_length is {block_size}; give 1 to {config.block_size}, what the model attends to"
        )
    return block_size, gpu.peak_flops


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
