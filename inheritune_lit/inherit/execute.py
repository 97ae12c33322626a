"""A plan carried out: the student's weights written chunk by chunk."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from inheritune_lit.checkpoint.pieces import CHUNK_BYTES, read_piece
from inheritune_lit.checkpoint.torch_writer import write_torch_checkpoint
from inheritune_lit.checkpoint.weights import Weights
from inheritune_lit.inherit.plan import Initialise, Plan
from inheritune_lit.progress import Progress


def execute(plan: Plan, weights: Weights | None, path: Path, progress: Progress) -> list[str]:
    """Write ``lit_model.pth``. Inherited values are the reference's bytes.

    Args:
        plan: what to write.
        weights: the reference's weights; None where the plan inherits nothing.
        path: the file.
        progress: counts bytes.

    Returns:
        Names of student tensors that hold NaN or infinity.

    Raises:
        OSError: the file cannot be written.
    """
    not_finite: set[str] = set()

    def chunks_of(name: str) -> Iterator[torch.Tensor]:
        tensor = plan.tensors[name]
        if isinstance(tensor.source, Initialise):
            chunks = initial_values(tensor.source, tensor.spec.shape, tensor.spec.dtype, plan.seed, name)
        else:
            assert weights, "a plan that inherits"
            chunks = (chunk for piece in tensor.source for chunk in read_piece(weights.tensor(piece.name), piece))
        for chunk in chunks:
            if not _is_finite(chunk):
                not_finite.add(name)
            yield chunk
            progress.update(chunk.nbytes)

    specs = {name: tensor.spec for name, tensor in plan.tensors.items()}
    write_torch_checkpoint(path, specs, plan.aliases, chunks_of)
    return [name for name in specs if name in not_finite]


def initial_values(
    initialise: Initialise, shape: tuple[int, ...], dtype: torch.dtype, seed: int, name: str
) -> Iterator[torch.Tensor]:
    """Fresh values of one tensor as flat chunks, drawn in fp32.

    They depend on the seed and the tensor's name alone, so neither the order of tensors nor what else is inherited
    changes them.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    left, step = torch.Size(shape).numel(), CHUNK_BYTES // 4
    while left:
        count = min(left, step)
        if initialise.kind == "normal":
            yield (torch.randn(count, generator=generator) * initialise.std).to(dtype)
        else:
            yield torch.full((count,), float(initialise.kind == "ones"), dtype=dtype)
        left -= count


def _is_finite(chunk: torch.Tensor) -> bool:
    # One sum is many times faster than a test of every element; it can overflow, so a doubt is settled exactly.
    return bool(chunk.sum().isfinite()) or bool(chunk.isfinite().all())
