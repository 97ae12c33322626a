"""``model_config.yaml``: litgpt's ``Config`` without the rest of litgpt, and ours for GPT-2, which it does not have.

Importing the package ``litgpt`` brings Lightning, torchmetrics and transformers: seconds and 230 MB that a slice or an
export has no use for. ``litgpt/config.py`` itself needs nothing but PyYAML, and is registered under its own name, so
that a later ``import litgpt`` finds the same class.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from inheritune_lit.checkpoint.folder import MODEL_CONFIG, require_checkpoint
from inheritune_lit.errors import UserError

if "litgpt.config" not in sys.modules:
    _package = importlib.util.find_spec("litgpt")
    assert _package and _package.submodule_search_locations
    _file = Path(_package.submodule_search_locations[0]) / "config.py"
    _spec = importlib.util.spec_from_file_location("litgpt.config", _file)
    assert _spec and _spec.loader
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["litgpt.config"] = _module
    _spec.loader.exec_module(_module)

if TYPE_CHECKING:
    from litgpt.config import Config, configs
else:
    Config, configs = sys.modules["litgpt.config"].Config, sys.modules["litgpt.config"].configs


@dataclass
class GPT2Config(Config):
    """litgpt's ``Config`` with what GPT-2 adds; its key ``learned_positions`` marks the file.

    Attributes:
        learned_positions: a learned vector a position is added to the token embedding.
        norm_bias: the norms have biases; released GPT-2 models do, the paper's own do not.
        scale_attn_by_inverse_layer_idx: attention logits of a layer are divided by its position, counted from 1.
        attn_scale_layers: layer numbers, from 0, that scale follows; the own position where None.
    """

    learned_positions: bool = True
    norm_bias: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    attn_scale_layers: list[int] | None = None

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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a litgpt model configuration ({reason}); make the checkpoint again") from error


def save_lit_config(config: Config, folder: Path) -> None:
    """Write a folder's ``model_config.yaml``."""
    (folder / MODEL_CONFIG).write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")


def load_config(checkpoint_dir: Path) -> Config:
    """Read ``model_config.yaml``.

    Raises:
        UserError: the folder is no checkpoint, or the file does not describe a model litgpt knows.
    """
    require_checkpoint(checkpoint_dir)
    return load_lit_config(checkpoint_dir)
