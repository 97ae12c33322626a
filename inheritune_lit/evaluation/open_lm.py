"""A checkpoint folder opened as lm-eval's model: no conversion, no transformers."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from litgpt.model import GPT
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from torch import Tensor

from inheritune_lit.checkpoint.folder import is_litgpt_folder
from inheritune_lit.checkpoint.weights import open_weights
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.args import Bos, Dtype
from inheritune_lit.evaluation.generation import GenerationSettings, generate
from inheritune_lit.evaluation.score_cache import Ranks, ScoreCache, SharedWork, request_key
from inheritune_lit.evaluation.scoring import Request, Scorer, to_key
from inheritune_lit.inherit.load import load_reference
from inheritune_lit.io.arguments import Quantization
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.reading import read_json
from inheritune_lit.model.attention import fuse_attention, install_plans
from inheritune_lit.model.devices import free_memory
from inheritune_lit.model.load import load_model, quantize_linears
from inheritune_lit.tokenizer import Tokenizer

ADAPTER_VERSION = 2  # goes up when a change of the adapter changes scores: results of another are not continued from

_FEWEST_TOKENS, _MOST_TOKENS = 1024, 16384
"""Shorter rows would compute long few-shot prompts again and again; longer ones make nothing faster."""


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
    """Ids that transformers' tokenizer of the same folder puts before a text, as ``tokenizer_config.json`` says.

    By default those of the template of ``tokenizer.json``, or BOS for a SentencePiece model, as for LLaMA and Gemma.
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

    Beginnings that requests share are computed once (``scoring``), the head is applied only where a continuation is
    scored, and its log-softmax is fp32.

    The model is on its device; ``install_plans`` changes its attention, and plain passes give what they gave before.
    A pass has up to ``max_batch_tokens``. ``identity`` is what ``provenance`` says, ``work`` the results that are kept
    and the processes that make more, each of which has the model and gets all requests. ``scorer`` counts what was
    computed, ``truncated`` the requests whose beginning did not fit the model's context and was cut off.
    """

    def __init__(
        self, model: GPT, encoder: Encoder, max_batch_tokens: int, identity: dict[str, Any], work: SharedWork
    ) -> None:
        super().__init__()
        install_plans(model)
        self.model = model.eval().requires_grad_(False)
        self.truncated = 0
        self._encoder, self._identity = encoder, identity
        self._max_batch_tokens, self.work = max_batch_tokens, work
        self.scorer = Scorer(model, max_batch_tokens, work)

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
        """Each context's continuation to a stop, EOS or the task's limit; what is not offered is a ``UserError``."""
        texts = [""] * len(requests)
        groups: dict[GenerationSettings, list[int]] = {}
        for number, request in enumerate(requests):
            with _naming_row(request):
                groups.setdefault(GenerationSettings.of(request.args[1]), []).append(number)
        with Progress("generate", len(requests), "text", hidden=not self.work.ranks.is_first) as progress:
            for settings, numbers in groups.items():
                prompts = [self._prompt(requests[number], settings) for number in numbers]
                for number, text in zip(numbers, self._continue(prompts, settings, progress), strict=True):
                    texts[number] = text
        return texts

    def _continue(self, prompts: list[list[int]], settings: GenerationSettings, progress: Progress) -> list[str]:
        """The continuation of each prompt."""
        asked = json.dumps(astuple(settings)).encode()
        names = [request_key("generate", to_key(prompt), asked) for prompt in prompts]
        # Row: length + 1, ids.
        empty_NT = torch.zeros(len(prompts), 1 + settings.max_new, dtype=torch.long)
        made_NT, left = self.work.find(names, empty_NT, lambda ids: [len(ids) + 1, *ids])
        progress.update(len(prompts) - len(left))
        decode = partial(self._encoder.tokenizer.decode, skip_special_tokens=True)

        def rows_of(batch: list[int]) -> Tensor:
            chosen = [prompts[number] for number in batch]
            made = generate(self.model, chosen, settings, self._encoder.eos_id, decode)
            return torch.tensor([[len(ids) + 1, *ids, *[0] * (settings.max_new - len(ids))] for ids in made])

        # Batches of about equal lengths, longest first: what does not fit into memory fails at once.
        batches: list[list[int]] = []
        for number in sorted(left, key=lambda number: -len(prompts[number])):
            longest = len(prompts[batches[-1][0]]) if batches else 0
            if not batches or (len(batches[-1]) + 1) * (longest + settings.max_new) > self._max_batch_tokens:
                batches.append([])
            batches[-1].append(number)
        self.work.compute(batches, names, made_NT, rows_of, lambda row: row[1 : row[0]], progress)
        return [settings.cut(decode(row[1 : row[0]])) for row in made_NT.tolist()]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self.scorer.score([self._request(context, continuation) for _, context, continuation in requests])

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and continuation, as lm-eval splits them: white space before a continuation belongs to it.

        A continuation whose text the tokenizer merges into the context's last token is encoded alone.
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

    def _prompt(self, request: Any, settings: GenerationSettings) -> list[int]:
        room, asked = self.max_length - settings.max_new, f"a task asks for {settings.max_new} new tokens"
        with _naming_row(request):
            if room < 1:
                raise UserError(f"{asked}, the model's whole context is {self.max_length}; leave the task out")
            prompt = self.tok_encode(request.args[0]) or [self.prefix_token_id]
        self.truncated += len(prompt) > room
        return prompt[-room:]


def open_lm(
    checkpoint_dir: Path,
    *,
    dtype: Dtype = "float32",
    quantize: Quantization | None = None,
    bos: Bos = "none",
    max_batch_tokens: int | None = None,
    device: str = "cpu",
    cache_dir: Path | None = None,
    ranks: Ranks = Ranks(),
) -> LitLM:
    """Load a litgpt or Hugging Face folder with its tokenizer straight from its files and wrap it for lm-eval.

    Args:
        dtype: of the weights and activations; log-softmax and RoPE tables are fp32.
        quantize: 8- or 4-bit weights of all linear layers but the head's.
        bos: "none" has EOS as an empty context, as the paper; see ``EvaluateArgs`` for it and what is not listed here.
        device: such as "cpu" or "cuda:0".
        ranks: processes that share the work, all with the same arguments but the device.

    No usable checkpoint, tokenizer or cache, or a choice that is not offered, is a ``UserError``.
    """
    for name, value, choices in (("dtype", dtype, get_args(Dtype)), ("bos", bos, get_args(Bos))):
        if value not in choices:
            raise UserError(f"--{name} is {value!r}; give {' or '.join(choices)}")
    if max_batch_tokens is not None and max_batch_tokens < 1:
        raise UserError(f"--max_batch_tokens is {max_batch_tokens}; give 1 or more")
    load = load_reference if checkpoint_dir.is_dir() and not is_litgpt_folder(checkpoint_dir) else load_model
    model = load(checkpoint_dir, getattr(torch, dtype), "cpu" if quantize else device)
    tokenizer = Tokenizer(checkpoint_dir)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if quantize is not None:
        quantize_linears(model, quantize, device)
        model.cos, model.sin = model.rope_cache(device=torch.device(device))
    if torch.device(device).type == "cuda":
        fuse_attention(model)
    encoder = Encoder(tokenizer, model.config.padded_vocab_size, bos)
    hashes = [sha256_file(path) for path in open_weights(checkpoint_dir).files]
    config = {key: value for key, value in asdict(model.config).items() if key not in ("name", "hf_config")}
    identity = {
        "weights_sha256": hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "tokenizer_sha256": tokenizer.sha256(),
        # Of what the model computes: rotary bases, norms' epsilons and so on are in no weight.
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "n_layer": model.config.n_layer,
        "parameters": parameters,
        "dtype": dtype,
        "softmax_dtype": "float32",
        "quantize": quantize,
        "bos": bos,
        "prefix": encoder.prefix,
        "empty_context_prefix": encoder.empty_context,
        "max_length": model.max_seq_length,
        "device": torch.device(device).type,
        "adapter_version": ADAPTER_VERSION,
    }
    cache = ScoreCache(cache_dir, identity, writes=ranks.is_first)
    tokens = max_batch_tokens or _tokens_that_fit(model, torch.device(device))
    return LitLM(model, encoder, tokens, identity, SharedWork(cache, ranks))


def _tokens_that_fit(model: GPT, device: torch.device) -> int:
    """Tokens per forward pass for which about half of the free memory suffices, with keys and values of all layers."""
    config, free = model.config, free_memory(device)
    heads = config.n_head * config.head_size
    widest = 4 * config.n_embd + 6 * heads + 3 * (config.intermediate_size or config.n_embd)
    # RMSNorm's intermediates are fp32, whatever the dtype.
    bytes_each = widest * 4 + 2 * config.n_layer * heads * model.transformer.wte.weight.itemsize
    return _MOST_TOKENS if free is None else max(_FEWEST_TOKENS, min(_MOST_TOKENS, free // 2 // bytes_each))
