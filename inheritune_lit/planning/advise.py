"""``inheritune analyze`` with advice on n: what is known about each depth before anything is trained."""

import math
from dataclasses import dataclass

import inheritune_lit as lit
from inheritune_lit.errors import UserError
from inheritune_lit.io.tables import markdown_table
from inheritune_lit.planning.estimate import ModelSpec, TrainingJob


@dataclass(frozen=True)
class Depth:
    """The first n layers."""

    n: int
    loss: float  # of the untrained slice, nats per token: measured by truncating
    stderr: float
    lazy: int  # lazy layers among them
    job: TrainingJob  # bf16-mixed, AdamW, compiled
    hours: float  # of training on one GPU
    marks: tuple[str, ...]  # why this n stands out


@dataclass(frozen=True)
class Advice:
    """Every n, its loss on ``sequences`` of ``seq_length`` tokens, and the settings; ``str()`` of it is Markdown."""

    depths: list[Depth]
    sequences: int
    seq_length: int
    training: lit.AdviceArgs

    def __str__(self) -> str:
        training, job, rows = self.training, self.depths[-1].job, []
        vocabulary = job.model.config.vocab_size
        for one in self.depths:
            loss, memory = f"{one.loss:.3f} ± {one.stderr:.3f}", f"{_digits(one.job.memory().total / 1e9)} GB"
            cells = [str(one.n), loss, str(one.lazy), f"{one.job.model.parameters:,}", memory, _digits(one.hours)]
            rows.append([*(f"**{cell}**" if one.marks else cell for cell in cells), "; ".join(one.marks)])
        header = ["n", "step-0 loss", "lazy layers left", "parameters", "memory", f"hours on {training.gpu}", ""]
        return (
            f"## Advice on n\n\n{markdown_table(header, rows)}\n\n"
            f"Step-0 loss: of the first n layers before any training, in nats per token, on {self.sequences} sequences "
            f"of {self.seq_length} tokens; longer ones score lower, and guessing scores ln {vocabulary:,} = "
            f"{math.log(vocabulary):.3f}. Memory: of a training step with "
            f"{training.micro_batch_size} x {job.block_size} tokens per micro-batch, bf16-mixed, AdamW, compiled. "
            f"Hours: for {training.max_tokens:,} tokens on one {training.gpu} at {training.mfu:.0%} of its peak.\n\n"
            "The loss after healing is not in this table and does not follow from it: a slice that starts worse may "
            "heal better, and how much a layer, lazy or not, is worth after training shows only when slices of "
            "several n are trained: `inheritune grow` does that."
        )


def analyze(args: lit.AnalyzeArgs) -> lit.AnalysisResult:
    """Measure a model, unless ``out_dir`` holds it, and write the page, with advice if asked; bad input is refused."""
    if not args.advise:
        return lit.analyze_model(args)
    with lit.resolve_reference(args.ref) as located:
        reference = located.reference
        _block_and_gpu(args.advice, reference.config)
        return lit.analyze_model(args, lambda analysis: str(advise(analysis, reference, args.advice)))


def advise(analysis: lit.Analysis, reference: lit.ReferenceModel, training: lit.AdviceArgs) -> Advice:
    """Collect what is known about each n from an analysis and the cost of training; a misfit is a ``UserError``."""
    block_size, gpu = _block_and_gpu(training, reference.config)
    depth, settings = reference.config.n_layer, analysis.settings
    if analysis.model.n_layer != depth:
        other = f"the analysis is of {analysis.model.n_layer} layers, {reference.folder} has {depth}"
        raise UserError(f"{other}; analyze it again")
    lens, lazy = analysis.layers["logit_lens_loss"], sorted(analysis.lazy.layers)
    marks = {"paper's choice, k/2": [depth // 2], "all layers before the first lazy one": lazy[:1]}
    marks["the reference"] = [depth]
    train, depths = lit.TrainArgs(micro_batch_size=training.micro_batch_size), []
    for n in range(1, depth + 1):
        model = ModelSpec.of_slice(reference, reference.name, n)
        job = TrainingJob(model, training.max_tokens, block_size, train, mfu=training.mfu)
        why = tuple(mark for mark, places in marks.items() if n in places)
        stderr, lazy_below = lens.std[n] / math.sqrt(settings["num_sequences"]), sum(layer < n for layer in lazy)
        depths.append(Depth(n, lens.mean[n], stderr, lazy_below, job, job.seconds(gpu) / 3600, why))
    return Advice(depths, settings["num_sequences"], settings["seq_length"], training)


def _block_and_gpu(training: lit.AdviceArgs, config: lit.Config) -> tuple[int, lit.Gpu]:
    """Tokens per sample, and the GPU; an unknown GPU or samples too long for the model are a ``UserError``."""
    (gpu,) = lit.find_gpus(training.gpu, "--advice.gpu")
    block_size = training.max_seq_length or min(config.block_size, lit.LONGEST_BLOCK)
    if block_size > config.block_size:
        remedy = f"give 1 to {config.block_size}, what the model attends to"
        raise UserError(f"--advice.max_seq_length is {block_size}; {remedy}")
    return block_size, gpu


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
