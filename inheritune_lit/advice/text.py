"""Advice on n in words."""

import math

from inheritune_lit.advice.advise import Advice, Depth
from inheritune_lit.analysis.layer_table import markdown


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
