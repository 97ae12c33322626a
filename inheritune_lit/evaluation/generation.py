"""Text generated in batches with a key-value cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from litgpt.model import GPT

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.attention import Attend, CausalPlan, LayerAttention
from inheritune_lit.evaluation.forward import hidden_states, logits

_DEFAULT_MAX_NEW = 256
_MAX_NEW_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class GenerationSettings:
    """How a task wants its texts; see ``of``.

    Attributes:
        max_new: most tokens a text.
        stops: strings that end a text and are cut off.
        temperature: 0 for the likeliest token always.
        top_k: sample among this many likeliest tokens; None for all.
        top_p: sample among the likeliest tokens that together have this probability.
    """

    max_new: int
    stops: tuple[str, ...]
    temperature: float
    top_k: int | None
    top_p: float

    @classmethod
    def of(cls, asked: dict[str, Any]) -> "GenerationSettings":
        """From a task's ``generation_kwargs``, which have the names of transformers.

        Raises:
            UserError: a setting that is not offered.
        """
        asked = dict(asked)
        limits = [asked.pop(name, None) for name in _MAX_NEW_NAMES]
        max_new = next((int(limit) for limit in limits if limit is not None), _DEFAULT_MAX_NEW)
        until = asked.pop("until", None) or []
        stops = (until,) if isinstance(until, str) else tuple(until)
        temperature = float(asked.pop("temperature", 0.0) or 0.0)
        do_sample = asked.pop("do_sample", None)
        if do_sample is False:
            temperature = 0.0
        elif do_sample and temperature == 0.0:
            temperature = 1.0
        top_k, top_p = asked.pop("top_k", None), float(asked.pop("top_p", None) or 1.0)
        for name, value in asked.items():
            if not (name == "num_beams" and value == 1):
                raise UserError(f"the task asks to generate with {name}={value!r}, which is not offered; take it out")
        return cls(max_new, tuple(stop for stop in stops if stop), temperature, int(top_k) if top_k else None, top_p)

    def cut(self, text: str) -> str:
        """The text before the first stop."""
        return text[: min((at for at in map(text.find, self.stops) if at >= 0), default=len(text))]


class KeyValueCache:
    """Attention of a batch that grows by a token a sequence and pass: the first pass takes the prompts.

    Args:
        capacity: most tokens a sequence.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._stored: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._positions_B = torch.empty(0, dtype=torch.long)
        self._longest = 0

    def advance(self, positions_B: torch.Tensor) -> None:
        """Announce a pass of one token a sequence, at these positions."""
        self._positions_B, self._longest = positions_B, int(positions_B.max()) + 1

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all sequences but these."""
        self._stored = {layer: (k[rows], v[rows]) for layer, (k, v) in self._stored.items()}

    def attend(
        self, attend: Attend, layer: LayerAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        if layer.number not in self._stored:
            self._stored[layer.number] = self._room_for(k), self._room_for(v)
            return CausalPlan().attend(attend, layer, q, k, v)
        keys, values = self._stored[layer.number]
        rows_B = torch.arange(len(q), device=q.device)
        keys[rows_B, :, self._positions_B], values[rows_B, :, self._positions_B] = k[:, :, 0], v[:, :, 0]
        distance_BS = self._positions_B[:, None] - torch.arange(self._longest, device=q.device)
        visible_BS = distance_BS >= 0
        if layer.window is not None:
            visible_BS &= distance_BS < layer.window
        mask = layer.mask(visible_BS[:, None, None], q)
        return attend(q, keys[:, :, : self._longest], values[:, :, : self._longest], mask)

    def _room_for(self, prompt_BHTD: torch.Tensor) -> torch.Tensor:
        B, H, T, D = prompt_BHTD.shape
        room = prompt_BHTD.new_zeros(B, H, self._capacity, D)
        room[:, :, :T] = prompt_BHTD
        return room


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    eos_id: int | None,
    decode: Callable[[list[int]], str],
    seeds: Sequence[int],
) -> list[list[int]]:
    """Continue prompts until EOS, a stop or the limit.

    Args:
        model: after ``install_plans``.
        prompts: token ids, none empty; each with ``settings.max_new`` more fits the context.
        settings: the same for all.
        eos_id: token that ends a text, None where there is none; it is not part of the result.
        decode: ids to text, to look for stops.
        seeds: of each prompt's samples, so that they do not depend on the batch.

    Returns:
        New ids of each prompt.
    """
    device = model.transformer.wte.weight.device
    lengths = [len(ids) for ids in prompts]
    # Padding stands behind the text, where causal attention cannot see it, and later tokens overwrite it.
    tokens_BT = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    for row, ids in enumerate(prompts):
        tokens_BT[row, : len(ids)] = torch.tensor(ids)
    positions_BT = torch.arange(max(lengths)).expand_as(tokens_BT)
    cache = KeyValueCache(max(lengths) + settings.max_new)
    hidden_BTC = hidden_states(model, tokens_BT.to(device), positions_BT.to(device), cache)
    last_BC = hidden_BTC[torch.arange(len(prompts)), torch.tensor(lengths) - 1]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    made: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # the prompt of each row of the cache
    unfinished = set(alive)
    while True:
        tokens_B = _choose(logits(model, last_BC), settings, [generators[prompt] for prompt in alive])
        for prompt, token in zip(alive, tokens_B.tolist(), strict=True):
            if prompt not in unfinished:
                continue
            if token != eos_id:
                made[prompt].append(token)
            text = decode(made[prompt]) if settings.stops else ""
            if token == eos_id or len(made[prompt]) == settings.max_new or settings.cut(text) != text:
                unfinished.discard(prompt)
        if not unfinished:
            return made
        if len(unfinished) <= len(alive) // 2:
            rows = torch.tensor([row for row, prompt in enumerate(alive) if prompt in unfinished], device=device)
            cache.keep(rows)
            tokens_B, alive = tokens_B[rows.cpu()], [alive[row] for row in rows.tolist()]
        # A finished sequence that is still in the batch writes over its own last token.
        positions_B = torch.tensor([lengths[prompt] + max(len(made[prompt]) - 1, 0) for prompt in alive])
        cache.advance(positions_B.to(device))
        last_BC = hidden_states(model, tokens_B[:, None].to(device), positions_B[:, None].to(device), cache)[:, 0]


def _choose(logits_BV: torch.Tensor, settings: GenerationSettings, generators: list[torch.Generator]) -> torch.Tensor:
    """The next token of each sequence, (B,), on the CPU."""
    if settings.temperature == 0.0:
        return logits_BV.argmax(dim=1).cpu()
    chosen = []
    for logits_V, generator in zip(logits_BV.cpu() / settings.temperature, generators, strict=True):
        values, tokens = logits_V.topk(min(settings.top_k or len(logits_V), len(logits_V)))
        probabilities = values.softmax(dim=0)
        before = probabilities.cumsum(dim=0) - probabilities
        chosen.append(tokens[torch.multinomial(probabilities * (before < settings.top_p), 1, generator=generator)])
    return torch.cat(chosen)
