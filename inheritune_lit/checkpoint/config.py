"""The two configuration files of a checkpoint: litgpt's ``model_config.yaml`` and transformers' ``config.json``.

Importing the package ``litgpt`` brings Lightning, torchmetrics and transformers: seconds and 230 MB that a slice or an
export has no use for. ``litgpt/config.py`` itself needs nothing but PyYAML, and is registered under its own name, so
that a later ``import litgpt`` finds the same class. GPT-2, which litgpt does not have, gets a subclass.
"""

import json
import math
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
from inheritune_lit.io.reading import read_json, read_yaml
from inheritune_lit.io.records import to_record

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

    learned_positions: bool = True  # a learned vector per position is added to the token embedding
    norm_bias: bool = True  # the norms have biases; released GPT-2 models do, the paper's own do not
    scale_attn_by_inverse_layer_idx: bool = False  # attention logits of a layer are divided by its position, from 1
    attn_scale_layers: list[int] | None = None  # layer numbers, from 0, that the scale follows; their position if None

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
    """Read a folder's ``model_config.yaml``; one that does not describe a model is a ``UserError``."""
    path = checkpoint_dir / MODEL_CONFIG
    what, remedy = "a litgpt model configuration", "make the checkpoint again"
    fields = read_yaml(path, what, remedy)
    kind = GPT2Config if "learned_positions" in fields else Config
    base = fields.get("rope_base")
    whole = {"rope_base": int(base)} if isinstance(base, float) and math.isfinite(base) else {}
    config = make_config(lambda: to_record(fields | whole, kind, path, what, remedy), fields, path, remedy)
    config.rope_base = base if whole else config.rope_base
    return config


_SIZES = (
    *("block_size", "n_layer", "n_embd", "n_head", "head_size", "n_query_groups", "vocab_size", "padded_vocab_size"),
    *("padding_multiple", "intermediate_size", "moe_intermediate_size"),
)
MOST_BLOCKS = 50_000  # layers times experts: the largest known model has 23,000, a billion would fill the memory


def make_config(make: Callable[[], Config], fields: dict[str, Any], path: Path, remedy: str) -> Config:
    """The configuration that ``make`` builds of fields which others wrote; an impossible one is a ``UserError``.

    Sizes are checked before, as litgpt's ``Config`` makes lists of them.
    """
    try:
        for name in _SIZES:
            size = fields.get(name)
            if size is not None and not (type(size) is int and size > 0):
                raise ValueError(f"{name} is {size!s:.40}, a positive number is needed")
        layers, experts = (fields.get(name) or 1 for name in ("n_layer", "n_expert"))
        if not (type(experts) is int and 0 < experts * layers <= MOST_BLOCKS):
            raise ValueError(f"{layers} layers of {experts!s:.40} experts or MLPs are more than {MOST_BLOCKS:,}")
        config = make()
        numbers = {name: value for name, value in asdict(config).items() if isinstance(value, float)}
        for name, value in {**numbers, **(config.rope_adjustments or {})}.items():
            if not (type(value) in (int, float) and math.isfinite(value)):
                raise ValueError(f"{name} is {value}")
        if not 0 <= config.rotary_percentage <= 1:
            raise ValueError(f"rotary_percentage is {config.rotary_percentage}")
    except (AssertionError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{path} describes no possible model ({first_line(error)}); {remedy}") from error
    return config


def save_lit_config(config: Config, folder: Path) -> None:
    """Write a folder's ``model_config.yaml``."""
    (folder / MODEL_CONFIG).write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")


def load_config(checkpoint_dir: Path) -> Config:
    """``load_lit_config`` of a folder that must be a whole checkpoint, else it is a ``UserError``."""
    require_checkpoint(checkpoint_dir)
    return load_lit_config(checkpoint_dir)


def load_hf_config(folder: Path) -> dict[str, Any] | None:
    """The folder's ``config.json``, or None where there is none; one that is not a JSON object is a ``UserError``."""
    path = folder / HF_CONFIG
    return read_json(path, remedy="get it again") if path.is_file() else None


def save_hf_config(hf: dict[str, Any], folder: Path) -> None:
    """Write a folder's ``config.json``."""
    (folder / HF_CONFIG).write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")


def require(hf: dict[str, Any], key: str, kind: type[int] | type[float] = int) -> Any:
    """A positive number of ``config.json``: int for sizes, float for the rest. Something else is a ``UserError``."""
    value = hf.get(key)
    if isinstance(value, bool) or not isinstance(value, int | kind) or value <= 0:
        raise UserError(f"config.json: {key} is {value!r}, a positive {kind.__name__} is needed; get it again")
    return value


_SHAPES = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "max_window_layers"),
    *("hidden_size", "n_embd", "d_model", "head_dim", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    *("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads", "n_head_kv"),
)


def carried(hf: dict[str, Any]) -> dict[str, Any]:
    """What another model keeps of a ``config.json``: plain values and token ids; sizes are stated anew.

    Objects and lists name files, methods, layers or shapes that are not there any more; null is not read everywhere.
    """
    return {
        key: value
        for key, value in hf.items()
        if key.endswith("_token_id") or (isinstance(value, str | int | float) and key[:1] != "_" and key not in _SHAPES)
    }


_QUANTIZED = ("quantization_config", "quantization", "compression_config")


def refuse_quantized(hf: dict[str, Any], path: Path) -> None:
    """Refuse the ``config.json`` of quantised weights, before anything is made of them; the method is named."""
    if key := next((key for key in _QUANTIZED if hf.get(key)), None):
        stated = hf[key] if isinstance(hf[key], dict) else {}
        method = stated.get("quant_method") or stated.get("quant_algo") or stated.get("mode") or "an unnamed method"
        remedy = f"give the floating-point checkpoint, or remove {key} where its weights are not quantised"
        raise UserError(f"{path}: the weights are quantised by {method} ({key}), which is not supported; {remedy}")
