"""``inheritune analyze``: measure what the layers of a model do, and write it down as numbers, a page and figures."""

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from inheritune_lit.analysis import measures
from inheritune_lit.analysis.args import AnalyzeArgs
from inheritune_lit.analysis.page import sentence, write_report
from inheritune_lit.analysis.result import RESULT, Analysis, AnalyzedModel, ByHead, ByLayer, MeanLoss, load_analysis
from inheritune_lit.analysis.sequences import check_context, draw_sequences
from inheritune_lit.checkpoint.tensors import count_parameters
from inheritune_lit.inherit.reference import ReferenceModel, ResolvedReference, resolve
from inheritune_lit.inherit.stream import Layers, LayerStream, layer_runs, score_subsets
from inheritune_lit.io.folders import check_vacant, explain_full_disk, new_folder, own_folder
from inheritune_lit.io.manifest import OLD_VALUE, check_settings, write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.records import write_record
from inheritune_lit.model.attention import capture_attention

logger = logging.getLogger(__name__)


class AnalysisCost:
    """Computation of an analysis; ``str()`` of it is the plan that is printed."""

    def __init__(self, reference: ReferenceModel, args: AnalyzeArgs) -> None:
        config, depth, dropping = reference.config, reference.config.n_layer, args.dropping
        first = {name: shape for name, shape in reference.shapes.items() if name.startswith("transformer.h.0.")}
        block, head = count_parameters(first), config.padded_vocab_size * config.n_embd
        dropped = all_but_one(depth) if dropping else []
        dropped_runs = layer_runs(dropped)
        self.runs = depth + dropped_runs  # of layers, in the whole model or without others
        of_all, of_dropped = depth * block + (depth + 1) * head, dropped_runs * block + len(dropped) * head
        self.flops = 2 * args.seq_length * (args.num_sequences * of_all + dropping * of_dropped)
        sequences = f"{args.num_sequences} of {args.seq_length} tokens"
        if dropping:
            sequences += f"; loss without each layer on {dropping} of them"
        model = f"{reference.name}: {depth} layers of {config.n_head} heads, width {config.n_embd}"
        cost = f"{self.flops / 1e12:,.3g} TFLOP in {self.runs:,} layer runs"
        self._text = f"model     {model}\nsequences {sequences}\ncost      {cost}"

    def __str__(self) -> str:
        return self._text


@dataclass(frozen=True)
class AnalysisResult:
    """What ``analyze_model`` did; ``str()`` of it is what the command prints."""

    out_dir: Path
    analysis: Analysis | None  # what was measured, now or by an earlier call; None for a dry run
    cost: AnalysisCost | None = None  # of measuring it; None where it was there already
    files: tuple[str, ...] = ()  # page and figures, in ``out_dir``

    def __str__(self) -> str:
        if self.analysis is None:
            return str(self.cost or "")
        return f"{sentence(self.analysis)}\nwrote {self.out_dir}/{', '.join(self.files)}"


def analyze_model(args: AnalyzeArgs) -> AnalysisResult:
    """Measure a model, unless ``out_dir`` holds that analysis, and write its page; bad input is a ``UserError``."""
    other = load_analysis(args.compare) if args.compare is not None else None
    with resolve(args.ref) as resolved:
        analysis, cost = None, None
        if (args.out_dir / RESULT).is_file():
            analysis = load_analysis(args.out_dir)
            found = {"source": analysis.model.source, **analysis.settings}
            wanted = {"source": resolved.source, **args.settings()}
            check_settings(f"{args.out_dir} holds an analysis", found, wanted, OLD_VALUE)
        else:
            analysis, cost = _analyze(resolved, args)
    if analysis is None or args.dry_run:
        return AnalysisResult(args.out_dir, None, cost)
    with explain_full_disk(args.out_dir), own_folder(args.out_dir):
        files = write_report(analysis, args.out_dir, other)
    return AnalysisResult(args.out_dir, analysis, cost, tuple(files))


def _analyze(resolved: ResolvedReference, args: AnalyzeArgs) -> tuple[Analysis | None, AnalysisCost]:
    reference, config = resolved.reference, resolved.reference.config
    check_context(reference, args.seq_length)
    maps, cost = measures.MapCollector(args, config.n_layer, config.n_head), AnalysisCost(reference, args)
    if args.dry_run:
        return None, cost
    check_vacant(args.out_dir)
    sizes = config.padded_vocab_size, args.num_sequences, args.seq_length
    tokens_BT1 = draw_sequences(args.data, reference.folder, *sizes, args.seed)
    resolved = resolved.open()
    logger.info("%s", cost)
    with explain_full_disk(args.out_dir), new_folder(args.out_dir) as staging:
        analysis = _measure(resolved, tokens_BT1, args, maps, cost.runs)
        write_record(staging / RESULT, analysis)
        write_manifest(staging, "analysis", {"model": asdict(analysis.model), "settings": analysis.settings})
    return analysis, cost


