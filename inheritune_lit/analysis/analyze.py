"""``inheritune analyze``: measure what the layers of a model do, and write it down as numbers, a page and figures."""

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from inheritune_lit.analysis.args import AnalyzeArgs
from inheritune_lit.analysis.attention_stats import MEASURES, MapCollector, angular_distances
from inheritune_lit.analysis.page import sentence, write_report
from inheritune_lit.analysis.passes import (
    ForwardMeasures,
    gradient_norms,
    layer_runs,
    losses_without_layers,
    measure_forward,
    spans,
)
from inheritune_lit.analysis.rank import both_protocols, lazy_layers, mean_and_std
from inheritune_lit.analysis.result import (
    RESULT,
    Analysis,
    AnalyzedModel,
    ByHead,
    ByLayer,
    MeanLoss,
    load_analysis,
)
from inheritune_lit.analysis.sequences import draw_sequences
from inheritune_lit.analysis.stream import ActivationStore, LayerStream, check_capturable
from inheritune_lit.checkpoint.tensors import count_parameters
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.inherit.resolve import ResolvedReference, resolve
from inheritune_lit.io.folders import check_vacant, explain_full_disk, new_folder
from inheritune_lit.io.manifest import write_manifest
from inheritune_lit.io.progress import Progress

logger = logging.getLogger(__name__)


class AnalysisCost:
    """Computation and disk space of an analysis; ``str()`` of it is the plan that is printed.

    Attributes:
        forward, backward, dropped: GFLOP of matrix products with weights per layer run, with a share of the heads'
            (at least 1: they count progress).
        runs: how many layers are run in each of these ways.
        disk_bytes: activations that are kept on the disk meanwhile.
    """

    def __init__(self, reference: ReferenceModel, args: AnalyzeArgs) -> None:
        self._reference, self._args = reference, args
        config, depth, dropping = reference.config, reference.config.n_layer, args.dropping
        block = sum(
            torch.Size(shape).numel() for name, shape in reference.shapes.items() if name.startswith("transformer.h.0.")
        )
        head = config.padded_vocab_size * config.n_embd
        every = spans(depth, args.drop_length) if dropping else []
        dropped_runs = layer_runs(depth, args.drop_length) if dropping else 0
        self.runs = (depth, depth if args.gradients else 0, dropped_runs)
        tokens = args.num_sequences * args.seq_length
        self.forward = _gflop(tokens, block + head * (depth + 1) / depth)
        # A second forward pass and the gradient of its input; gradients of the weights are never formed.
        self.backward = _gflop(tokens, 2 * (block + head / depth))
        self.dropped = _gflop(dropping * args.seq_length, block + head * len(every) / max(1, dropped_runs))
        kept = depth * args.num_sequences if args.gradients or dropping else 0
        kept += dropping * sum(start + length < depth for start, length in every)
        self.disk_bytes = kept * args.seq_length * config.n_embd * 4

    @property
    def gflop(self) -> int:
        """Computation of the whole analysis."""
        each = self.forward, self.backward, self.dropped
        return sum(count * gflop for count, gflop in zip(self.runs, each, strict=True))

    def __str__(self) -> str:
        config, args, name = self._reference.config, self._args, self._reference.name
        extra = "; gradients" if args.gradients else ""
        if args.dropping:
            extra += f"; loss without spans of up to {args.drop_length} layers on {args.dropping} of them"
        return (
            f"model     {name}: {config.n_layer} layers of {config.n_head} heads, width {config.n_embd}\n"
            f"sequences {args.num_sequences} of {args.seq_length} tokens{extra}\n"
            f"cost      {self.gflop / 1e3:,.3g} TFLOP in {sum(self.runs):,} layer runs, "
            f"{self.disk_bytes / 1e9:,.3g} GB on the disk meanwhile"
        )


def _gflop(tokens: int, parameters: float) -> int:
    return max(1, round(2 * tokens * parameters / 1e9))


@dataclass(frozen=True)
class AnalysisResult:
    """What ``analyze_model`` did; ``str()`` of it is what the command prints.

    Attributes:
        out_dir: folder of the result.
        analysis: what was measured, now or by an earlier call; None for a dry run.
        cost: of measuring it; None where it was there already.
        advice: Markdown that was added to the page, None where none was asked for.
        files: page and figures, in ``out_dir``.
    """

    out_dir: Path
    analysis: Analysis | None
    cost: AnalysisCost | None = None
    advice: str | None = None
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.analysis is None:
            return str(self.cost or "")
        advice = f"\n\n{self.advice}\n" if self.advice else ""
        return f"{sentence(self.analysis)}{advice}\nwrote {self.out_dir}/{', '.join(self.files)}"


def analyze_model(args: AnalyzeArgs, advise: Callable[[Analysis], str] | None = None) -> AnalysisResult:
    """Measure a model's layers and heads, unless ``out_dir`` holds the same analysis, and write page and figures.

    Args:
        args: model, data, what to measure.
        advise: returns Markdown about an analysis, which is added to its page.

    Raises:
        UserError: bad input; nothing is left behind.
    """
    other = load_analysis(args.compare) if args.compare is not None else None
    with resolve(args.ref) as resolved:
        analysis, cost = _load_same(resolved.source, args), None
        if analysis is None:
            analysis, cost = _analyze(resolved, args)
    if analysis is None or args.dry_run:
        return AnalysisResult(args.out_dir, None, cost)
    advice = advise(analysis) if advise is not None else None
    with tempfile.TemporaryDirectory(prefix=".report-", dir=args.out_dir) as staging:
        files = write_report(analysis, Path(staging), other, advice)
        for name in files:
            os.replace(Path(staging) / name, args.out_dir / name)
    return AnalysisResult(args.out_dir, analysis, cost, advice, tuple(files))


