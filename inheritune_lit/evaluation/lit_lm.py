"""lm-eval's model interface on a litgpt model: no conversion, no transformers."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from litgpt.model import GPT
from lm_eval import utils
from lm_eval.api.model import TemplateLM

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.generation import GenerationSettings, continue_prompts
from inheritune_lit.evaluation.prefix_tree import to_key
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.evaluation.score_cache import ScoreCache, SharedWork
from inheritune_lit.evaluation.scoring import Request, Scorer
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.reading import read_json
from inheritune_lit.model.attention import install_plans
from inheritune_lit.tokenizer import Tokenizer

Bos = Literal["none", "model"]


class Encoder:
    """Encodes texts for scoring with a checkpoint's tokenizer, remembering those that were announced.

    The tokenizer may have more ids than the model knows (``vocab_size``), as long as no text needs them. ``bos`` "none"
    adds nothing, as the paper, "model" what the model's own tokenizer puts before a text: ``prefix``. An empty context
    is ``empty_context``, which is BOS where a text gets one, else EOS.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, bos: Bos = "none") -> None:
        self.tokenizer, self._vocab_size = tokenizer, vocab_size
        self.prefix = model_prefix(tokenizer) if bos == "model" else []
        self.empty_context = self.prefix[0] if self.prefix else self.eos_id
        self._known: dict[str, list[int]] = {}

    @property
    def eos_id(self) -> int:
        """The tokenizer's EOS; a ``UserError`` where it has none."""
        if self.tokenizer.eos_id is None:
            raise UserError(f"{self.tokenizer.path} defines no EOS token, which stands before an empty context")
        return self.tokenizer.eos_id

    def announce(self, texts: Iterable[str]) -> None:
        """Encode texts together, which is many times faster than one by one; what was known before is forgotten."""
        texts = list(dict.fromkeys(texts))
        self._known = dict(zip(texts, self.tokenizer.encode_batch(texts), strict=True))

    def encode(self, text: str, add_prefix: bool = True) -> list[int]:
        """Ids of a text, which the model has to know; a text that spells its own BOS gets no second one."""
        ids = self._known[text] if text in self._known else self.tokenizer.encode(text)
        if max(ids, default=0) >= self._vocab_size:
            problem = f"{self.tokenizer.path} makes id {max(ids)}, the model's vocabulary is {self._vocab_size}"
            raise UserError(f"{problem}; copy the tokenizer of its reference")
        if add_prefix and self.prefix and ids[: len(self.prefix)] != self.prefix:
            return [*self.prefix, *ids]
        return list(ids)


def model_prefix(tokenizer: Tokenizer) -> list[int]:
    """Ids that transformers' tokenizer of the same folder puts before a text.

    ``add_bos_token`` of ``tokenizer_config.json`` decides; where it is not there, the template of ``tokenizer.json``,
    or for a SentencePiece model the default of the LLaMA and Gemma tokenizers, which is BOS.
    """
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    config = tokenizer.path.with_name("tokenizer_config.json")
    stated = read_json(config).get("add_bos_token") if config.is_file() else None
    if isinstance(stated, bool):
        return bos if stated else []
    return bos if tokenizer.template is None else [i for i in tokenizer.template if i == tokenizer.bos_id]


@contextmanager
def _naming_row(request: Any) -> Iterator[None]:
    """Says which row of a task an error is of, where lm-eval says so."""
    try:
        yield
    except UserError as error:
        number = getattr(request, "doc_id", None)
        raise error if number is None else UserError(f"row {number + 1}: {error}") from error


