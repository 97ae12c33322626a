"""The paper's own GPT-2 models, which are trained from scratch: a shape and GPT-2's tokenizer, no weights."""

from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.architectures.gpt2 import GPT2
from inheritune_lit.checkpoint.lit_config import GPT2Config
from inheritune_lit.checkpoint.shapes import tensor_shapes
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.references import Shape

VOCABULARY = 50304
"""GPT-2's 50,257 tokens and 47 that no text has: a multiple of 64 (the paper's code)."""


def describe_shape(shape: Shape, tokenizer_dir: Path) -> ReferenceModel:
    """A reference that only has a shape: no biases, tied head, attention divided by the layer's number.

    Args:
        tokenizer_dir: where GPT-2's tokenizer is.
    """
    hf: dict[str, Any] = {
        "model_type": "gpt2",
        "n_layer": shape.layers,
        "n_embd": shape.width,
        "n_head": shape.heads,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "initializer_range": 0.02,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
    }
    fields = {**GPT2.to_lit(hf), "bias": False, "norm_bias": False}
    config = GPT2Config(
        name=shape.name,
        hf_config={"org": "paper", "name": shape.name},
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,
        **fields,
    )
    return ReferenceModel(
        tokenizer_dir, "paper", shape.name, config, hf, GPT2, True, True, tensor_shapes(config, tied=True)
    )
