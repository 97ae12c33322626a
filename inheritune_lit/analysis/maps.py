"""Attention maps of some heads, as the paper's Figure 2."""

from typing import Any

import torch

from inheritune_lit.analysis.args import AnalyzeOptions
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.layers import parse_layers

TOKENS, STRINGS = 40, 3
_FIGURE_2 = (4 / 24, 7 / 24, 20 / 24, 22 / 24)
"""Where in the depth its layers are."""


class AttentionMaps:
    """Collects maps: attention among the first tokens, averaged over the first sequences.

    Args:
        options: which maps.
        layers, heads: of the model.

    Raises:
        UserError: maps of layers or heads that the model does not have.
    """

    def __init__(self, options: AnalyzeOptions, layers: int, heads: int) -> None:
        self._kind = options.maps
        self._tokens, self._strings = min(TOKENS, options.seq_length), min(STRINGS, options.num_sequences)
        if options.map_layers is not None:
            self._layers = set(parse_layers(options.map_layers, layers))
        else:
            self._layers = {int(place * layers) for place in _FIGURE_2}
        self._heads = list(range(heads)) if options.map_heads is None else options.map_heads
        for head in self._heads:
            if not 0 <= head < heads:
                raise UserError(f"--map_heads names head {head}; the model has heads 0 to {heads - 1}")
        self._maps: list[dict[str, Any]] = []

    def wanted(self, layer: int) -> bool:
        """Whether maps of a layer are wanted."""
        return self._kind != "none" and layer in self._layers

    def add(self, layer: int, logits_BHTT: torch.Tensor, attention_BHTT: torch.Tensor) -> None:
        """Take maps from a layer's matrices of the first sequences.

        Args:
            layer: its number.
            logits_BHTT: without a mask.
            attention_BHTT: as the model computes it.
        """
        first = slice(self._strings), slice(None), slice(self._tokens), slice(self._tokens)
        if self._kind == "full":
            # The model never sees the tokens that come after; the paper's figure does.
            map_HTT = logits_BHTT[first].softmax(dim=-1).mean(dim=0)
        else:
            map_HTT = attention_BHTT[first].mean(dim=0)
        for head in self._heads:
            weights = [[round(weight, 5) for weight in row] for row in map_HTT[head].tolist()]
            self._maps.append({"layer": layer, "head": head, "weights": weights})

    def result(self) -> dict[str, Any]:
        """The maps for ``Analysis.maps``."""
        if self._kind == "none":
            return {}
        return {"kind": self._kind, "tokens": self._tokens, "strings": self._strings, "attention": self._maps}
