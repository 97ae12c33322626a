"""``inheritune analyze``: measure what the layers of a model do, and write it down as numbers, a page and figures."""

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from inheritune_lit.analysis.args import AnalyzeArgs
from inheritune_lit.analysis.measures import (
    MEASURES,
    MapCollector,
    angular_distances,
    both_protocols,
    lazy_layers,
    mean_and_std,
)
from inheritune_lit.analysis.page import sentence, write_report
from inheritune_lit.analysis.passes import (
    ActivationStore,
    LayerStream,
    check_capturable,
    gradient_norms,
    losses_without_layers,
    measure_forward,
    spans,
)
from inheritune_lit.analysis.result import RESULT, Analysis, AnalyzedModel, ByHead, ByLayer, MeanLoss, load_analysis
from inheritune_lit.analysis.sequences import draw_sequences
from inheritune_lit.checkpoint.tensors import count_parameters
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import ReferenceModel, ResolvedReference, resolve
from inheritune_lit.io.folders import check_vacant, explain_full_disk, new_folder, own_folder
from inheritune_lit.io.manifest import check_settings, write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.records import write_record

logger = logging.getLogger(__name__)


class AnalysisCost:
    """Computation and disk space of an analysis; ``str()`` of it is the plan that is printed.

    Attributes:
        runs: how many times a layer is run, forward, backward or without others; they count progress.
        flops: of matrix products with weights, those of the head included.
        disk_bytes: activations that are kept on the disk meanwhile.
    """

    def __init__(self, reference: ReferenceModel, args: AnalyzeArgs) -> None:
        config, depth, dropping = reference.config, reference.config.n_layer, args.dropping
        self._model = f"{reference.name}: {depth} layers of {config.n_head} heads, width {config.n_embd}"
        first = {name: shape for name, shape in reference.shapes.items() if name.startswith("transformer.h.0.")}
        block, head = count_parameters(first), config.padded_vocab_size * config.n_embd
        every = spans(depth, args.drop_length) if dropping else []
        dropped_runs = sum(depth - start - length for start, length in every)
        self.runs = depth * (1 + args.gradients) + dropped_runs
        # Backward is a second forward pass and the gradient of its input; gradients of the weights are never formed.
        passes = 1 + 2 * args.gradients
        of_all = depth * passes * block + (depth + passes) * head
        of_dropped = dropped_runs * block + len(every) * head
        self.flops = 2 * args.seq_length * (args.num_sequences * of_all + dropping * of_dropped)
        kept = depth * args.num_sequences if args.gradients or dropping else 0
        kept += dropping * sum(start + length < depth for start, length in every)
        self.disk_bytes = kept * args.seq_length * config.n_embd * 4
        self._sequences = f"{args.num_sequences} of {args.seq_length} tokens" + "; gradients" * args.gradients
        if dropping:
            self._sequences += f"; loss without spans of up to {args.drop_length} layers on {dropping} of them"

    def __str__(self) -> str:
        return (
            f"model     {self._model}\nsequences {self._sequences}\n"
            f"cost      {self.flops / 1e12:,.3g} TFLOP in {self.runs:,} layer runs, "
            f"{self.disk_bytes / 1e9:,.3g} GB on the disk meanwhile"
        )


@dataclass(frozen=True)
class AnalysisResult:
    """What ``analyze_model`` did; ``str()`` of it is what the command prints."""

    out_dir: Path
    analysis: Analysis | None  # what was measured, now or by an earlier call; None for a dry run
    cost: AnalysisCost | None = None  # of measuring it; None where it was there already
    advice: str | None = None  # Markdown that was added to the page
    files: tuple[str, ...] = ()  # page and figures, in ``out_dir``

    def __str__(self) -> str:
        if self.analysis is None:
            return str(self.cost or "")
        advice = f"\n\n{self.advice}\n" if self.advice else ""
        return f"{sentence(self.analysis)}{advice}\nwrote {self.out_dir}/{', '.join(self.files)}"


