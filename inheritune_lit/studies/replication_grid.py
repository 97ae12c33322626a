"""Which models a replication trains, and which table or figure each belongs to."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError

TABLE_1 = "Table 1: against training from scratch"
TABLE_2 = "Table 2: against other ways to begin"
TABLE_3 = "Table 3: parts of the layers"
FIGURE_1 = "Figures 1c and 1f: which layers to begin with"
FIGURE_3 = "Figure 3: against distillation"


@dataclass(frozen=True)
class Scale:
    """Sizes of a replication.

    Attributes:
        n_layer, n_embd, n_head: of the reference, a GPT-2 as the paper's: no biases, tied head, scaled attention.
        block_size, vocab_size: of all models.
        variant: layers of the small model, two thirds of the reference's as for the paper's GPT-2 medium.
        steps: optimizer steps T of every training, of ``batch`` samples each.
        short: steps of the comparison of layers to begin with, a tenth of T as in the paper.
        lr: highest learning rate.
    """

    n_layer: int
    n_embd: int
    n_head: int
    block_size: int
    vocab_size: int
    variant: int
    steps: int
    short: int
    batch: int
    lr: float


SCALES = {
    "small": Scale(12, 128, 4, 128, 2048, 8, 300, 30, 16, 2e-3),
    "long": Scale(12, 64, 2, 128, 1024, 8, 4000, 400, 16, 2e-3),
    "tiny": Scale(3, 16, 2, 32, 320, 2, 10, 5, 4, 2e-3),
}


@dataclass(frozen=True)
class Start:
    """Where weights come from: arguments of ``slice_model`` on another model of the grid.

    Attributes:
        model: name of the model that is cut, None for the bare shape (then weights are random).
        options: of ``slice_model``.
    """

    model: str | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One model.

    Attributes:
        name: of its folder, without the seed.
        title: as tables name it.
        start: what it begins with.
        steps: how long it is trained.
        groups: tables and figures it is part of.
        distill: arguments of ``DistillArgs`` but the teacher, which is the reference; None for plain training.
    """

    name: str
    title: str
    start: Start
    steps: int
    groups: tuple[str, ...] = ()
    distill: dict[str, Any] | None = None
    main: bool = field(default=False)


def experiments(scale: Scale) -> list[Experiment]:
    """Every model, what others begin with before them, cheap ones and those of the main comparison first."""
    n, T = scale.variant, scale.steps
    half, few = scale.n_layer // 2, max(1, n // 2)
    from_reference = Start("reference", {"n": n})

    def cut(**options: Any) -> Start:
        return replace(from_reference, options=options)

    main = [
        Experiment("reference", "reference", Start(None, {"n": scale.n_layer}), T, (TABLE_1,), main=True),
        Experiment("inheritune", "Inheritune", from_reference, T, (TABLE_1, TABLE_2, TABLE_3, FIGURE_3), main=True),
        Experiment("scratch", "from scratch", Start(None, {"n": n}), T, (TABLE_1, FIGURE_3), main=True),
        Experiment("scratch-2T", "from scratch, twice the steps", Start(None, {"n": n}), 2 * T, (TABLE_1,), main=True),
    ]
    first = [
        Experiment(f"{name}-short", title, start, scale.short, (FIGURE_1,))
        for name, title, start in (
            ("first", f"first {half}", cut(n=half)),
            ("middle", f"middle {half}", cut(layers=f"middle:{half}")),
            ("last", f"last {half}", cut(layers=f"last:{half}")),
            ("random", "random", Start(None, {"n": half})),
        )
    ]
    begun = [
        Experiment("hybrid", "hybrid stacking", cut(n=n, layers=f"first:{few}", init="hybrid-stack"), T, (TABLE_2,)),
        Experiment("half-width", "half width", cut(init="half-width"), T, (TABLE_2,)),
        Experiment("shallow", "the shallow model that is stacked", Start(None, {"n": few}), T),
        Experiment("stacking", "stacking", Start("shallow", {"n": n, "init": "stack"}), T, (TABLE_2,)),
    ]
    parts = [
        Experiment("attn", "attention and norms", cut(n=n, parts=("attn", "norm")), T, (TABLE_3,)),
        Experiment("mlp", "MLP and norms", cut(n=n, parts=("mlp", "norm")), T, (TABLE_3,)),
        Experiment("attn-mlp", "attention and MLP", cut(n=n, parts=("attn", "mlp")), T, (TABLE_3,)),
    ]
    # As the paper's 16 of 24: every other layer, then some of the last ones.
    alternate = list(range(0, scale.n_layer, 2))[:n]
    late = range(scale.n_layer - 2 - (n - len(alternate)), scale.n_layer - 2)
    teacher_layers = ",".join(map(str, [*alternate, *late][:n]))
    logits = {"kind": "logits"}
    distilled = [
        Experiment("kd", "logit distillation", Start(None, {"n": n}), T, (FIGURE_3,), logits),
        Experiment(
            "distilbert", "DistilBERT-style", cut(layers=teacher_layers), T, (FIGURE_3,), {"kind": "distilbert"}
        ),
        Experiment("inheritune-kd", "Inheritune and logit distillation", from_reference, T, (FIGURE_3,), logits),
    ]
    return [*main, *first, *begun, *parts, *distilled]


def find_scale(name: str) -> Scale:
    """A scale by its name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in SCALES:
        raise UserError(f"--scale {name} is not known; give one of {', '.join(SCALES)}")
    return SCALES[name]


def folder_of(out_dir: Path, name: str, seed: int) -> Path:
    """The run folder of a model in the folder of a replication."""
    return out_dir / "runs" / f"{name}-s{seed}"
