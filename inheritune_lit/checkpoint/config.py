"""The two configuration files of a checkpoint: litgpt's ``model_config.yaml`` and transformers' ``config.json``.

Importing the package ``litgpt`` brings Lightning, torchmetrics and transformers: seconds and 230 MB that a slice or an
export has no use for. ``litgpt/config.py`` itself needs nothing but PyYAML, and is registered under its own name, so
that a later ``import litgpt`` finds the same class. GPT-2, which litgpt does not have, gets a subclass.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from inheritune_lit.checkpoint.folder import HF_CONFIG, MODEL_CONFIG, require_checkpoint
from inheritune_lit.errors import UserError, first_line

if "litgpt.config" not in sys.modules:
    _package = find_spec("litgpt")
    assert _package
    _spec = PathFinder.find_spec("litgpt.config", _package.submodule_search_locations)
    assert _spec and _spec.loader
    sys.modules["litgpt.config"] = _module = module_from_spec(_spec)
    _spec.loader.exec_module(_module)

from litgpt.config import Config, configs  # noqa: F401 - finds the module without its package


@dataclass
class GPT2Config(Config):
    """litgpt's ``Config`` with what GPT-2 adds; its key ``learned_positions`` marks the file."""

    learned_positions: bool = True
    """A learned vector per position is added to the token embedding."""
    norm_bias: bool = True
    """The norms have biases; released GPT-2 models do, the paper's own do not."""
    scale_attn_by_inverse_layer_idx: bool = False
    """Attention logits of a layer are divided by its position, counted from 1."""
    attn_scale_layers: list[int] | None = None
    """Layer numbers, from 0, that the scale follows; the own position where None."""

    @property
    def norm_class(self) -> Callable[..., torch.nn.Module]:
        """LayerNorm, with or without bias."""
        return torch.nn.LayerNorm if self.norm_bias else partial(torch.nn.LayerNorm, bias=False)

    def attention_divisor(self, layer: int) -> int:
        """What the attention logits of a layer are divided by, apart from the square root of the head size."""
        if not self.scale_attn_by_inverse_layer_idx:
            return 1
        return (self.attn_scale_layers[layer] if self.attn_scale_layers else layer) + 1


def load_lit_config(checkpoint_dir: Path) -> Config:
    """Read a folder's ``model_config.yaml``.

    Raises:
        UserError: the file does not describe a model.
    """
    path = checkpoint_dir / MODEL_CONFIG
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        return (GPT2Config if "learned_positions" in fields else Config)(**fields)
    except (yaml.YAMLError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{path} is not a litgpt model configuration ({first_line(error)}); make the checkpoint again"
        ) from error


def save_lit_config(config: Config, folder: Path) -> None:
    """Write a folder's ``model_config.yaml``."""
    (folder / MODEL_CONFIG).write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")


def load_config(checkpoint_dir: Path) -> Config:
    """``load_lit_config`` of a folder that must be a whole checkpoint.

    Raises:
        UserError: the folder is not a checkpoint, or the file does not describe a model litgpt knows.
    """
    require_checkpoint(checkpoint_dir)
    return load_lit_config(checkpoint_dir)


def load_hf_config(folder: Path) -> dict[str, Any] | None:
    """The folder's ``config.json``, or None where there is none.

    Raises:
        UserError: the file is not a JSON object.
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


def save_hf_config(hf: dict[str, Any], folder: Path) -> None:
    """Write a folder's ``config.json``."""
    (folder / HF_CONFIG).write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")


def require(hf: dict[str, Any], key: str, kind: type[int] | type[float] = int) -> Any:
    """A positive number of ``config.json``: int for sizes, float for the rest.

    Raises:
        UserError: it is not there, or something else.
    """
    value = hf.get(key)
    if isinstance(value, bool) or not isinstance(value, int | kind) or value <= 0:
        raise UserError(
            f"config.json: {key} is {value!r}, a positive {kind.__name__} is needed; get the reference again"
        )
    return value


_NOT_PER_LAYER = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id")


def trim_lists(hf: dict[str, Any], layers: list[int], depth: int) -> dict[str, Any]:
    """Entries that list one value per layer, reduced to ``layers``."""
    return {
        key: [value[layer] for layer in layers]
        if isinstance(value, list) and len(value) == depth and key not in _NOT_PER_LAYER
        else value
        for key, value in hf.items()
    }
