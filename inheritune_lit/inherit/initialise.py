"""The paper's own GPT-2 models, which are trained from scratch: a shape and GPT-2's tokenizer, no weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.architectures.gpt import GPT2
from inheritune_lit.checkpoint.architectures.sources import qkv_rows
from inheritune_lit.checkpoint.config import Config, GPT2Config
from inheritune_lit.checkpoint.tensors import Piece, select_columns, select_rows, tensor_shapes
from inheritune_lit.errors import UserError
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


def half_width_config(config: Config) -> Config:
    """The configuration at half the width; head size stays.

    Query groups are halved, rounding up, and keep their number of heads; with one group its heads are halved.

    Raises:
        UserError: embedding or MLP size is odd, or the model has experts.
    """
    if config.mlp_class_name == "LLaMAMoE":
        # Half of the experts, or all of them at half their width? The router's choice would be another either way.
        raise UserError("--init half-width is not defined for a mixture of experts; choose another --init")
    for field in ("n_embd", "intermediate_size"):
        if getattr(config, field) % 2:
            raise UserError(f"--init half-width: {field} of the reference is {getattr(config, field)}, which is odd")
    groups = -(-config.n_query_groups // 2)
    heads = groups * (config.n_head // config.n_query_groups) if config.n_query_groups > 1 else -(-config.n_head // 2)
    return replace(
        config,
        n_embd=config.n_embd // 2,
        intermediate_size=config.intermediate_size // 2,
        n_head=heads,
        n_query_groups=groups,
    )


def narrow(module: str, pieces: list[Piece], shape: tuple[int, ...], reference: Config, student: Config) -> list[Piece]:
    """The part of a litgpt tensor that the narrow model keeps.

    Args:
        module: its module, such as "attn.qkv".
        pieces: the reference's tensor.
        shape: the student's tensor.
        reference, student: the two configurations.
    """
    if module == "attn.qkv":
        starts = (0, qkv_rows(reference)[0], sum(qkv_rows(reference)[:2]))
        ranges = [(start, start + rows) for start, rows in zip(starts, qkv_rows(student), strict=True)]
    else:
        ranges = [(0, shape[0])]
    kept = select_rows(pieces, ranges)
    return kept if len(shape) == 1 else select_columns(kept, shape[1])
