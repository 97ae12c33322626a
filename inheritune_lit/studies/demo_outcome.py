"""The demo's table and plot: what was measured, with its noise."""

from dataclasses import dataclass
from pathlib import Path

from inheritune_lit.train.metrics import read_validations

CHANCE = 0.25


@dataclass
class Row:
    """One model of the demo: name, size, tokens it was trained on here, and scores as (value, standard error)."""

    name: str
    n_layer: int
    parameters: int
    tokens: int
    val_loss: tuple[float, float]
    accuracy: tuple[float, float]


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table; losses in nats a token, accuracy in percent."""
    lines = [
        "| model | layers | parameters | tokens trained | held-out loss | next passage, 4 choices (chance 25%) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        loss, loss_stderr = row.val_loss
        accuracy, accuracy_stderr = (100 * value for value in row.accuracy)
        lines.append(
            f"| {row.name} | {row.n_layer} | {row.parameters:,} | {row.tokens:,} "
            f"| {loss:.3f} ± {loss_stderr:.3f} | {accuracy:.1f}% ± {accuracy_stderr:.1f} |"
        )
    return "\n".join(lines) + "\n"


def conclusion(rows: dict[str, Row]) -> str:
    """One sentence that compares the trained slice with the random model and the reference, whatever came out."""
    inherited, random, reference = (rows[name].val_loss for name in ("slice", "random", "reference"))
    gap = random[0] - inherited[0]
    noise = (random[1] ** 2 + inherited[1] ** 2) ** 0.5  # unpaired, so the true noise of the gap is smaller
    verdict = "ahead of" if gap > 2 * noise else "behind" if gap < -2 * noise else "not distinguishable from"
    behind = inherited[0] - reference[0]
    return (
        f"On equal tokens the slice is {verdict} the random model of its size: its loss is {abs(gap):.3f} "
        f"{'lower' if gap >= 0 else 'higher'} (±{noise:.3f}); it is {abs(behind):.3f} "
        f"{'above' if behind >= 0 else 'below'} the reference, which has twice its layers.\n"
    )


def plot(path: Path, curves: dict[str, Path], rows: dict[str, Row]) -> None:
    """Held-out loss against tokens and accuracy of each model, as a PNG.

    Args:
        path: file to write.
        curves: name and metrics.csv of each training run to draw.
        rows: the models of the table, by name.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    reference = rows["reference"].val_loss[0]
    left.axhline(reference, color="gray", linestyle="--", label=f"reference, after its training ({reference:.2f})")
    for name, metrics in curves.items():
        tokens, losses, stderrs = zip(*read_validations(metrics), strict=True)
        left.errorbar(tokens, losses, yerr=stderrs, marker="o", markersize=3, capsize=2, label=name)
    left.set(xlabel="tokens trained", ylabel="held-out loss (nats a token)", title="Held-out loss")
    left.legend()
    names = list(rows)
    scores = [100 * rows[name].accuracy[0] for name in names]
    right.bar(names, scores, yerr=[100 * rows[name].accuracy[1] for name in names], capsize=4, color="tab:blue")
    right.axhline(100 * CHANCE, color="gray", linestyle="--", label="chance")
    right.set(ylabel="accuracy (%)", title="Which passage comes next?")
    right.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
