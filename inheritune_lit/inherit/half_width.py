"""The paper's half-width baseline: half the embedding, the heads and the MLP, every tensor's upper left part.

Table 10 of the paper lists the variant with half the hidden size (1280 -> 640, 20 -> 10 heads of size 64).
"""

from dataclasses import replace

from inheritune_lit.checkpoint.architectures.sources import qkv_rows
from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.checkpoint.pieces import Piece, select_columns, select_rows
from inheritune_lit.errors import UserError


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
