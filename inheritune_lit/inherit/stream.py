"""A model of which one layer at a time is in memory, and the scores of many subsets of its layers at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from litgpt.model import Block
from torch import Tensor
from torch.nn import functional as F

from inheritune_lit.checkpoint.tensors import EMBEDDING
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.model.gpt import build_model, embed, head_logits, rope_of_layer

RunBlock = Callable[[Tensor], Tensor]
Repair = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""How many sequences, the first, to fit on, states (B, T, C) before a cut, the last MLP's outputs in them, and what the
whole model gives the next layer -> states that are given to it instead."""
Layers = tuple[int, ...]  # numbers of a model's layers, rising
LOGITS = 1 << 23  # most logits of a model that are in memory at a time: with more, a CPU's cache is of less use
_TOKENS = {"cpu": 1 << 10, "cuda": 1 << 14}  # per call of a layer
STREAM_BYTES = 2 << 30  # of the hidden states that are in memory at a time


class LayerStream:
    """A reference's model in fp32, one part in memory at a time.

    ``report`` is called with the number of sequences after each run of a layer on them. Linear layers
    have ``linear_dtype``: with bf16, autocast computes as in bf16-mixed and has nothing to cast.
    """

    def __init__(
        self,
        reference: ReferenceModel,
        seq_length: int,
        device: torch.device,
        report: Callable[[int], Any] = lambda sequences: None,
        linear_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.device, self.report, self._reference = reference.config, device, report, reference
        self._linear_dtype = linear_dtype
        with torch.device("meta"):
            self._model = build_model(self.config).requires_grad_(False)
        self._model.max_seq_length = seq_length
        cos, sin = self._model.rope_cache(device=device)
        self._rope = cos[:seq_length].unsqueeze(0), sin[:seq_length].unsqueeze(0)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Returns the input of the first layer, (B, T, C)."""
        if "wpe" in self._model.transformer:
            self._load(self._model.transformer.wpe, "transformer.wpe.")
        rows_BTC = self._reference.tensor(EMBEDDING)[tokens_BT].to(self.device, torch.float32)
        return embed(self._model, tokens_BT, rows_BTC=rows_BTC)

    @contextmanager
    def layer(self, number: int) -> Iterator[tuple[Block, RunBlock]]:
        """Yields a layer with its weights in memory, and the function (B, T, C) -> (B, T, C) that it computes."""
        # Otherwise the pages of the layers before would count as this process's memory.
        self._reference = self._reference.remapped()
        block = self._model.transformer.h[number]
        self._load(block, f"transformer.h.{number}.")
        rope = rope_of_layer(self._model, self._rope, number)
        try:
            yield block, lambda x_BTC: torch.cat([block(x_BTC[rows], *rope) for rows in self.chunks(len(x_BTC))])
        finally:
            block.to(device="meta")

    def losses(self, x_BTC: Tensor, targets_BT: Tensor) -> Tensor:
        """Returns each sequence's mean cross-entropy in nats per token, (B,), fp64, of a model that ends after a layer,
        whose output is ``x_BTC``. After layer n - 1 this is the loss of an untrained slice of n layers."""
        return self.scores([x_BTC], targets_BT)[0]

    def scores(self, outputs: Sequence[Tensor], targets_BT: Tensor, whole_BTC: Tensor | None = None) -> Tensor:
        """Returns scores of models that end with these outputs (B, T, C), on each sequence, (models, B), fp64.

        In nats per token: the mean cross-entropy, or with ``whole_BTC``, the output of the whole model's last layer,
        the mean KL(whole || model) of their predictions. Logits are of some tokens of one model, or two, at a time.
        """
        if self._model.lm_head.weight.is_meta:
            self._load(self._model.transformer.ln_f, "transformer.ln_f.")
            self._load(self._model.lm_head, "lm_head.", weight=EMBEDDING)
        targets_M, step = targets_BT.to(self.device).flatten(), max(1, LOGITS // self.config.padded_vocab_size)
        parts: list[list[Tensor]] = [[] for _ in outputs]
        for start in range(0, len(targets_M), step):
            rows = slice(start, start + step)
            if whole_BTC is not None:
                logprobs_mV = self._logits(whole_BTC, rows).log_softmax(dim=-1)
                probs_mV = logprobs_mV.exp()
                negentropy_m = (probs_mV * logprobs_mV).sum(dim=-1)  # autocast would round a matrix product
            for output_BTC, scores in zip(outputs, parts, strict=True):
                # Flat: the layout that (b, V, T) asks for is several times slower.
                logits_mV = self._logits(output_BTC, rows)
                if whole_BTC is None:
                    scores.append(F.cross_entropy(logits_mV, targets_M[rows], reduction="none"))
                else:
                    scores.append(negentropy_m - (probs_mV * logits_mV.log_softmax(dim=-1)).sum(dim=-1))
        return torch.stack([torch.cat(scores).view(targets_BT.shape).double().mean(dim=1) for scores in parts])

    def _logits(self, x_BTC: Tensor, rows: slice) -> Tensor:
        return head_logits(self._model, self._model.transformer.ln_f(x_BTC.flatten(0, 1)[rows]))

    def chunks(self, sequences: int) -> list[slice]:
        """Returns which sequences each call of a layer takes."""
        step = max(1, _TOKENS[self.device.type] // self._model.max_seq_length)
        return [slice(start, min(start + step, sequences)) for start in range(0, sequences, step)]

    def _load(self, module: torch.nn.Module, prefix: str, **tied: str) -> None:
        """Gives a module its parameters, or those of other names (``tied``) where the reference has none for it."""
        names = tied | {name.removeprefix(prefix): name for name in self._reference.shapes if name.startswith(prefix)}
        state = {own: self._reference.tensor(name).to(self.device, torch.float32) for own, name in names.items()}
        module.load_state_dict(state, strict=True, assign=True)
        for linear in module.modules():
            if isinstance(linear, torch.nn.Linear):
                linear.to(self._linear_dtype)


def run_with_outputs(block: Block, run: RunBlock, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what a layer makes of its input, and the outputs of its MLP in that, (B, T, C) each."""
    outputs: list[Tensor] = []
    with block.mlp.register_forward_hook(lambda _mlp, _input, output: outputs.append(output)):
        y_BTC = run(x_BTC)
    return y_BTC, torch.cat(outputs).to(y_BTC.dtype)


def layer_runs(subsets: Sequence[Layers]) -> int:
    """Returns how many times ``score_subsets`` runs a layer on all sequences: once for each prefix of any subset."""
    return len({subset[:length] for subset in subsets for length in range(1, len(subset) + 1)})


def group_sizes(subsets: int, sequence_bytes: int, budget: int = STREAM_BYTES) -> tuple[int, int]:
    """Returns how many subsets and sequences ``score_subsets`` takes at a time, of hidden states of such a size."""
    capacity = max(3, budget // sequence_bytes) - 2  # two more while a layer's output is put together
    return min(subsets, capacity), max(1, capacity // subsets)


def score_subsets(
    stream: LayerStream,
    x_BTC: Tensor,
    targets_BT: Tensor,
    subsets: Sequence[Layers],
    whole_BTC: Tensor | None = None,
    budget: int = STREAM_BYTES,
    repair: Repair | None = None,
    fitted: int = 0,
) -> Tensor:
    """Returns the score of the models that some subsets of the layers make, on each sequence, (subsets, B), fp64, CPU.

    ``x_BTC`` is the first layer's input; scores and ``whole_BTC`` are as in ``LayerStream.scores``. Subsets that begin
    alike share their hidden states so far: a trie of prefixes, grown one layer of the model at a time, which is loaded
    once for all. Hidden states that are in memory have ``budget`` bytes: if need be sequences, then subsets are taken
    in groups, for each of which layers are loaded again. With ``repair``, which is applied at each cut, all sequences
    stay together, and the first, as many as ``fitted``, get no scores.
    """
    distinct = sorted(set(subsets))
    if repair is None:
        count, rows = group_sizes(len(distinct), x_BTC[0].nbytes, budget)
    else:  # each prefix has two states
        count, rows = group_sizes(len(distinct), 2 * x_BTC.nbytes, budget)[0], len(x_BTC)
    found: dict[Layers, list[Tensor]] = {subset: [] for subset in distinct}
    for first in range(0, len(distinct), count):
        some = distinct[first : first + count]
        for start in range(0, len(x_BTC), rows):
            group = slice(start, start + rows)
            outputs = _run_prefixes(stream, x_BTC[group], some, repair, fitted)
            whole_bTC = whole_BTC[group] if whole_BTC is not None else None
            outputs_SbTC = [outputs[subset][fitted:] for subset in some]
            scores_Sb = stream.scores(outputs_SbTC, targets_BT[group][fitted:], whole_bTC)
            for subset, scores_b in zip(some, scores_Sb.cpu(), strict=True):
                found[subset].append(scores_b)
    return torch.stack([torch.cat(found[subset]) for subset in subsets])


def _run_prefixes(
    stream: LayerStream, x_bTC: Tensor, subsets: Sequence[Layers], repair: Repair | None, fitted: int
) -> dict[Layers, Tensor]:
    """Returns the output of each subset's last layer, which are tensors of their own where subsets differ."""
    depth, whole_bTC = stream.config.n_layer, x_bTC

    def given_to(layer: int, prefix: _Prefix) -> Tensor:
        if repair is None or prefix.outputs_bTC is None or prefix.last == layer - 1:
            return prefix.states_bTC
        return repair(fitted, prefix.states_bTC, prefix.outputs_bTC, whole_bTC)

    prefixes = [_Prefix(x_bTC, None, -1, subsets)]
    for layer in range(depth) if repair else sorted({layer for subset in subsets for layer in subset}):
        grown: list[_Prefix] = []
        with stream.layer(layer) as (block, run):
            while prefixes:
                prefix = prefixes.pop()
                with_layer = [subset for subset in prefix.members if layer in subset]
                if without := [subset for subset in prefix.members if layer not in subset]:
                    grown.append(replace(prefix, members=without))
                if with_layer:
                    given_bTC = given_to(layer, prefix)
                    states_bTC, outputs_bTC = (
                        run_with_outputs(block, run, given_bTC) if repair else (run(given_bTC), None)
                    )
                    grown.append(_Prefix(states_bTC, outputs_bTC, layer, with_layer))
                    stream.report(len(x_bTC))
                del prefix
            if repair:
                whole_bTC = run(whole_bTC)
                stream.report(len(x_bTC))
        prefixes = grown
    return {subset: given_to(depth, prefix) for prefix in prefixes for subset in prefix.members}


@dataclass(frozen=True)
class _Prefix:
    """The first layers of some subsets: hidden states behind the last of them, and its MLP's outputs for a repair."""

    states_bTC: Tensor
    outputs_bTC: Tensor | None
    last: int
    members: Sequence[Layers]
