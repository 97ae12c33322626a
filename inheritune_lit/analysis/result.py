"""What an analysis takes, before it is made."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.analysis.args import AnalyzeOptions
from inheritune_lit.analysis.layer_dropping import layer_runs, spans
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.io.folders import replace_text


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


RESULT = "analysis.json"


@dataclass(frozen=True)
class Analysis:
    """Measures of a model's layers and heads. L layers and H heads a layer; lists are indexed by them.

    Attributes:
        model: name, source (where it was read), n_layer, n_head, n_embd, parameters.
        settings: tau, num_sequences, seq_length (tokens), seed, data, protocol (that ``lazy`` follows).
        heads: mean and std over sequences, [L][H] each, by measure: attention_rank, attention_mass, entropy,
            entropy_without_sink, sink_mass, head_output_norm.
        layers: mean and std over sequences, [L] each, by measure: block_influence, output_variance, grad_norm_q,
            grad_norm_k, drop_loss, drop_increase (drop_loss less the loss of the whole model on the same
            ``drop_sequences`` sequences, where ``loss`` is of all); logit_lens_loss has L + 1 entries, of the first
            0..L layers. Measures that were not asked for are absent.
        spans: by measure (angular_distance, drop_loss), by length as a string: means over sequences, by first layer.
        protocols: "v2": max_rank and max_mass with mean and std, [L] each; "v4": max_rank, max_mass, avg_rank,
            avg_mass, [L] each.
        lazy: layers, groups ([first, last], both counted), first (None where there is none).
        maps: kind ("causal" or "full"), tokens, strings, and attention: a list of layer, head and weights
            [tokens][tokens]; empty where none were asked for.
        loss: of the whole model on these sequences, nats a token: mean and its standard error (NaN of one sequence).
        measures: formula, source and unit of each measure above, by name.
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    heads: dict[str, dict[str, list[list[float]]]]
    layers: dict[str, dict[str, list[float]]]
    spans: dict[str, dict[str, list[float]]]
    protocols: dict[str, dict[str, Any]]
    lazy: dict[str, Any]
    maps: dict[str, Any]
    loss: dict[str, float]
    measures: dict[str, dict[str, str]]

    def save(self, path: Path) -> None:
        """Write the result whole or not at all. What is not a number is written as null."""
        replace_text(path, json.dumps(without_nan(asdict(self)), indent=1, allow_nan=False) + "\n")


def load_analysis(path: Path) -> Analysis:
    """Read a result that ``Analysis.save`` wrote.

    Args:
        path: the file, or the folder it is in.

    Raises:
        UserError: it isn't there, or isn't one.
    """
    path = path / RESULT if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} can't be read as the result of an analysis ({error}); give the --out_dir of one"
        ) from error
    wanted = {field.name for field in fields(Analysis)}
    if not isinstance(content, dict) or content.keys() != wanted:
        raise UserError(f"{path} isn't the result of an analysis; give what `inheritune analyze` wrote")
    measured = {
        part: _replace(content[part], _is_none, math.nan) for part in ("heads", "layers", "spans", "protocols", "loss")
    }
    return Analysis(**{**content, **measured})


def without_nan(value: Any) -> Any:
    """Lists and dictionaries with None for what is not a finite number, as JSON has it."""
    return _replace(value, _is_nan, None)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_none(value: object) -> bool:
    return value is None


def _replace(value: Any, wanted: Any, new: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace(item, wanted, new) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(item, wanted, new) for item in value]
    return new if wanted(value) else value
