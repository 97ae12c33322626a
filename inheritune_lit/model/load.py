"""litgpt checkpoints into litgpt models."""

from pathlib import Path

import torch

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.folder import MODEL_CONFIG, WEIGHTS, require_checkpoint
from inheritune_lit.checkpoint.tensors import EMBEDDING, HEAD, mismatch
from inheritune_lit.checkpoint.weights import load_torch_file
from inheritune_lit.errors import UserError
from inheritune_lit.model.gpt import Transformer, build_model


def load_state(checkpoint_dir: Path) -> dict[str, torch.Tensor]:
    """Map ``lit_model.pth`` into memory, read when used; damage, or more than tensors in it, is a ``UserError``."""
    require_checkpoint(checkpoint_dir)
    return load_torch_file(checkpoint_dir / WEIGHTS)


def is_tied(state: dict[str, torch.Tensor]) -> bool:
    """Whether the token embedding and the head are one tensor: they share their storage in the file."""
    return {EMBEDDING, HEAD} <= state.keys() and state[EMBEDDING].data_ptr() == state[HEAD].data_ptr()


def load_model(
    checkpoint_dir: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """Build a litgpt checkpoint's model with its weights; a tied head stays tied.

    The parameters have a dtype, as stored when None; RoPE tables stay fp32. A folder that is not a checkpoint, or whose
    weights and ``model_config.yaml`` disagree, is a ``UserError``.
    """
    config, state = load_config(checkpoint_dir), load_state(checkpoint_dir)
    with torch.device("meta"):
        model = build_model(config)
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.items()} for each in (model.state_dict(), state)]
    if complaint := mismatch(*shapes):
        raise UserError(
            f"{checkpoint_dir / WEIGHTS} does not fit {MODEL_CONFIG} ({config.n_layer} layers): {complaint}; "
            "make the checkpoint again"
        )
    return with_weights(model, state, is_tied(state), dtype, device)


def with_weights(
    model: Transformer,
    state: dict[str, torch.Tensor],
    tied: bool,
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> Transformer:
    """Give a model that was built on the meta device its weights; a tied head may be left out of ``state``."""
    model.load_state_dict(state if HEAD in state else {**state, HEAD: state[EMBEDDING]}, strict=True, assign=True)
    # RoPE tables are buffers: the meta model's hold nothing, and a cast would round their angles.
    model.cos = model.sin = None
    model.to(device=device, dtype=dtype)
    if tied:
        model.lm_head.weight = model.transformer.wte.weight
    model.cos, model.sin = model.rope_cache(device=torch.device(device))
    return model