class LitLM(TemplateLM):
    """Scores and continues texts with a litgpt model.

    Beginnings that requests share are computed once (``prefix_tree``), the head is applied only where a continuation is
    scored, and its log-softmax is fp32.

    Args:
        model: on its device. ``install_plans`` changes its attention; plain forward passes give what they gave before.
        max_batch_tokens: tokens per forward pass.
        identity: what ``provenance`` says.
        ranks: processes that share the work; each has the model, gets all requests and all results.
        stream: where progress is shown; stderr when None.

    Attributes:
        work: results that are kept, and the processes that make more.
        scorer: counts the requests and tokens that were computed.
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
        self._max_batch_tokens, self.work = max_batch_tokens, SharedWork(cache, ranks)
        self.scorer = Scorer(model, max_batch_tokens, self.work, self._stream)

    @property
    def eot_token_id(self) -> int:
        return self._encoder.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: EOS, as in the paper, or BOS where texts get one."""
        return self._encoder.empty_context

    @property
    def max_length(self) -> int:
        """Tokens the model can attend to."""
        return self.model.max_seq_length

    def provenance(self) -> dict[str, Any]:
        """What changes a score: hashes of weights and tokenizer, layers, dtypes, BOS, adapter version and so on."""
        return dict(self._identity)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, behind BOS where that was asked for and ``add_special_tokens`` is not False."""
        return self._encoder.encode(string, add_special_tokens is not False)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, and whether it is the greedy choice."""
        jobs = []
        for start in range(0, len(requests), 2048):  # those whose texts are in memory as ids at once
            chunk = requests[start : start + 2048]
            pairs = [request.args for request in chunk]
            self._encoder.announce(text for pair in pairs for text in ("".join(pair), pair[0].rstrip()))
            for request, pair in zip(chunk, pairs, strict=True):
                with _naming_row(request):
                    jobs.append(self._request(*self._split(*pair)))
        return self.scorer.score(jobs)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, cut into windows of the context's length; each token is scored once.

        Where texts get a BOS, it is the first window's context; unlike in lm-eval's own model it is not scored itself.
        """
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            rolled = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            for context, continuation in map(utils.make_disjoint_window, rolled):
                windows.append(self._request(context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (loglikelihood, _) in zip(owners, self.scorer.score(windows), strict=True):
            totals[number] += loglikelihood
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The model's continuation of each context, up to a stop string, EOS or the task's limit.

        A task that asks for more tokens than the context has, or for a setting not offered, is a ``UserError``.
        """
        texts = [""] * len(requests)
        groups: dict[GenerationSettings, list[int]] = {}
        for number, request in enumerate(requests):
            with _naming_row(request):
                groups.setdefault(GenerationSettings.of(request.args[1]), []).append(number)
        hidden = not self.work.ranks.is_first
        with Progress("generate", len(requests), "text", stream=self._stream, hidden=hidden) as progress:
            for settings, numbers in groups.items():
                prompts = []
                for number in numbers:
                    with _naming_row(requests[number]):
                        prompts.append(self._prompt(requests[number].args[0], settings))
                made = continue_prompts(
                    self.model, self._encoder.tokenizer, prompts, settings, self._max_batch_tokens, self.work, progress
                )
                for number, text in zip(numbers, made, strict=True):
                    texts[number] = text
        return texts

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self.scorer.score([self._request(context, continuation) for _, context, continuation in requests])

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and continuation, as lm-eval splits them.

        White space before a continuation belongs to it, so a context of nothing else is an empty one. A continuation
        whose text the tokenizer merges into the context's last token is encoded alone.
        """
        if context.strip():
            before, ids = self._encode_pair(context, continuation)
            if before:
                return before, ids or self.tok_encode(continuation, add_special_tokens=False)
        ids = self.tok_encode(context + continuation, add_special_tokens=False)
        prefix = [self.prefix_token_id]
        return (ids[:1], ids[1:]) if ids[:1] == prefix and len(ids) > 1 else (prefix, ids)

    def _request(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        if not continuation:
            raise UserError("a continuation of 0 tokens has no score; give each answer a text")
        if len(continuation) > self.max_length:
            problem = f"a continuation of {len(continuation)} tokens cannot be scored by a model whose context is"
            raise UserError(f"{problem} {self.max_length}; leave its task out")
        self.truncated += len(context) + len(continuation) - 1 > self.max_length
        return to_key([*context, *continuation][-(self.max_length + 1) : -1]), to_key(continuation)

    def _prompt(self, context: str, settings: GenerationSettings) -> list[int]:
        room = self.max_length - settings.max_new
        if room < 1:
            problem = f"a task asks for {settings.max_new} new tokens, the model's whole context is {self.max_length}"
            raise UserError(f"{problem}; leave the task out")
        prompt = self.tok_encode(context) or [self.prefix_token_id]
        self.truncated += len(prompt) > room
        return prompt[-room:]
