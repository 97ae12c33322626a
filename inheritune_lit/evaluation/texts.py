"""Many texts generated: batches, processes and the results of earlier ones."""

import json
from dataclasses import astuple

import torch
from litgpt.model import GPT

from inheritune_lit.evaluation.generation import GenerationSettings, generate
from inheritune_lit.evaluation.prefix_tree import to_key
from inheritune_lit.evaluation.score_cache import ScoreCache, request_key
from inheritune_lit.evaluation.sharing import Sharing
from inheritune_lit.progress import Progress
from inheritune_lit.tokenizer import Tokenizer


class TextMaker:
    """Continues prompts.

    Args:
        model: after ``install_plans``.
        tokenizer: the checkpoint's, which has an EOS.
        max_batch_tokens: tokens of a batch, new ones included.
        cache: results of earlier processes.
        sharing: processes that share the work.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, max_batch_tokens: int, cache: ScoreCache, sharing: Sharing
    ) -> None:
        self._model, self._tokenizer, self._max_batch_tokens = model, tokenizer, max_batch_tokens
        self._cache, self._sharing = cache, sharing

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
        if self._sharing.rank == 0:
            for number, name in enumerate(names):
                if (ids := self._cache.get(name)) is not None:
                    _put(made_NT, number, ids)
        made_NT = self._sharing.add_up(made_NT)
        left = [number for number in range(len(prompts)) if not made_NT[number, 0]]
        progress.update(len(prompts) - len(left))
        batches = self._batches(left, prompts, settings.max_new)
        rank, world = self._sharing.rank, self._sharing.world
        for first in range(0, len(batches), world):
            now = batches[first : first + world]
            numbers = [number for batch in now for number in batch]
            own_NT = torch.zeros_like(made_NT)
            for batch in now[rank : rank + 1]:
                for number, ids in zip(batch, self._continue(batch, prompts, names, settings), strict=True):
                    _put(own_NT, number, ids)
            made_NT[numbers] = self._sharing.add_up(own_NT[numbers])
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
