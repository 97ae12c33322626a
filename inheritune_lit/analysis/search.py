"""``inheritune search``: which layers of a model to keep, found by removing one after the other."""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from inheritune_lit.analysis.args import SearchArgs
from inheritune_lit.analysis.measures import block_influence
from inheritune_lit.analysis.search_page import table, write_page
from inheritune_lit.analysis.sequences import check_context, draw_sequences
from inheritune_lit.analysis.stream import LOGITS, STREAM_BYTES, Layers, LayerStream, layer_runs, score_subsets
from inheritune_lit.checkpoint.tensors import count_parameters
from inheritune_lit.data.manifest import content_sha256
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import ReferenceModel, resolve
from inheritune_lit.inherit.searched import (
    SEARCH,
    ByDepth,
    ScoredLayers,
    Search,
    SearchedModel,
    SearchSettings,
    load_search,
    searched_shape,
)
from inheritune_lit.io.folders import explain_full_disk, own_folder
from inheritune_lit.io.manifest import check_folder, check_settings, read_manifest, write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.records import write_record
from inheritune_lit.model.devices import has_native_bf16

logger = logging.getLogger(__name__)

Score = Callable[[Sequence[Layers]], Tensor]
"""Scores (subsets, B) of subsets of the layers."""


def without_one(subsets: Sequence[Layers]) -> list[Layers]:
    """Returns every subset that is one of these without one layer, each once, in order."""
    return sorted({layers[:place] + layers[place + 1 :] for layers in subsets for place in range(len(layers))})


WAYS = ("first", "ends", "alternate", "influence")