def analyze_model(args: AnalyzeArgs, advise: Callable[[Analysis], str] | None = None) -> AnalysisResult:
    """Measure a model's layers and heads, unless ``out_dir`` holds the same analysis, and write page and figures.

    ``advise`` returns Markdown about an analysis, which is added to its page.

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
    with explain_full_disk(args.out_dir), own_folder(args.out_dir):
        files = write_report(analysis, args.out_dir, other, advice)
    return AnalysisResult(args.out_dir, analysis, cost, advice, tuple(files))


def _load_same(source: str, args: AnalyzeArgs) -> Analysis | None:
    """The analysis that ``out_dir`` holds, None where it holds none; refused where it is another one."""
    if not (args.out_dir / RESULT).is_file():
        return None
    analysis = load_analysis(args.out_dir)
    found, wanted = {"source": analysis.model.source, **analysis.settings}, {"source": source, **args.settings()}
    check_settings(f"{args.out_dir} holds an analysis", found, wanted, "use the old value or give another --out_dir")
    return analysis


def _analyze(resolved: ResolvedReference, args: AnalyzeArgs) -> tuple[Analysis | None, AnalysisCost]:
    reference, config = resolved.reference, resolved.reference.config
    check_capturable(config)
    if args.seq_length > config.block_size:
        raise UserError(
            f"--seq_length {args.seq_length} is more than the context of {reference.name}, {config.block_size} tokens; "
            "give less"
        )
    maps, cost = MapCollector(args, config.n_layer, config.n_head), AnalysisCost(reference, args)
    if args.dry_run:
        return None, cost
    check_vacant(args.out_dir)
    sizes = config.padded_vocab_size, args.num_sequences, args.seq_length
    tokens_BT1 = draw_sequences(args.data, reference.folder, *sizes, args.seed)
    resolved = resolved.open()
    logger.info("%s", cost)
    with explain_full_disk(args.out_dir), new_folder(args.out_dir) as staging:
        analysis = _measure(resolved, tokens_BT1, args, maps, cost.runs, staging / "activations")
        write_record(staging / RESULT, analysis)
        write_manifest(staging, "analysis", {"model": asdict(analysis.model), "settings": analysis.settings})
    return analysis, cost


@torch.no_grad()
def _measure(
    resolved: ResolvedReference,
    tokens_BT1: torch.Tensor,
    args: AnalyzeArgs,
    maps: MapCollector,
    runs: int,
    scratch: Path,
) -> Analysis:
    reference, config, targets_BT = resolved.reference, resolved.reference.config, tokens_BT1[:, 1:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = ActivationStore(scratch)
    with Progress(f"analyze {reference.name}", runs, "layer run") as progress:
        stream = LayerStream(reference, args.seq_length, device, progress.update)
        kept = store if args.gradients or args.dropping else None
        measures, last_LBC, output_BTC = measure_forward(stream, tokens_BT1, args.tau, maps, kept)
        by_span = {"angular_distance": angular_distances(last_LBC)}
        if args.gradients:
            measures |= gradient_norms(stream, store, output_BTC, targets_BT)
        if args.dropping:
            dropped = losses_without_layers(stream, store, targets_BT[: args.dropping], args.drop_length)
            # The increase is over the whole model on the same sequences: these are fewer than all.
            whole_D1 = measures["logit_lens_loss"][: args.dropping, -1:]
            measures |= {"drop_loss": dropped[1], "drop_increase": dropped[1] - whole_D1}
            by_span["drop_loss"] = {length: losses_BS.mean(dim=0).tolist() for length, losses_BS in dropped.items()}
    shutil.rmtree(scratch)
    protocols = both_protocols(measures["attention_rank"], measures["attention_mass"])
    loss_B = measures["logit_lens_loss"][:, -1]
    stderr = loss_B.std().item() / len(loss_B) ** 0.5 if len(loss_B) > 1 else math.nan
    parameters = count_parameters(reference.shapes)
    return Analysis(
        model=AnalyzedModel(reference.name, resolved.source, config.n_layer, config.n_head, config.n_embd, parameters),
        settings=args.settings(),
        heads={name: ByHead(**mean_and_std(each)) for name, each in measures.items() if each.ndim == 3},
        layers={name: ByLayer(**mean_and_std(each)) for name, each in measures.items() if each.ndim == 2},
        spans={name: {str(length): means for length, means in each.items()} for name, each in by_span.items()},
        protocols=protocols,
        lazy=lazy_layers(protocols, args.protocol),
        maps=maps.result,
        loss=MeanLoss(loss_B.mean().item(), stderr),
        measures=MEASURES,
    )
