"""What an analysis takes, before it is made."""

import torch

from inheritune_lit.analysis.drops import layer_runs, spans
from inheritune_lit.analysis.options import AnalyzeOptions
from inheritune_lit.inherit.reference import ReferenceModel


class Cost:
    """Work and room of an analysis.

    Attributes:
        forward, backward, dropped: GFLOP of matrix products with weights, a layer run, its share of the heads' included
            (at least 1: they count progress).
        runs: how many layers are run in each of these ways.
        disk_bytes: hidden states kept on the disk meanwhile.
    """

    def __init__(self, reference: ReferenceModel, options: AnalyzeOptions) -> None:
        self._reference, self._options = reference, options
        config, depth, dropping = reference.config, reference.config.n_layer, options.dropping
        block = sum(
            torch.Size(shape).numel() for name, shape in reference.shapes.items() if name.startswith("transformer.h.0.")
        )
        head = config.padded_vocab_size * config.n_embd
        every = spans(depth, options.drop_length) if dropping else []
        dropped_runs = layer_runs(depth, options.drop_length) if dropping else 0
        self.runs = (depth, depth if options.gradients else 0, dropped_runs)
        tokens = options.num_sequences * options.seq_length
        self.forward = _gflop(tokens, block + head * (depth + 1) / depth)
        # A second forward, and the gradient of what goes in; those of the weights are never formed.
        self.backward = _gflop(tokens, 2 * (block + head / depth))
        self.dropped = _gflop(dropping * options.seq_length, block + head * len(every) / max(1, dropped_runs))
        kept = depth * options.num_sequences if options.gradients or dropping else 0
        kept += dropping * sum(start + length < depth for start, length in every)
        self.disk_bytes = kept * options.seq_length * config.n_embd * 4

    @property
    def gflop(self) -> int:
        """Of the whole analysis."""
        each = self.forward, self.backward, self.dropped
        return sum(count * gflop for count, gflop in zip(self.runs, each, strict=True))

    def describe(self) -> str:
        """For people, before it starts."""
        config, options, name = self._reference.config, self._options, self._reference.name
        extra = "; gradients" if options.gradients else ""
        if options.dropping:
            extra += f"; loss without spans of up to {options.drop_length} layers on {options.dropping} of them"
        return (
            f"model     {name}: {config.n_layer} layers of {config.n_head} heads, width {config.n_embd}\n"
            f"sequences {options.num_sequences} of {options.seq_length} tokens{extra}\n"
            f"cost      {self.gflop / 1e3:,.3g} TFLOP in {sum(self.runs):,} layer runs, "
            f"{self.disk_bytes / 1e9:,.3g} GB on the disk meanwhile"
        )


def _gflop(tokens: int, parameters: float) -> int:
    return max(1, round(2 * tokens * parameters / 1e9))