def compared_layers(depth: int, n: int, influence: Sequence[float]) -> dict[str, Layers]:
    """Returns n layers chosen in ways that need no search: the first, the ends, at equal distances, by influence."""
    last = max(1, n // 5)
    by_influence = sorted(range(depth), key=lambda layer: -influence[layer])
    return {
        "first": tuple(range(n)),
        "ends": (*range(n - last), *range(depth - last, depth)),
        "alternate": tuple(place * depth // n for place in range(n)),
        "influence": tuple(sorted(by_influence[:n])),
    }


class SearchCost:
    """Computation and memory of what is left of a search; ``str()`` of it is the plan that is printed."""

    def __init__(
        self,
        reference: ReferenceModel,
        args: SearchArgs,
        itemsize: int,
        searched: Sequence[int],
        compared: Sequence[int],
    ) -> None:
        config, depth, kl = reference.config, reference.config.n_layer, args.score == "kl"
        first = {name: shape for name, shape in reference.shapes.items() if name.startswith("transformer.h.0.")}
        block, head = count_parameters(first), config.padded_vocab_size * config.n_embd
        # Runs of a layer on all sequences, by n: removing one layer costs the same of any set. In a beam of several,
        # sets begin alike, and it is less.
        self.rounds: dict[int, int] = {}
        heads, widest = 1 + kl, 0
        for n in searched:
            sets = min(args.beam, math.comb(depth, n + 1))
            subsets = min(sets * (n + 1), math.comb(depth, n))
            self.rounds[n] = sets * layer_runs(without_one([tuple(range(n + 1))]))
            heads, widest = heads + subsets + kl, max(widest, subsets)
        others = [each for n in compared for each in compared_layers(depth, n, range(depth)).values()]
        heads, widest = heads + len(others) + kl, max(widest, len(others))
        self.runs = depth + sum(self.rounds.values()) + layer_runs(others)
        self.flops = 2 * args.num_sequences * args.seq_length * (self.runs * block + heads * head)
        states = (widest + 1) * args.num_sequences * args.seq_length * config.n_embd * 4
        self.bytes = min(states, STREAM_BYTES) + (block + head) * itemsize + 4 * LOGITS * 4  # logits of two models
        kept = f", the best {args.beam} sets of each number" if args.beam > 1 else ""
        at_most = "at most " if args.beam > 1 else ""
        self._text = (
            f"model     {reference.name}: {depth} layers, width {config.n_embd}\n"
            f"search    {args.num_sequences} sequences of {args.seq_length} tokens, {len(searched)} rounds by "
            f"{args.score}{kept}\n"
            f"cost      {at_most}{self.flops / 1e12:,.3g} TFLOP in {self.runs:,} layer runs, "
            f"{self.bytes / 1e9:,.2g} GB of memory"
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
        precision = args.precision or ("bf16-mixed" if has_native_bf16() else "32-true")
        state = load_search(args.out_dir) if (args.out_dir / SEARCH).is_file() else None
        # What is left to find, and to compare with what was found.
        searched = range((state.lowest if state else depth) - 1, n_min - 1, -1)
        compared = [n for n in range(depth - 1, n_min - 1, -1) if not state or str(n) not in state.compared[WAYS[0]]]
        cost = SearchCost(reference, args, 2 if precision == "bf16-mixed" else 4, searched, compared)
        if args.dry_run:
            return SearchResult(args.out_dir, None, cost)
        sizes = reference.config.padded_vocab_size, args.num_sequences, args.seq_length
        tokens_BT1 = draw_sequences(args.data, reference.folder, *sizes, args.seed, "train")
        data_sha256 = _sha256_of(args.data, tokens_BT1)
        settings = SearchSettings(args.score, args.beam, *sizes[1:], args.seed, precision, data_sha256)
        check_folder(args.out_dir, "search", asdict(settings))
        resolved = resolved.open()
        files, shape = resolved.file_hashes(), searched_shape(reference.config)
        model = SearchedModel(reference.name, resolved.source, resolved.revision, files, shape)
        with explain_full_disk(args.out_dir), own_folder(args.out_dir):
            if state is None:
                write_manifest(args.out_dir, "search", {"reference": asdict(model), "settings": asdict(settings)})
                whole = ScoredLayers(list(range(depth)), math.nan, math.nan)
                ways: dict[str, ByDepth] = {way: {} for way in WAYS}
                state = Search(model, settings, str(args.data), n_min, whole, [], {}, [whole.layers], ways)
            found = {"files": state.model.files}
            check_settings(f"{args.out_dir} is a search of a reference", found, {"files": files})
            state = replace(state, n_min=min(n_min, state.lowest))
            if searched or compared:
                logger.info("%s", cost)
                state = _search(resolved.reference, args, state, tokens_BT1, cost)
            written = write_page(state, args.out_dir)
    return SearchResult(args.out_dir, state, cost, (SEARCH, *written))


def _sha256_of(data: Path, tokens_BT1: Tensor) -> str:
    manifest = read_manifest(data) if data.is_dir() else None
    if manifest is not None and manifest.get("kind") == "packed_data":
        return content_sha256(data)
    return hashlib.sha256(tokens_BT1.numpy().tobytes()).hexdigest()


@torch.no_grad()
def _search(reference: ReferenceModel, args: SearchArgs, state: Search, tokens_BT1: Tensor, cost: SearchCost) -> Search:
    """Returns the finished search, continued from a state; that after each round is written."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if state.settings.precision == "bf16-mixed" else torch.float32
    total, path = cost.runs * args.num_sequences, args.out_dir / SEARCH
    with (
        Progress(f"search {reference.name}", total, "run of a layer on a sequence") as progress,
        torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        stream = LayerStream(reference, args.seq_length, device, progress.update, dtype)
        x_BTC, targets_BT = stream.embed(tokens_BT1[:, :-1]), tokens_BT1[:, 1:]
        output_BTC, influence = _run_whole(stream, x_BTC)
        whole_BTC = output_BTC if args.score == "kl" else None
        whole = _scored(state.whole.layers, stream.scores([output_BTC], targets_BT, whole_BTC)[0])
        if not math.isfinite(whole.score):
            problem = f"the {args.score} of {reference.name} is {whole.score}: it is damaged, or it overflows"
            raise UserError(f"{problem}; get it again, or give --precision 32-true")
        state = replace(state, whole=whole, block_influence=influence)
        score = partial(score_subsets, stream, x_BTC, targets_BT, whole_BTC=whole_BTC)
        while (n := state.lowest - 1) >= state.n_min:
            done = progress.done
            state = _remove_one(state, args.beam, score)
            write_record(path, state)
            planned = cost.rounds[n] * args.num_sequences  # of a beam, whose sets begin alike, it was less
            progress.update(planned - (progress.done - done), f"{n} layers: {state.found[str(n)].score:.4f}")
        state = _compare(state, score)
        write_record(path, state)
    return state


def _run_whole(stream: LayerStream, x_BTC: Tensor) -> tuple[Tensor, list[float]]:
    """Returns the output of the last layer, (B, T, C), and the block influence of each layer."""
    influence = []
    for layer in range(stream.config.n_layer):
        with stream.layer(layer) as (_, run):
            y_BTC = torch.empty_like(x_BTC)
            for rows in stream.chunks(len(x_BTC)):
                y_BTC[rows] = run(x_BTC[rows])
        influence.append(block_influence(x_BTC, y_BTC).mean().item())
        x_BTC = y_BTC
        stream.report(len(x_BTC))
    return x_BTC, influence


def _remove_one(state: Search, beam: int, score: Score) -> Search:
    """Returns the state after one more round."""
    subsets = without_one([tuple(layers) for layers in state.beam])
    scored = [_scored(layers, scores_B) for layers, scores_B in zip(subsets, score(subsets), strict=True)]
    # What overflowed is worst; of equal ones the first.
    scored.sort(key=lambda each: math.inf if math.isnan(each.score) else each.score)
    found = state.found | {str(len(subsets[0])): scored[0]}
    return replace(state, found=found, beam=[each.layers for each in scored[:beam]])


def _compare(state: Search, score: Score) -> Search:
    """Returns the state with every n of every way scored that is chosen without search."""
    missing = [n for n in state.found if any(n not in by_depth for by_depth in state.compared.values())]
    depth = len(state.whole.layers)
    wanted = {
        (way, n): layers
        for n in missing
        for way, layers in compared_layers(depth, int(n), state.block_influence).items()
    }
    compared: dict[str, ByDepth] = {way: dict(by_depth) for way, by_depth in state.compared.items()}
    for ((way, n), layers), scores_B in zip(wanted.items(), score(list(wanted.values())), strict=True):
        compared[way][n] = _scored(layers, scores_B)
    return replace(state, compared=compared)


def _scored(layers: Sequence[int], scores_B: Tensor) -> ScoredLayers:
    stderr = scores_B.std().item() / len(scores_B) ** 0.5 if len(scores_B) > 1 else math.nan
    return ScoredLayers(list(layers), scores_B.mean().item(), stderr)
