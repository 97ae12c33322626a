"""The shape and the tokenizer of the demo's reference: a LLaMA of a few million parameters."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inheritune_lit.tokenizer_training import train_tokenizer

SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "vocab_size": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_shape(folder: Path, corpus: Path) -> None:
    """Write a Hugging Face folder without weights: ``config.json`` and a SentencePiece tokenizer made from ``corpus``.

    Args:
        folder: an existing folder to fill.
        corpus: folder of ``*.jsonl`` files with a ``text`` field.
    """
    (folder / "config.json").write_text(json.dumps(SHAPE, indent=2) + "\n", encoding="utf-8")
    tokenizer_config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config) + "\n", encoding="utf-8")
    train_tokenizer(folder / "tokenizer.model", _lines(corpus), SHAPE["vocab_size"])


def _lines(corpus: Path) -> Iterator[str]:
    for file in sorted(corpus.glob("*.jsonl")):
        for row in file.read_text(encoding="utf-8").splitlines():
            yield from filter(str.strip, json.loads(row)["text"].split("\n"))
