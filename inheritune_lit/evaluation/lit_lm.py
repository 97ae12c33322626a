"""lm-eval's model interface on a litgpt model: no conversion, no transformers."""

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from litgpt.model import GPT
from lm_eval import utils
from lm_eval.api.model import TemplateLM

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.encoding import Encoder, eos_id
from inheritune_lit.evaluation.generation import BatchGenerator, GenerationSettings
from inheritune_lit.evaluation.prefix_tree import to_key
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.evaluation.score_cache import ScoreCache
from inheritune_lit.evaluation.scoring import Request, Scorer
from inheritune_lit.io.progress import Progress
from inheritune_lit.model.attention import install_plans

_ENCODED_TOGETHER = 2048
"""Requests whose texts are in memory as ids at once."""


class LitLM(TemplateLM):
    """Scores and continues texts with a litgpt model.

    Beginnings that requests share are computed once (``prefix_tree``), the head is applied only where a continuation is
    scored, and its log-softmax is fp32.

    Args:
        model: on its device; its attention is changed by ``install_plans``.
        encoder: texts into ids.
        max_batch_tokens: tokens per forward pass.
        identity: what ``provenance`` says.
        cache: results of earlier processes.
        ranks: processes that share the work; each has the model, gets all requests and all results.
        stream: where progress is shown; stderr when None.

    Attributes:
        model: the model; its plain forward passes give what they gave before.
        truncated: requests whose beginning did not fit the model's context and was cut off.
    """

    def __init__(
        self,
        model: GPT,
        encoder: Encoder,
        *,
        max_batch_tokens: int,
        identity: dict[str, Any],
        cache: ScoreCache,
        ranks: Ranks = Ranks(),
        stream: TextIO | None = None,
    ) -> None:
        super().__init__()
        install_plans(model)
        self.model = model.eval().requires_grad_(False)
        self.truncated = 0
        self._encoder, self._identity, self._stream = encoder, identity, stream or sys.stderr
        self._is_shown = ranks.is_first
        self._scorer = Scorer(model, max_batch_tokens, cache, ranks, self._stream)
        self._texts = BatchGenerator(model, encoder.tokenizer, max_batch_tokens, cache, ranks)

    @property
    def eot_token_id(self) -> int:
        return eos_id(self._encoder.tokenizer)

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: EOS, as in the paper, or BOS where texts get one."""
        return self._encoder.empty_context

    @property
    def max_length(self) -> int:
        """Tokens the model can attend to."""
        return self.model.max_seq_length

    @property
    def requests_scored(self) -> int:
        """Requests computed, which excludes repeated and cached ones."""
        return self._scorer.requests_scored

    @property
    def tokens_computed(self) -> int:
        """Tokens that went through the network to score requests, of all processes."""
        return self._scorer.tokens_computed

    @property
    def tokens_minimum(self) -> int:
        """The fewest tokens that could have gone through: nodes of the requests' prefix tree."""
        return self._scorer.tokens_minimum

    def provenance(self) -> dict[str, Any]:
        """What changes a score: hashes of weights and tokenizer, layers, dtypes, BOS, adapter version and so on."""
        return dict(self._identity)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, behind BOS where that was asked for and ``add_special_tokens`` is not False."""
        return self._encoder.encode(string, add_special_tokens is not False)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, and whether it is the greedy choice."""
        jobs = []
        for start in range(0, len(requests), _ENCODED_TOGETHER):
            pairs = [request.args for request in requests[start : start + _ENCODED_TOGETHER]]
            self._encoder.announce(text for pair in pairs for text in ("".join(pair), pair[0].rstrip()))
            jobs += [self._request(*self._split(*pair)) for pair in pairs]
        return self._scorer.score(jobs)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, cut into windows of the context's length; each token is scored once.

        Where texts get a BOS, it is the first window's context; unlike in lm-eval's own model it is not scored itself.
        """
        windows, owners = [], []
        for number, request in enumerate(requests):
            rolled = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, rolled):
                windows.append(self._request(context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (loglikelihood, _) in zip(owners, self._scorer.score(windows), strict=True):
            totals[number] += loglikelihood
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The model's continuation of each context, up to a stop string, EOS or the task's limit.

        Raises:
            UserError: a task asks for more tokens than the context has, or for a setting that is not offered.
        """
        texts = [""] * len(requests)
        groups: dict[GenerationSettings, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(GenerationSettings.of(request.args[1]), []).append(number)
        hidden = not self._is_shown
        with Progress("generate", len(requests), "text", stream=self._stream, hidden=hidden) as progress:
            for settings, numbers in groups.items():
                prompts = [self._prompt(requests[number].args[0], settings) for number in numbers]
                for number, text in zip(numbers, self._texts.make(prompts, settings, progress), strict=True):
                    texts[number] = text
        return texts

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._scorer.score([self._request(context, continuation) for _, context, continuation in requests])

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and continuation, as lm-eval splits them."""
        if context:
            return self._encode_pair(context, continuation)
        ids = self.tok_encode(continuation, add_special_tokens=False)
        prefix = self.prefix_token_id
        return (ids[:1], ids[1:]) if ids[:1] == [prefix] else ([prefix], ids)

    def _request(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        if not 0 < len(continuation) <= self.max_length:
            raise UserError(
                f"a continuation of {len(continuation)} tokens cannot be scored by a model whose context is "
                f"{self.max_length}; leave its task out"
            )
        self.truncated += len(context) + len(continuation) - 1 > self.max_length
        return to_key([*context, *continuation][-(self.max_length + 1) : -1]), to_key(continuation)

    def _prompt(self, context: str, settings: GenerationSettings) -> list[int]:
        room = self.max_length - settings.max_new
        if room < 1:
            raise UserError(
                f"a task asks for {settings.max_new} new tokens, the model's whole context is {self.max_length}; "
                "leave the task out"
            )
        prompt = self.tok_encode(context) or [self.prefix_token_id]
        self.truncated += len(prompt) > room
        return prompt[-room:]
