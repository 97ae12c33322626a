"""Text generated in batches with a key-value cache."""

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from litgpt.model import GPT

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.prefix_tree import to_key
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.evaluation.score_cache import ScoreCache, request_key
from inheritune_lit.io.progress import Progress
from inheritune_lit.model.attention import Attend, CausalPlan, LayerAttention
from inheritune_lit.model.forward import head_logits, hidden_states
from inheritune_lit.tokenizer import Tokenizer

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
    """Attention of a batch that grows by one token per sequence and pass: the first pass takes the prompts.

    Args:
        capacity: most tokens per sequence.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._stored: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._positions_B = torch.empty(0, dtype=torch.long)
        self._longest = 0

    def advance(self, positions_B: torch.Tensor) -> None:
        """Announce a pass of one token per sequence, at these positions."""
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
        tokens_B = _choose(head_logits(model, last_BC), settings, [generators[prompt] for prompt in alive])
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


class BatchGenerator:
    """Continues prompts.

    Args:
        model: after ``install_plans``.
        tokenizer: the checkpoint's, which has an EOS.
        max_batch_tokens: tokens of a batch, new ones included.
        cache: results of earlier processes.
        ranks: processes that share the work.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, max_batch_tokens: int, cache: ScoreCache, ranks: Ranks
    ) -> None:
        self._model, self._tokenizer, self._max_batch_tokens = model, tokenizer, max_batch_tokens
        self._cache, self._ranks = cache, ranks

    def make(self, prompts: list[list[int]], settings: GenerationSettings, progress: Progress) -> list[str]:
        """The continuation of each prompt; samples depend on the prompt and how often it came, not on batches.

        Args:
            prompts: token ids; each leaves room for ``settings.max_new`` more.
            settings: the same for all.
            progress: counts texts.
        """
        names = _names(prompts, settings)
        # Row: length + 1, ids. All zero where there is no result.
        made_NT = torch.zeros(len(prompts), 1 + settings.max_new, dtype=torch.long)
        if self._ranks.rank == 0:
            for number, name in enumerate(names):
                if (ids := self._cache.get(name)) is not None:
                    _put(made_NT, number, ids)
        made_NT = self._ranks.add_up(made_NT)
        left = [number for number in range(len(prompts)) if not made_NT[number, 0]]
        progress.update(len(prompts) - len(left))
        batches = self._batches(left, prompts, settings.max_new)
        rank, world = self._ranks.rank, self._ranks.world
        for first in range(0, len(batches), world):
            now = batches[first : first + world]
            numbers = [number for batch in now for number in batch]
            own_NT = torch.zeros_like(made_NT)
            for batch in now[rank : rank + 1]:
                for number, ids in zip(batch, self._continue(batch, prompts, names, settings), strict=True):
                    _put(own_NT, number, ids)
            made_NT[numbers] = self._ranks.add_up(own_NT[numbers])
            self._cache.add({names[number]: _get(made_NT, number) for number in numbers})
            progress.update(len(numbers))
        return [settings.cut(self._decode(_get(made_NT, number))) for number in range(len(prompts))]

    def _continue(
        self, batch: list[int], prompts: list[list[int]], names: list[str], settings: GenerationSettings
    ) -> list[list[int]]:
        seeds = [int(names[number][:15], 16) for number in batch]
        chosen = [prompts[number] for number in batch]
        return generate(self._model, chosen, settings, self._tokenizer.eos_id, self._decode, seeds)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _batches(self, numbers: list[int], prompts: list[list[int]], max_new: int) -> list[list[int]]:
        """Prompts of about equal lengths, longest first: what does not fit into memory fails at once."""
        batches: list[list[int]] = []
        for number in sorted(numbers, key=lambda number: -len(prompts[number])):
            longest = len(prompts[batches[-1][0]]) if batches else 0
            if not batches or (len(batches[-1]) + 1) * (longest + max_new) > self._max_batch_tokens:
                batches.append([])
            batches[-1].append(number)
        return batches


def _names(prompts: list[list[int]], settings: GenerationSettings) -> list[str]:
    """A name for each text; prompts that are sampled repeatedly are told apart."""
    times: dict[bytes, int] = {}
    names = []
    for prompt in prompts:
        key = to_key(prompt)
        repetition = times.get(key, 0) if settings.temperature else 0
        times[key] = repetition + 1
        names.append(request_key("generate", key, json.dumps([*astuple(settings), repetition]).encode()))
    return names


def _put(made_NT: torch.Tensor, number: int, ids: list[int]) -> None:
    made_NT[number, 0] = len(ids) + 1
    made_NT[number, 1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.long)


def _get(made_NT: torch.Tensor, number: int) -> list[int]:
    return made_NT[number, 1 : int(made_NT[number, 0])].tolist()
