"""Any reference as a litgpt model, without writing a converted copy."""

from pathlib import Path

import torch

from inheritune_lit.checkpoint.tensors import read_piece
from inheritune_lit.inherit.reference import ReferenceModel, open_reference
from inheritune_lit.inherit.resolve import ResolvedReference
from inheritune_lit.model.gpt import Transformer, build_model
from inheritune_lit.model.load import with_weights


def load_reference(folder: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Transformer:
    """Build the model of a Hugging Face folder; a tied head stays tied.

    Args:
        folder: safetensors or ``pytorch_model.bin`` files beside a ``config.json``.
        dtype: floating-point type of the parameters; as stored when None. RoPE tables stay fp32.
        device: where the parameters go.

    Raises:
        UserError: the folder is not a checkpoint, its architecture is not supported, or its weights do not fit its
            configuration.
    """
    return build_reference(
        ResolvedReference(open_reference(folder, "local"), str(folder)).open().reference, dtype, device
    )


def build_reference(
    reference: ReferenceModel, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """``load_reference`` of a reference that is open already, with all of its weights."""
    with torch.device("meta"):
        model = build_model(reference.config)
    state = {name: read_tensor(reference, name) for name in reference.shapes}
    return with_weights(model, state, reference.tied, dtype, device)


def read_tensor(reference: ReferenceModel, name: str) -> torch.Tensor:
    """A litgpt tensor of a reference on the CPU as stored: zeros for a bias that the checkpoint does not have."""
    shape, pieces, weights = reference.shapes[name], reference.pieces(name), reference.weights
    if pieces is None:
        return torch.zeros(shape)
    assert weights, "an opened reference"
    tensor = torch.empty(shape, dtype=weights.specs[pieces[0].name].dtype)
    row = 0
    for piece in pieces:
        for chunk in read_piece(weights.tensor(piece.name), piece):
            tensor[row : row + len(chunk)] = chunk
            row += len(chunk)
    return tensor
