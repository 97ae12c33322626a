"""Rank correlation of measures."""

from collections.abc import Callable

import numpy as np
import torch

from inheritune_lit.analysis.stream import LayerStream, StateStore


def spearman(first: list[float], second: list[float]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        first, second: as many values of one as of the other; pairs with a NaN are left out.

    Returns:
        From -1 to 1; NaN where fewer than three pairs are left, or one of the two is constant.
    """
    pairs = np.array([first, second], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3:
        return float("nan")
    ranks = np.stack([_ranks(values) for values in pairs])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    return float(centred[0] @ centred[1] / norms.prod()) if norms.all() else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    return (ends - (sizes - 1) / 2)[group]


def spans(layers: int, longest: int) -> list[tuple[int, int]]:
    """First layer and length of every span up to a length."""
    return [(start, length) for length in range(1, min(longest, layers) + 1) for start in range(layers - length + 1)]


def layer_runs(layers: int, longest: int) -> int:
    """How many times a layer is run for ``drop_losses``."""
    return sum(layers - start - length for start, length in spans(layers, longest))


def drop_losses(
    stream: LayerStream,
    inputs: StateStore,
    scratch: StateStore,
    targets_BT: torch.Tensor,
    longest: int,
    report: Callable[[], None],
) -> dict[int, torch.Tensor]:
    """Loss of each sequence when a span is left out (a residual stream goes on without it), by length, (B, starts).

    Args:
        stream: the model.
        inputs: what goes into layer l, under the name "l".
        scratch: for states on their way.
        targets_BT: the tokens that follow; their number says how many sequences are used.
        longest: length of the longest spans.
        report: called after each run of a layer.
    """
    layers, B = stream.config.n_layer, len(targets_BT)
    every = spans(layers, longest)

    def state(start: int, length: int, layer: int) -> torch.Tensor:
        """What goes into a layer after a span without it."""
        fresh = start + length == layer
        return (inputs.get(str(start), 0, B) if fresh else scratch.get(f"{start}-{length}")).to(stream.device)

    for layer in range(layers):
        with stream.layer(layer) as (_, run):
            for start, length in every:
                if start + length <= layer:
                    scratch.put(f"{start}-{length}", stream.in_chunks(run, state(start, length, layer)))
                    report()
    losses: dict[int, list[torch.Tensor]] = {}
    for start, length in every:
        losses.setdefault(length, []).append(stream.losses(state(start, length, layers), targets_BT).cpu())
    return {length: torch.stack(parts, dim=1) for length, parts in losses.items()}
