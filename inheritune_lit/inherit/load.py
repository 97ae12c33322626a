"""Any reference as a litgpt model, without writing a converted copy."""

from pathlib import Path

import torch

from inheritune_lit.checkpoint.tensors import read_piece
from inheritune_lit.checkpoint.weights import Weights, open_weights
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import ReferenceModel, attach_weights, open_reference
from inheritune_lit.model.gpt import Transformer, build_model
from inheritune_lit.model.load import with_weights


def load_reference(folder: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Transformer:
    """Build the model of a Hugging Face folder; a tied head stays tied.

    Args:
        folder: safetensors or ``pytorch_model.bin`` files beside a ``config.json``.
        dtype: floating-point type of the parameters; as stored when None. RoPE tables stay fp32.
        device: where the parameters go.

    Raises:
        UserError: the folder is no checkpoint, its architecture is not supported, or its weights and its configuration
            disagree.
    """
    reference = open_reference(folder, org="local")
    return build_reference(reference, attach_weights(reference, open_weights(folder)), dtype, device)


def build_reference(
    reference: ReferenceModel,
    weights: Weights,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Transformer:
    """``load_reference`` of a reference that is open already.

    Args:
        reference: the opened reference.
        weights: all of its weights.

    Raises:
        UserError: a tensor is missing.
    """
    if missing := sorted(reference.stored_shapes().keys() - weights.specs.keys()):
        raise UserError(
            f"{reference.folder} does not fit its configuration ({reference.config.n_layer} layers): {len(missing)} "
            f"tensors are missing, such as {missing[0]}; get the checkpoint again"
        )
    with torch.device("meta"):
        model = build_model(reference.config)
    state = {name: read_tensor(reference, weights, name) for name in reference.shapes}
    return with_weights(model, state, reference.tied, dtype, device)


def read_tensor(reference: ReferenceModel, weights: Weights, name: str) -> torch.Tensor:
    """A litgpt tensor of a reference on the CPU as stored: zeros for a bias that the checkpoint does not have."""
    shape, pieces = reference.shapes[name], reference.pieces(name)
    if pieces is None:
        return torch.zeros(shape)
    tensor = torch.empty(shape, dtype=weights.specs[pieces[0].name].dtype)
    row = 0
    for piece in pieces:
        for chunk in read_piece(weights.tensor(piece.name), piece):
            tensor[row : row + len(chunk)] = chunk
            row += len(chunk)
    return tensor
