"""Gradient norm and clipping."""

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """Scale gradients down to ``max_norm`` and return their norm before, an fp32 scalar.

    Norms are taken in fp32 whatever the gradients are in: bf16 has two digits. Shards of one parameter on several ranks
    count as the whole.

    Args:
        parameters: those without gradient are left out.
        max_norm: None only measures.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    squares = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in local]).square()
    total = squares.sum()
    if isinstance(gradients[0], DTensor):
        # Over the last dimension of the mesh, which shards; the replicas of a hybrid mesh hold the same.
        mesh = gradients[0].device_mesh
        torch.distributed.all_reduce(total, group=mesh.get_group(mesh.ndim - 1))
    norm = total.sqrt()
    if max_norm is not None:
        # As torch.nn.utils.clip_grad_norm_: no scale above 1, and no division by zero.
        torch._foreach_mul_(local, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
