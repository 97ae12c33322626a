"""``config.json`` of transformers, read with care and trimmed with the layers."""

import json
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.folder import HF_CONFIG
from inheritune_lit.errors import UserError


def load_hf_config(folder: Path) -> dict[str, Any] | None:
    """The folder's ``config.json``, or None where there is none.

    Raises:
        UserError: the file is no JSON object.
    """
    path = folder / HF_CONFIG
    if not path.is_file():
        return None
    try:
        hf = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); get it again") from error
    if not isinstance(hf, dict):
        raise UserError(f"{path} holds a {type(hf).__name__}, not an object; get it again")
    return hf


def require(hf: dict[str, Any], key: str, kind: type[int] | type[float] = int) -> Any:
    """A positive number that must be there.

    Args:
        kind: int for sizes, float for the rest.

    Raises:
        UserError: it is not there, or something else.
    """
    value = hf.get(key)
    if isinstance(value, bool) or not isinstance(value, int | kind) or value <= 0:
        raise UserError(
            f"config.json: {key} is {value!r}, a positive {kind.__name__} is needed; get the reference again"
        )
    return value


def require_value(hf: dict[str, Any], key: str, wanted: Any, default: Any) -> None:
    """Refuse a setting that the litgpt model would silently compute differently.

    Raises:
        UserError: ``hf[key]`` is not ``wanted``.
    """
    if (value := hf.get(key, default)) != wanted:
        raise UserError(f"config.json: {key} is {value!r}, only {wanted!r} is supported for this architecture")


_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def gelu_from_hf(hf: dict[str, Any], key: str) -> str:
    """litgpt's ``gelu_approximate`` for an activation name.

    Raises:
        UserError: another activation.
    """
    if (name := hf.get(key)) not in _GELU:
        raise UserError(f"config.json: {key} is {name!r}, only {', '.join(_GELU)} are supported for this architecture")
    return _GELU[name]


def gelu_to_hf(approximate: str) -> str:
    """The activation name for litgpt's ``gelu_approximate``."""
    return "gelu_new" if approximate == "tanh" else "gelu"


_NOT_PER_LAYER = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id")


def trim_lists(hf: dict[str, Any], layers: list[int], depth: int) -> dict[str, Any]:
    """Entries that list one value a layer, reduced to ``layers``."""
    return {
        key: [value[layer] for layer in layers]
        if isinstance(value, list) and len(value) == depth and key not in _NOT_PER_LAYER
        else value
        for key, value in hf.items()
    }
