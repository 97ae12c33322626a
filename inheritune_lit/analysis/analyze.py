"""``inheritune analyze``: what the layers of a model do."""

import math
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.analysis.args import AnalyzeOptions
from inheritune_lit.analysis.attention_stats import MEASURES, angular_distances
from inheritune_lit.analysis.forward import ForwardMeasures, measure_forward
from inheritune_lit.analysis.gradients import gradient_norms
from inheritune_lit.analysis.layer_dropping import drop_losses
from inheritune_lit.analysis.maps import AttentionMaps
from inheritune_lit.analysis.rank import lazy_layers, mean_and_std, protocol_v2, protocol_v4
from inheritune_lit.analysis.result import RESULT, Analysis, Cost
from inheritune_lit.analysis.sequences import draw_sequences
from inheritune_lit.analysis.stream import LayerStream, StateStore, check_capturable
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.inherit.resolve import ResolvedReference, resolve
from inheritune_lit.io.folders import check_vacant, explain_full_disk, new_folder
from inheritune_lit.io.manifest import write_manifest
from inheritune_lit.io.progress import Progress

Spans = dict[int, torch.Tensor]


def analyze(ref: str, data: Path, out_dir: Path, options: AnalyzeOptions, dry_run: bool = False) -> Analysis | None:
    """Measure a model's layers and heads, and write ``analysis.json``.

    Args:
        ref: any reference that ``inheritune slice`` reads.
        data: packed data, or a file or folder of text.
        out_dir: the new folder.
        options: what to measure.
        dry_run: print what it costs and stop.

    Returns:
        What was measured; None for a dry run.

    Raises:
        UserError: bad input; nothing is left behind.
    """
    with resolve(ref) as resolved:
        reference = resolved.reference
        check_capturable(reference.config)
        if options.seq_length > reference.config.block_size:
            raise UserError(
                f"--seq_length {options.seq_length} is more than the context of {reference.name}, "
                f"{reference.config.block_size} tokens; give less"
            )
        if not dry_run:
            check_vacant(out_dir)
        maps = AttentionMaps(options, reference.config.n_layer, reference.config.n_head)
        cost = Cost(reference, options)
        print(cost.describe())
        if dry_run:
            return None
        tokens_BT1 = draw_sequences(
            data,
            reference.folder,
            reference.config.padded_vocab_size,
            options.num_sequences,
            options.seq_length,
            options.seed,
        )
        resolved = resolved.open()
        with explain_full_disk(out_dir), new_folder(out_dir) as staging:
            analysis = _measure(resolved, tokens_BT1, data, options, maps, cost, staging)
            analysis.save(staging / RESULT)
            write_manifest(staging, "analysis", {"model": analysis.model, "settings": analysis.settings})
    print(f"wrote {out_dir}", file=sys.stderr)
    return analysis


@torch.no_grad()
def _measure(
    resolved: ResolvedReference,
    tokens_BT1: torch.Tensor,
    data: Path,
    options: AnalyzeOptions,
    maps: AttentionMaps,
    cost: Cost,
    staging: Path,
) -> Analysis:
    reference = resolved.reference
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stream = LayerStream(reference, options.seq_length, device)
    states = staging / "states"
    (states / "inputs").mkdir(parents=True)
    (states / "dropped").mkdir()
    kept = StateStore(states / "inputs")
    targets_BT = tokens_BT1[:, 1:]
    gradients: dict[str, torch.Tensor] = {}
    dropped: Spans = {}
    with Progress(f"analyze {reference.name}", cost.gflop, "GFLOP") as progress:
        wanted = kept if options.gradients or options.dropping else None
        forward = measure_forward(stream, tokens_BT1, options.tau, maps, wanted, partial(progress.update, cost.forward))
        if options.gradients:
            norms = gradient_norms(
                stream, kept, forward.output_BTC, targets_BT, partial(progress.update, cost.backward)
            )
            gradients = dict(zip(("grad_norm_q", "grad_norm_k"), norms, strict=True))
        if options.dropping:
            scratch, some_BT = StateStore(states / "dropped"), targets_BT[: options.dropping]
            dropped = drop_losses(
                stream, kept, scratch, some_BT, options.drop_length, partial(progress.update, cost.dropped)
            )
    shutil.rmtree(states)
    settings = {**asdict(options), "data": str(data)}
    return _assemble(resolved, settings, forward, gradients, dropped, maps)


def _assemble(
    resolved: ResolvedReference,
    settings: dict[str, Any],
    forward: ForwardMeasures,
    gradients: dict[str, torch.Tensor],
    dropped: Spans,
    maps: AttentionMaps,
) -> Analysis:
    rank_BLH, mass_BLH = forward.heads["attention_rank"], forward.heads["attention_mass"]
    protocols: dict[str, dict[str, Any]] = {
        "v2": protocol_v2(rank_BLH, mass_BLH),
        "v4": protocol_v4(rank_BLH, mass_BLH),
    }
    loss_B = forward.layers["logit_lens_loss"][:, -1]
    layers = forward.layers | gradients
    if dropped:
        # Of the same sequences: these are fewer than all.
        whole_D1 = loss_B[: len(dropped[1]), None]
        layers |= {"drop_loss": dropped[1], "drop_increase": dropped[1] - whole_D1}
    distances = angular_distances(forward.last_LBC)
    spans = {"angular_distance": {str(length): values for length, values in distances.items()}}
    if dropped:
        spans["drop_loss"] = {str(length): losses_BS.mean(dim=0).tolist() for length, losses_BS in dropped.items()}
    stderr = loss_B.std().item() / len(loss_B) ** 0.5 if len(loss_B) > 1 else math.nan
    return Analysis(
        model=_model(resolved.reference, resolved.source),
        settings=settings,
        heads={name: mean_and_std(values_BLH) for name, values_BLH in forward.heads.items()},
        layers={name: mean_and_std(values_BL) for name, values_BL in layers.items()},
        spans=spans,
        protocols=protocols,
        lazy=lazy_layers(protocols, settings["protocol"]),
        maps=maps.result(),
        loss={"mean": loss_B.mean().item(), "stderr": stderr},
        measures=MEASURES,
    )


def _model(reference: ReferenceModel, source: str) -> dict[str, Any]:
    return {
        "name": reference.name,
        "source": source,
        "n_layer": reference.config.n_layer,
        "n_head": reference.config.n_head,
        "n_embd": reference.config.n_embd,
        "parameters": sum(torch.Size(shape).numel() for shape in reference.shapes.values()),
    }
