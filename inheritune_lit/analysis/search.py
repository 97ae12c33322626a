"""``inheritune search``: which layers of a model to keep, found by removing one after the other."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from inheritune_lit.analysis.args import SearchArgs
from inheritune_lit.analysis.measures import block_influence
from inheritune_lit.analysis.search_page import table, write_page
from inheritune_lit.analysis.sequences import check_context, draw_sequences
from inheritune_lit.checkpoint.tensors import count_parameters
from inheritune_lit.data.manifest import content_sha256
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import spread_layers
from inheritune_lit.inherit.reference import ReferenceModel, resolve
from inheritune_lit.inherit.repair import check_repairable, is_repairable, repair_states
from inheritune_lit.inherit.searched import SEARCH, ScoredLayers, Search, SearchedModel, load_search
from inheritune_lit.inherit.stream import LOGITS, STREAM_BYTES, Layers, LayerStream, layer_runs, score_subsets
from inheritune_lit.io.folders import explain_full_disk, own_folder
from inheritune_lit.io.manifest import check_folder, check_settings, read_manifest, write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.records import write_record
from inheritune_lit.model.devices import has_native_bf16

logger = logging.getLogger(__name__)
_RECORDED = "score repair beam num_sequences seq_length seed precision"


def without_one(subsets: Sequence[Layers]) -> list[Layers]:
    """Returns every subset that is one of these without one layer, each once, in order."""
    return sorted({layers[:place] + layers[place + 1 :] for layers in subsets for place in range(len(layers))})


def unsearched(depth: int, n: int, influence: Sequence[float]) -> dict[str, Layers]:
    """Returns n layers chosen in other ways: the first, the ends, at equal distances, by block influence."""
    last = max(1, n // 5)
    by_influence = sorted(range(depth), key=lambda layer: -influence[layer])
    return {
        "first": tuple(range(n)),
        "ends": (*range(n - last), *range(depth - last, depth)),
        "alternate": tuple(spread_layers(depth, n)),
        "influence": tuple(sorted(by_influence[:n])),
    }


class SearchCost:
    """Computation and memory of the rounds that are left; ``str()`` of it is the plan that is printed."""

    def __init__(self, reference: ReferenceModel, args: SearchArgs, rounds: Sequence[int]) -> None:
        config, depth = reference.config, reference.config.n_layer
        first = {name: shape for name, shape in reference.shapes.items() if name.startswith("transformer.h.0.")}
        block, head = count_parameters(first), config.padded_vocab_size * config.n_embd
        C, fitted = config.n_embd, args.fitted_sequences * args.seq_length
        self.runs, heads, widest = {depth: depth}, 1, 0  # runs of a layer on all sequences, by n
        for n in rounds:  # at most: subsets that come from several begin alike, and may be the same
            parents, others = min(args.beam, math.comb(depth, n + 1)), unsearched(depth, n, range(depth))
            self.runs[n] = parents * layer_runs(without_one([tuple(range(n + 1))])) + layer_runs([*others.values()])
            self.runs[n] += depth if fitted else 0
            subsets = min(parents * (n + 1), math.comb(depth, n)) + len(others)
            heads, widest = heads + subsets + (args.score == "kl"), max(widest, subsets)
        runs, tokens = sum(self.runs.values()), args.num_sequences * args.seq_length
        flops = 2 * (runs * tokens * block + heads * (tokens - fitted) * head)
        states = min(STREAM_BYTES, (widest * (2 if fitted else 1) + 3) * tokens * C * 4)
        if fitted:  # at most a map before each run, in fp64: three products and a solution
            flops += 2 * runs * ((2 * fitted + tokens) * C**2 + 2 * C**3)
            states += 8 * C * (3 * fitted + 5 * C)
        memory = states + (block + head) * (2 if args.precision == "bf16-mixed" else 4) + 4 * LOGITS * 4
        beam = f", of {args.beam} sets each" if args.beam > 1 else ""
        repair = " after repair" if fitted else ""
        self._text = (
            f"model     {reference.name}: {depth} layers, width {config.n_embd}\n"
            f"search    {len(rounds)} rounds{beam}, by {args.score}{repair} in {args.precision} on "
            f"{args.num_sequences} sequences of {args.seq_length} tokens\n"
            f"cost      {flops / 1e12:,.3g} TFLOP in {runs:,} layer runs at most, {memory / 1e9:,.2g} GB of memory"
        )

    def __str__(self) -> str:
        return self._text


@dataclass(frozen=True)
class SearchResult:
    """What ``search_layers`` found; ``str()`` of it is what the command prints."""

    out_dir: Path
    search: Search | None  # None for a dry run
    cost: SearchCost
    files: tuple[str, ...] = ()  # in ``out_dir``

    def __str__(self) -> str:
        if self.search is None:
            return str(self.cost)
        return f"{table(self.search)}\n\nwrote {self.out_dir}/{', '.join(self.files)}"


def search_layers(args: SearchArgs) -> SearchResult:
    """Search the layers of a model, or continue what ``out_dir`` holds of it; bad input is a ``UserError``."""
    with resolve(args.ref) as resolved:
        reference, depth = resolved.reference, resolved.reference.config.n_layer
        check_context(reference, args.seq_length)
        n_min = max(1, depth // 3) if args.n_min is None else args.n_min
        if n_min >= depth:
            raise UserError(f"--n_min {n_min} leaves nothing to remove of {depth} layers; give 1 to {depth - 1}")
        args = _settled(args, reference)
        state = load_search(args.out_dir) if (args.out_dir / SEARCH).is_file() else None
        cost = SearchCost(reference, args, range((state.lowest if state else depth) - 1, n_min - 1, -1))
        if args.dry_run:
            return SearchResult(args.out_dir, None, cost)
        sizes = reference.config.padded_vocab_size, args.num_sequences, args.seq_length
        tokens_BT1 = draw_sequences(args.data, reference.folder, *sizes, args.seed, "train")
        settings = {name: getattr(args, name) for name in _RECORDED.split()}
        settings["data_sha256"] = _data_sha256(args.data, tokens_BT1)
        check_folder(args.out_dir, "search", settings)
        resolved = resolved.open()
        model = SearchedModel.of(resolved)
        with explain_full_disk(args.out_dir), own_folder(args.out_dir):
            if state is None:
                write_manifest(args.out_dir, "search", {"reference": asdict(model), "settings": settings})
                given = model, settings, str(args.data), tokens_BT1.tolist(), n_min
                whole = ScoredLayers(list(range(depth)), math.nan, math.nan)
                state = Search(*given, whole, [], {}, [whole.layers], {})
            found, wanted = {"files": state.model.files}, {"files": model.files}
            check_settings(f"{args.out_dir} is a search of a reference", found, wanted)
            state = replace(state, n_min=min(n_min, state.lowest), settings=settings)
            if not state.finished:
                logger.info("%s", cost)
                state = _search(resolved.reference, args, state, tokens_BT1, cost)
            files = write_page(state, args.out_dir, args.fitted_sequences)
    return SearchResult(args.out_dir, state, cost, (SEARCH, *files))


def _settled(args: SearchArgs, reference: ReferenceModel) -> SearchArgs:
    """Returns the arguments with what is to be found out where it is not given."""
    if args.repair == "linear":
        check_repairable(reference)
    repair = args.repair or ("linear" if is_repairable(reference) and args.num_sequences > 1 else "none")
    precision = args.precision or ("bf16-mixed" if has_native_bf16() else "32-true")
    return replace(args, repair=repair, precision=precision)


def _data_sha256(data: Path, tokens_BT1: Tensor) -> str:
    if read_manifest(data, "packed_data"):
        return content_sha256(data)
    return hashlib.sha256(tokens_BT1.numpy().tobytes()).hexdigest()


@torch.no_grad()
def _search(reference: ReferenceModel, args: SearchArgs, state: Search, tokens_BT1: Tensor, cost: SearchCost) -> Search:
    """Returns the finished search, continued from a state; that after each round is written."""
    depth, B, fitted = reference.config.n_layer, len(tokens_BT1), args.fitted_sequences
    repair = repair_states if fitted else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if state.settings["precision"] == "bf16-mixed" else torch.float32
    with (
        Progress(f"search {reference.name}", sum(cost.runs.values()) * B, "run of a layer on a sequence") as progress,
        torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        stream = LayerStream(reference, args.seq_length, device, progress.update, dtype)
        x_BTC, targets_BT = stream.embed(tokens_BT1[:, :-1]), tokens_BT1[:, 1:]
        output_BTC, influence = x_BTC, []
        for layer in range(depth):
            with stream.layer(layer) as (_, run):
                before_BTC, output_BTC = output_BTC, run(output_BTC)
            influence.append(block_influence(before_BTC, output_BTC).mean().item())
            stream.report(B)
        whole_BTC = output_BTC[fitted:] if args.score == "kl" else None
        whole = _scored(state.whole.layers, stream.scores([output_BTC[fitted:]], targets_BT[fitted:], whole_BTC)[0])
        if not math.isfinite(whole.score):
            problem = f"the {args.score} of {reference.name} is {whole.score}: it is damaged, or it overflows"
            raise UserError(f"{problem}; get it again, or give --precision 32-true")
        state = replace(state, whole=whole, block_influence=influence)
        while not state.finished:
            n, done = state.lowest - 1, progress.done
            subsets, others = without_one([tuple(layers) for layers in state.beam]), unsearched(depth, n, influence)
            every = [*subsets, *others.values()]
            scores_SB = score_subsets(stream, x_BTC, targets_BT, every, whole_BTC, repair=repair, fitted=fitted)
            scored = [_scored(*each) for each in zip(every, scores_SB, strict=True)]
            compared = dict(zip(others, scored[len(subsets) :], strict=True))
            # What overflowed is worst; of equal ones the first.
            best = sorted(scored[: len(subsets)], key=lambda each: math.inf if math.isnan(each.score) else each.score)
            state = replace(
                state,
                found=state.found | {str(n): best[0]},
                beam=[each.layers for each in best[: args.beam]],
                compared={way: state.compared.get(way, {}) | {str(n): each} for way, each in compared.items()},
            )
            write_record(args.out_dir / SEARCH, state)
            progress.update(cost.runs[n] * B - (progress.done - done), f"{n} layers: {best[0].score:.4f}")
    return state


def _scored(layers: Sequence[int], scores_B: Tensor) -> ScoredLayers:
    stderr = scores_B.std().item() / len(scores_B) ** 0.5 if len(scores_B) > 1 else math.nan
    return ScoredLayers(list(layers), scores_B.mean().item(), stderr)