def _load_same(source: str, args: AnalyzeArgs) -> Analysis | None:
    """The analysis that ``out_dir`` holds, None where it holds none.

    Raises:
        UserError: it is of another model or has other settings.
    """
    if not (args.out_dir / RESULT).is_file():
        return None
    analysis = load_analysis(args.out_dir)
    found = {"source": analysis.model.source, **analysis.settings}
    for name, value in {"source": source, **args.settings()}.items():
        if found.get(name) != value:
            raise UserError(
                f"{args.out_dir} holds an analysis with {name} {found.get(name)}, not {value}; "
                "use the old value or give another --out_dir"
            )
    return analysis


def _analyze(resolved: ResolvedReference, args: AnalyzeArgs) -> tuple[Analysis | None, AnalysisCost]:
    reference = resolved.reference
    config = reference.config
    check_capturable(config)
    if args.seq_length > config.block_size:
        raise UserError(
            f"--seq_length {args.seq_length} is more than the context of {reference.name}, "
            f"{config.block_size} tokens; give less"
        )
    maps = MapCollector(args, config.n_layer, config.n_head)
    cost = AnalysisCost(reference, args)
    if args.dry_run:
        return None, cost
    check_vacant(args.out_dir)
    tokens_BT1 = draw_sequences(
        args.data, reference.folder, config.padded_vocab_size, args.num_sequences, args.seq_length, args.seed
    )
    resolved = resolved.open()
    logger.info("%s", cost)
    with explain_full_disk(args.out_dir), new_folder(args.out_dir) as staging:
        analysis = _measure(resolved, tokens_BT1, args, maps, cost, staging)
        analysis.save(staging / RESULT)
        write_manifest(staging, "analysis", {"model": asdict(analysis.model), "settings": analysis.settings})
    return analysis, cost


@torch.no_grad()
def _measure(
    resolved: ResolvedReference,
    tokens_BT1: torch.Tensor,
    args: AnalyzeArgs,
    maps: MapCollector,
    cost: AnalysisCost,
    staging: Path,
) -> Analysis:
    reference = resolved.reference
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stream = LayerStream(reference, args.seq_length, device)
    activations = staging / "activations"
    (activations / "inputs").mkdir(parents=True)
    (activations / "dropped").mkdir()
    inputs = ActivationStore(activations / "inputs")
    targets_BT = tokens_BT1[:, 1:]
    gradients: dict[str, torch.Tensor] = {}
    dropped: dict[int, torch.Tensor] = {}
    with Progress(f"analyze {reference.name}", cost.gflop, "GFLOP") as progress:
        kept = inputs if args.gradients or args.dropping else None
        forward = measure_forward(stream, tokens_BT1, args.tau, maps, kept, partial(progress.update, cost.forward))
        if args.gradients:
            report = partial(progress.update, cost.backward)
            gradients = gradient_norms(stream, inputs, forward.output_BTC, targets_BT, report)
        if args.dropping:
            scratch, some_BT = ActivationStore(activations / "dropped"), targets_BT[: args.dropping]
            report = partial(progress.update, cost.dropped)
            dropped = losses_without_layers(stream, inputs, scratch, some_BT, args.drop_length, report)
    shutil.rmtree(activations)
    return _assemble(resolved, args, forward, gradients, dropped, maps)


def _assemble(
    resolved: ResolvedReference,
    args: AnalyzeArgs,
    forward: ForwardMeasures,
    gradients: dict[str, torch.Tensor],
    dropped: dict[int, torch.Tensor],
    maps: MapCollector,
) -> Analysis:
    reference = resolved.reference
    protocols = both_protocols(forward.heads["attention_rank"], forward.heads["attention_mass"])
    loss_B = forward.layers["logit_lens_loss"][:, -1]
    layers = forward.layers | gradients
    distances = angular_distances(forward.last_LBC)
    by_span = {"angular_distance": {str(length): values for length, values in distances.items()}}
    if dropped:
        # The increase is over the whole model on the same sequences: these are fewer than all.
        whole_D1 = loss_B[: len(dropped[1]), None]
        layers |= {"drop_loss": dropped[1], "drop_increase": dropped[1] - whole_D1}
        by_span["drop_loss"] = {str(length): losses_BS.mean(dim=0).tolist() for length, losses_BS in dropped.items()}
    return Analysis(
        model=AnalyzedModel(
            name=reference.name,
            source=resolved.source,
            n_layer=reference.config.n_layer,
            n_head=reference.config.n_head,
            n_embd=reference.config.n_embd,
            parameters=count_parameters(reference.shapes),
        ),
        settings=args.settings(),
        heads={name: ByHead(**mean_and_std(values_BLH)) for name, values_BLH in forward.heads.items()},
        layers={name: ByLayer(**mean_and_std(values_BL)) for name, values_BL in layers.items()},
        spans=by_span,
        protocols=protocols,
        lazy=lazy_layers(protocols, args.protocol),
        maps=maps.result(),
        loss=MeanLoss(loss_B.mean().item(), loss_B.std().item() / len(loss_B) ** 0.5 if len(loss_B) > 1 else math.nan),
        measures=MEASURES,
    )
