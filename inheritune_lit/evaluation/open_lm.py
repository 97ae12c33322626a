"""A checkpoint folder opened for evaluation."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

import torch
from litgpt.model import GPT

from inheritune_lit.checkpoint.folder import is_litgpt_folder
from inheritune_lit.checkpoint.weights import open_weights
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.lit_lm import Bos, Encoder, LitLM
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.evaluation.score_cache import ScoreCache
from inheritune_lit.inherit.load import load_reference
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.model.attention import pad_head_size
from inheritune_lit.model.devices import free_memory
from inheritune_lit.model.load import Quantization, load_model, quantize_linears
from inheritune_lit.tokenizer import Tokenizer

Dtype = Literal["float32", "bfloat16"]

ADAPTER_VERSION = 2
"""Goes up when a change of the adapter changes scores: results of another version are not continued from."""

_FEWEST_TOKENS, _MOST_TOKENS = 1024, 16384
"""Shorter rows would compute long few-shot prompts again and again; longer ones make nothing faster."""


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

    Raises:
        UserError: no usable checkpoint, tokenizer or cache there, or a choice that is not offered.
    """
    for name, value, choices in (("dtype", dtype, get_args(Dtype)), ("bos", bos, get_args(Bos))):
        if value not in choices:
            raise UserError(f"--{name} is {value!r}; give {' or '.join(choices)}")
    if max_batch_tokens is not None and max_batch_tokens < 1:
        raise UserError(f"--max_batch_tokens is {max_batch_tokens}; give 1 or more")
    if not checkpoint_dir.is_dir():
        raise UserError(f"no checkpoint folder at {checkpoint_dir}; `inheritune slice` makes one")
    load = load_model if is_litgpt_folder(checkpoint_dir) else load_reference
    model = load(checkpoint_dir, getattr(torch, dtype), "cpu" if quantize else device)
    tokenizer = Tokenizer(checkpoint_dir)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if quantize is not None:
        quantize_linears(model, quantize, device)
        model.cos, model.sin = model.rope_cache(device=torch.device(device))
    if torch.device(device).type == "cuda":
        pad_head_size(model)
    encoder = Encoder(tokenizer, model.config.padded_vocab_size, bos)
    hashes = [sha256_file(path) for path in open_weights(checkpoint_dir).files]
    config = {key: value for key, value in asdict(model.config).items() if key not in ("name", "hf_config")}
    identity = {
        "weights_sha256": hashes[0] if len(hashes) == 1 else _sha256("".join(hashes)),
        "tokenizer_sha256": tokenizer.sha256(),
        # Of what the model computes: rotary bases, norms' epsilons and so on are in no weight.
        "config_sha256": _sha256(json.dumps(config, sort_keys=True)),
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
    return LitLM(model, encoder, max_batch_tokens=tokens, identity=identity, cache=cache, ranks=ranks)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tokens_that_fit(model: GPT, device: torch.device) -> int:
    """Tokens per forward pass for which about half of the free memory suffices, with keys and values of all layers."""
    config, free = model.config, free_memory(device)
    heads = config.n_head * config.head_size
    widest = 4 * config.n_embd + 6 * heads + 3 * (config.intermediate_size or config.n_embd)
    # RMSNorm's intermediates are fp32, whatever the dtype.
    bytes_each = widest * 4 + 2 * config.n_layer * heads * model.transformer.wte.weight.itemsize
    return _MOST_TOKENS if free is None else max(_FEWEST_TOKENS, min(_MOST_TOKENS, free // 2 // bytes_each))
