"""Attention rank of the reference and of the small model that began with its layers (the paper's Figure 9)."""

from pathlib import Path

from inheritune_lit.analysis.layer_table import sentence
from inheritune_lit.analysis.options import AnalyzeOptions
from inheritune_lit.analysis.result import load_analysis
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.replication.grid import Scale, folder_of
from inheritune_lit.study import study
from inheritune_lit.train.run_folder import FINAL

_SEQUENCES, _TOKENS = 100, 100  # the paper's, Section 2


def rank_section(out_dir: Path, scale: Scale) -> list[str]:
    """Analyse both models of the first seed on held-out text; paragraphs for the page, none while they are not there.

    Args:
        out_dir: of the replication; analyses that are there are kept.
        scale: sizes.
    """
    models = {name: folder_of(out_dir, name, seed=1) / FINAL for name in ("inheritune", "reference")}
    if not all(path.is_dir() for path in models.values()):
        return []
    tokens = min(_TOKENS, scale.block_size)
    held_out = PackedDataset(out_dir / "data", "val", tokens)
    whole = int((held_out.targets(range(len(held_out))) == tokens).sum())
    options = AnalyzeOptions(
        num_sequences=min(_SEQUENCES, whole), seq_length=tokens, maps="none", gradients=False, drop_length=0
    )
    folders = {name: out_dir / "analysis" / name for name in models}
    (out_dir / "analysis").mkdir(exist_ok=True)
    study(str(models["inheritune"]), out_dir / "data", folders["inheritune"], options)
    other = folders["inheritune"]
    study(str(models["reference"]), out_dir / "data", folders["reference"], options, compare=other)
    told = [f"- {name}: {sentence(load_analysis(folder))}" for name, folder in folders.items()]
    return [
        "## Figure 9: attention rank by layer",
        "\n".join(told),
        "![attention rank and mass by layer](analysis/reference/rank_and_mass.png)",
    ]
