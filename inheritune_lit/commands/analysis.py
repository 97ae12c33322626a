"""``inheritune analyze``."""

from pathlib import Path
from typing import Literal

from inheritune_lit.analysis.args import AdviceArgs
from inheritune_lit.errors import UserError
from inheritune_lit.studies.ablate_args import HealingArgs


def analyze_command(
    data: Path,
    out_dir: Path,
    checkpoint_dir: Path | None = None,
    ref: str | None = None,
    num_sequences: int = 100,
    seq_length: int = 100,
    tau: float = 0.9,
    protocol: Literal["v2", "v4"] = "v4",
    maps: Literal["none", "causal", "full"] = "full",
    map_layers: str | None = None,
    map_heads: list[int] | None = None,
    gradients: bool = True,
    drop_length: int = 1,
    drop_sequences: int = 20,
    seed: int = 1337,
    compare: Path | None = None,
    advise: bool = False,
    advice: AdviceArgs = AdviceArgs(),
    criteria: bool = False,
    healing: HealingArgs = HealingArgs(),
    dry_run: bool = False,
) -> None:
    """Measure what a model's layers and heads do: attention rank and mass, sinks, influence, loss without them.

    Args:
        data: packed data from ``inheritune prepare`` (its validation part), or a file or folder of text.
        out_dir: folder of the result: analysis.json, the page analysis.md, and figures. The same analysis that it holds
            already is not measured again, only drawn.
        checkpoint_dir: the model: a litgpt or Hugging Face folder.
        ref: instead, any reference that ``inheritune slice`` reads.
        num_sequences: random sequences.
        seq_length: tokens a sequence.
        tau: share of the squared singular values, or of the columns' squared norms, that rank and mass hold.
        protocol: which version of the paper says what a lazy layer is: "v4" takes the mean over the sequences, then
            the largest head; "v2" the largest head of each sequence, then the mean.
        maps: attention maps of some heads: "full" without a mask as the paper's Figure 2, "causal" as computed.
        map_layers: layers of the maps, such as 4,7,20,22 or first:3; those of Figure 2, scaled, when not given.
        map_heads: heads of the maps; all when not given.
        gradients: measure gradients of queries and keys: one backward pass.
        drop_length: longest span of layers that is left out to see what the loss becomes; 0 for none. The cost grows
            with the number of spans times the number of layers.
        drop_sequences: sequences for that.
        seed: chooses the sequences.
        compare: out_dir of another analysis, to draw the two models side by side.
        advise: tell for each n what is known before training: loss of the untrained slice, lazy layers left,
            parameters, memory, hours.
        advice: the training that --advise tells the cost of.
        criteria: compare ways of choosing layers: train a slice by each, with several seeds. The same command goes on.
        healing: the training of --criteria.
        dry_run: print the cost and stop.
    """
    if (checkpoint_dir is None) == (ref is None):
        given = "neither" if ref is None else "both"
        raise UserError(f"{given} of --checkpoint_dir and --ref given; give one of them: the model to analyse")
    if checkpoint_dir is not None and not checkpoint_dir.is_dir():
        raise UserError(f"no folder at {checkpoint_dir}; give a checkpoint folder, or --ref for other references")
    for switch, on, name, changed in (
        ("--advise", advise, "advice", advice != AdviceArgs()),
        ("--criteria", criteria, "healing", healing != HealingArgs()),
    ):
        if changed and not on:
            raise UserError(f"--{name} settings are given without {switch}, which reads them; add {switch}")
    from inheritune_lit.analysis.args import AnalyzeOptions
    from inheritune_lit.planning.study import study

    options = AnalyzeOptions(
        num_sequences=num_sequences,
        seq_length=seq_length,
        tau=tau,
        protocol=protocol,
        seed=seed,
        maps=maps,
        map_layers=map_layers,
        map_heads=map_heads,
        gradients=gradients,
        drop_length=drop_length,
        drop_sequences=drop_sequences,
    )
    study(
        str(checkpoint_dir or ref),
        data,
        out_dir,
        options,
        compare=compare,
        advice=advice if advise else None,
        healing=healing if criteria else None,
        dry_run=dry_run,
    )
