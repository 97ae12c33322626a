"""Text generated in batches with a key-value cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from litgpt.model import GPT
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.scoring import check_finite
from inheritune_lit.model.attention import Attend, LayerAttention
from inheritune_lit.model.gpt import head_logits, hidden_states

_MAX_NEW_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class GenerationSettings:
    """How long a task wants its texts, which take the likeliest token always."""

    max_new: int  # tokens at most
    stops: tuple[str, ...]  # strings, at the first of which a text is cut off

    @classmethod
    def of(cls, asked: dict[str, Any]) -> "GenerationSettings":
        """From a task's ``generation_kwargs``, named as in transformers; one not offered is a ``UserError``."""
        asked = dict(asked)
        limits = [asked.pop(name, None) for name in _MAX_NEW_NAMES]
        max_new = next((int(limit) for limit in limits if limit is not None), 256)
        until = asked.pop("until", None) or []
        stops = [until] if isinstance(until, str) else until
        do_sample, temperature, *_ = [asked.pop(name, None) for name in ("do_sample", "temperature", "top_k", "top_p")]
        if do_sample or (do_sample is None and temperature):
            asked["do_sample"] = True
        for name, value in asked.items():
            if (name, value) != ("num_beams", 1):
                raise UserError(f"the task asks to generate with {name}={value!r}, which is not offered; take it out")
        return cls(max_new, tuple(filter(None, stops)))

    def cut(self, text: str) -> str:
        """The text before the first stop."""
        return text[: min((at for at in map(text.find, self.stops) if at >= 0), default=len(text))]


class KeyValueCache:
    """Attention of a batch: the first pass takes prompts, others a token per sequence, at most ``capacity`` in all."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}
        self._positions_B = torch.empty(0, dtype=torch.long)
        self._longest = 0

    def advance(self, positions_B: Tensor) -> None:
        """Announce a pass of one token per sequence, at these positions."""
        self._positions_B, self._longest = positions_B, int(positions_B.max()) + 1

    def keep(self, rows: Tensor) -> None:
        """Drop all sequences but these."""
        self._stored = {layer: (k[rows], v[rows]) for layer, (k, v) in self._stored.items()}

    def attend(self, attend: Attend, layer: LayerAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer.number not in self._stored:
            room = (0, 0, 0, self._capacity - k.shape[2])
            self._stored[layer.number] = F.pad(k, room), F.pad(v, room)
            return layer.attend_causally(attend, q, k, v)
        keys, values = self._stored[layer.number]
        rows_B = torch.arange(len(q), device=q.device)
        keys[rows_B, :, self._positions_B], values[rows_B, :, self._positions_B] = k[:, :, 0], v[:, :, 0]
        distance_BS = self._positions_B[:, None] - torch.arange(self._longest, device=q.device)
        visible_BS = distance_BS >= 0
        if layer.window is not None:
            visible_BS &= distance_BS < layer.window
        mask = layer.mask(visible_BS[:, None, None], q)
        return attend(q, keys[:, :, : self._longest], values[:, :, : self._longest], mask)


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    eos_id: int | None,
    decode: Callable[[list[int]], str],
) -> list[list[int]]:
    """New ids that continue each prompt until ``eos_id``, which is not part of them, a stop or the limit.

    The model is one after ``install_plans``. No prompt is empty, and each with ``settings.max_new`` more fits the
    context. ``decode`` makes text of ids, to look for stops.
    """
    device = model.transformer.wte.weight.device
    lengths = [len(ids) for ids in prompts]
    # Padding stands behind the text, where causal attention cannot see it, and later tokens overwrite it.
    tokens_BT = pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
    positions_BT = torch.arange(max(lengths)).expand_as(tokens_BT)
    cache = KeyValueCache(max(lengths) + settings.max_new)
    hidden_BTC = hidden_states(model, tokens_BT.to(device), positions_BT.to(device), cache)
    last_BC = hidden_BTC[torch.arange(len(prompts)), torch.tensor(lengths) - 1]
    made: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # the prompt of each row of the cache
    unfinished = set(alive)
    while True:
        logits_BV = head_logits(model, last_BC)
        check_finite(logits_BV)
        tokens_B = logits_BV.argmax(dim=1).cpu()
        for prompt, token in zip(alive, tokens_B.tolist(), strict=True):
            if prompt not in unfinished:
                continue
            made[prompt] += [token] * (token != eos_id)
            text = decode(made[prompt]) if settings.stops else ""
            if token == eos_id or len(made[prompt]) == settings.max_new or settings.cut(text) != text:
                unfinished.discard(prompt)
        if not unfinished:
            return made
        if len(unfinished) <= len(alive) // 2:  # a copy of all that is kept: not for every sequence that ends
            rows = [row for row, prompt in enumerate(alive) if prompt in unfinished]
            cache.keep(torch.tensor(rows, device=device))
            tokens_B, alive = tokens_B[rows], [alive[row] for row in rows]
        # A finished sequence that is still in the batch writes over its own last token.
        positions_B = torch.tensor([lengths[prompt] + max(len(made[prompt]) - 1, 0) for prompt in alive])
        cache.advance(positions_B.to(device))
        last_BC = hidden_states(model, tokens_B[:, None].to(device), positions_B[:, None].to(device), cache)[:, 0]
