"""Rotary position settings, Hugging Face <-> litgpt.

transformers 4 writes ``rope_theta`` and ``rope_scaling``; transformers 5 writes both into ``rope_parameters``.
"""

from typing import Any

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_seq_len",
}


def rope_from_hf(hf: dict[str, Any], default_fraction: float = 1.0) -> dict[str, Any]:
    """litgpt's rotary fields.

    Args:
        hf: ``config.json``.
        default_fraction: rotated share of a head where the file does not say.

    Raises:
        UserError: a scaling that litgpt does not compute.
    """
    parameters: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(value := hf.get(key) or {}, dict):
            raise UserError(f"config.json: {key} is {value!r}, not an object; get the reference again")
        parameters |= value
    base = parameters.get("rope_theta", hf.get("rope_theta", hf.get("rotary_emb_base", 10000)))
    fraction = parameters.get(
        "partial_rotary_factor", hf.get("partial_rotary_factor", hf.get("rotary_pct", default_fraction))
    )
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    fields: dict[str, Any] = {
        "rope_base": int(base) if float(base).is_integer() else base,
        "rotary_percentage": fraction,
    }
    if kind in ("default", None):
        return fields
    try:
        if kind == "linear":
            return fields | {"rope_adjustments": {"factor": parameters["factor"]}}
        if kind == "llama3":
            return fields | {"rope_adjustments": {lit: parameters[name] for name, lit in _LLAMA3.items()}}
    except KeyError as error:
        raise UserError(f"config.json: rope type {kind} without {error}; get the reference again") from error
    raise UserError(f"config.json: rope type {kind!r} is not supported (default, linear, llama3 are)")


def rope_to_hf(config: Config, partial: bool = False) -> dict[str, Any]:
    """Entries for ``config.json`` that transformers 4 and 5 both read.

    ``rope_theta`` and ``rope_scaling`` are the old names, ``rope_parameters`` the new one.

    Args:
        config: the model.
        partial: the architecture rotates a part of a head only; ``config.json`` says which.
    """
    base, adjustments = float(config.rope_base), config.rope_adjustments
    scaling: dict[str, Any] = {"rope_type": "default"}
    if adjustments is not None:
        kind = "llama3" if "low_freq_factor" in adjustments else "linear"
        back = {lit: name for name, lit in _LLAMA3.items()}
        scaling = {"rope_type": kind} | {back[name]: value for name, value in adjustments.items()}
    fraction = {"partial_rotary_factor": config.rotary_percentage} if partial else {}
    return {
        **fraction,
        "rope_theta": base,
        "rope_scaling": scaling if adjustments is not None else None,
        "rope_parameters": {"rope_theta": base} | fraction | scaling,
    }
