"""Any reference as a litgpt model, without writing a converted copy."""

from pathlib import Path

import torch

from inheritune_lit.inherit.reference import ReferenceModel, ResolvedReference, open_reference
from inheritune_lit.model.gpt import Transformer, build_model
from inheritune_lit.model.load import with_weights


def load_reference(folder: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Transformer:
    """Build a folder's model in a dtype, as stored when None, tied as it is; one that misfits is a ``UserError``."""
    resolved = ResolvedReference(open_reference(folder, "local"), str(folder)).open()
    return build_reference(resolved.reference, dtype, device)


def build_reference(
    reference: ReferenceModel, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """``load_reference`` of a reference that is open already, with all of its weights."""
    with torch.device("meta"):
        model = build_model(reference.config)
    state = {name: reference.tensor(name) for name in reference.shapes}
    return with_weights(model, state, reference.tied, dtype, device)
