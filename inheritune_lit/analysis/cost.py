"""What an analysis takes, before it is made."""

import torch

from inheritune_lit.analysis.drops import layer_runs, spans
from inheritune_lit.analysis.options import AnalyzeOptions
from inheritune_lit.inherit.reference import ReferenceModel


class Cost:
    """Work and room of an analysis.

    Attributes:
        layer_runs: layers run, forwards and backwards, whatever the number of sequences.
        flops: of matrix products with weights.
        disk_bytes: hidden states kept on the disk meanwhile.
    """

    def __init__(self, reference: ReferenceModel, options: AnalyzeOptions) -> None:
        self._reference, self._options = reference, options
        config, depth, dropping = reference.config, reference.config.n_layer, options.dropping
        block = sum(
            torch.Size(shape).numel() for name, shape in reference.shapes.items() if name.startswith("transformer.h.0.")
        )
        head = config.padded_vocab_size * config.n_embd
        T, B = options.seq_length, options.num_sequences
        self.layer_runs = depth * (2 if options.gradients else 1)
        # Forward and logit lens; backward is a second forward and the gradient of what goes in.
        flops = 2 * T * B * (depth * block + (depth + 1) * head)
        states = 0
        if options.gradients:
            flops += 2 * T * B * (2 * depth * block + 2 * head)
        if options.gradients or dropping:
            states = depth * B
        if dropping:
            runs, every = layer_runs(depth, options.drop_length), spans(depth, options.drop_length)
            self.layer_runs += runs
            flops += 2 * T * dropping * (runs * block + len(every) * head)
            states += dropping * sum(start + length < depth for start, length in every)
        self.flops, self.disk_bytes = flops, states * T * config.n_embd * 4

    def describe(self) -> str:
        """For people, before it starts."""
        reference, options = self._reference, self._options
        config = reference.config
        extra = "; gradients" if options.gradients else ""
        if options.dropping:
            extra += f"; loss without spans of up to {options.drop_length} layers on {options.dropping} of them"
        return (
            f"model     {reference.name}: {config.n_layer} layers of {config.n_head} heads, width {config.n_embd}\n"
            f"sequences {options.num_sequences} of {options.seq_length} tokens{extra}\n"
            f"cost      {self.flops / 1e12:,.3g} TFLOP in {self.layer_runs:,} layer passes, "
            f"{self.disk_bytes / 1e9:,.3g} GB on the disk meanwhile"
        )
