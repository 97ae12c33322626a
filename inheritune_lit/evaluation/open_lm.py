"""A checkpoint folder opened for evaluation."""

from pathlib import Path
from typing import Any, Literal

import torch

from inheritune_lit.checkpoint.folder import WEIGHTS
from inheritune_lit.checkpoint.manifest import sha256_file
from inheritune_lit.evaluation.lit_lm import LitLM
from inheritune_lit.model.load import load_model
from inheritune_lit.tokenizer import Tokenizer


class _OpenedLM(LitLM):
    tokens_computed = 0
    requests_scored = 0
    identity: dict[str, Any]

    def provenance(self) -> dict[str, Any]:
        return self.identity


def open_lm(
    checkpoint_dir: Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    quantize: str | None = None,
    bos: Literal["none", "model"] = "none",
    max_batch_tokens: int | None = None,
    device: str = "cpu",
    cache_dir: Path | None = None,
) -> LitLM:
    model = load_model(checkpoint_dir, getattr(torch, dtype), device)
    lm = _OpenedLM(model, Tokenizer(checkpoint_dir), 16)
    lm.model = load_model(checkpoint_dir, getattr(torch, dtype), device)
    lm.identity = {
        "weights_sha256": sha256_file(checkpoint_dir / WEIGHTS),
        "tokenizer_sha256": Tokenizer(checkpoint_dir).sha256(),
        "n_layer": model.config.n_layer,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": dtype,
        "softmax_dtype": "float32",
        "quantize": quantize,
        "bos": bos,
        "device": device,
    }
    return lm