@torch.no_grad()
def _measure(
    resolved: ResolvedReference,
    tokens_BT1: Tensor,
    args: AnalyzeArgs,
    maps: measures.MapCollector,
    runs: int,
) -> Analysis:
    reference, config = resolved.reference, resolved.reference.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Progress(f"analyze {reference.name}", runs, "layer run") as progress:
        stream = LayerStream(reference, args.seq_length, device, lambda _: progress.update())
        measured = measure_forward(stream, tokens_BT1, args.tau, maps)
        if args.dropping:
            dropped_DL = losses_without_layers(stream, tokens_BT1[: args.dropping])
            # The increase is over the whole model on the same sequences: these are fewer than all.
            whole_D1 = measured["logit_lens_loss"][: args.dropping, -1:]
            measured |= {"drop_loss": dropped_DL, "drop_increase": dropped_DL - whole_D1}
    protocols = measures.both_protocols(measured["attention_rank"], measured["attention_mass"])
    loss_B = measured["logit_lens_loss"][:, -1]
    stderr = loss_B.std().item() / len(loss_B) ** 0.5 if len(loss_B) > 1 else math.nan
    parameters = count_parameters(reference.shapes)
    return Analysis(
        model=AnalyzedModel(reference.name, resolved.source, config.n_layer, config.n_head, config.n_embd, parameters),
        settings=args.settings(),
        heads={name: ByHead(**measures.mean_and_std(each)) for name, each in measured.items() if each.ndim == 3},
        layers={name: ByLayer(**measures.mean_and_std(each)) for name, each in measured.items() if each.ndim == 2},
        protocols=protocols,
        lazy=measures.lazy_layers(protocols, args.protocol),
        maps=maps.result,
        loss=MeanLoss(loss_B.mean().item(), stderr),
        measures=measures.MEASURES,
    )


def measure_forward(
    stream: LayerStream, tokens_BT1: Tensor, tau: float, maps: measures.MapCollector
) -> dict[str, Tensor]:
    """Runs a model once on sequences with the token that follows each; ``tau`` is the threshold of rank and mass.

    Returns measures by name, fp64: (B, L, H) of heads, (B, L) of layers, logit_lens_loss (B, L + 1).
    """
    targets_BT = tokens_BT1[:, 1:]
    x_BTC = stream.embed(tokens_BT1[:, :-1])
    losses = [stream.losses(x_BTC, targets_BT).cpu()]
    measured: dict[str, list[Tensor]] = {}
    for layer in range(stream.config.n_layer):
        chunks: list[dict[str, Tensor]] = []
        with stream.layer(layer) as (block, run):
            for rows in stream.chunks(len(x_BTC)):
                with capture_attention(block.attn) as calls:
                    y_bTC = run(x_BTC[rows])
                [captured] = calls
                if rows.start == 0:
                    maps.add(layer, captured)
                chunk = measures.measure_heads(layer, block.attn, captured, tau)
                chunk["block_influence"] = measures.block_influence(x_BTC[rows], y_bTC)
                chunk["angular_distance"] = measures.angular_distance(x_BTC[rows], y_bTC)
                chunk["output_variance"] = measures.output_variance(y_bTC)
                chunks.append(chunk)
                x_BTC[rows] = y_bTC
        for name in chunks[0]:
            measured.setdefault(name, []).append(torch.cat([chunk[name].double().cpu() for chunk in chunks]))
        losses.append(stream.losses(x_BTC, targets_BT).cpu())
        stream.report(len(x_BTC))
    measured["logit_lens_loss"] = losses
    return {name: torch.stack(values, dim=1) for name, values in measured.items()}


def all_but_one(layers: int) -> list[Layers]:
    """Returns the layers that stay where one is left out, by that one."""
    return [(*range(layer), *range(layer + 1, layers)) for layer in range(layers)]


def losses_without_layers(stream: LayerStream, tokens_BT1: Tensor) -> Tensor:
    """Returns each sequence's loss where the residual stream bypasses a layer, (B, L), fp64, on the CPU.

    Sequences have the token that follows each.
    """
    x_BTC, subsets = stream.embed(tokens_BT1[:, :-1]), all_but_one(stream.config.n_layer)
    return score_subsets(stream, x_BTC, tokens_BT1[:, 1:], subsets).T
