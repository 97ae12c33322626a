"""fp32 copies of bf16 parameters: the optimizer works on the copies, so that small updates are not rounded away."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

Groups = list[dict[str, Any]]
BUCKET_ELEMENTS = 1 << 27
"""Parameters whose fp32 gradients are in memory at a time: half a GB."""


class MasterWeights(torch.optim.Optimizer):
    """An optimizer over fp32 copies of low-precision parameters.

    bf16 has 8 bits of precision: an update below 1/256 of a weight is lost when it is added to it. Here it is added to
    the copy, and the weight is the copy rounded. Parameters are stepped in buckets, each with an optimizer of its own,
    so that only one bucket's gradients exist in fp32.

    Args:
        groups: parameter groups of the low-precision parameters, with their options.
        build: makes the optimizer from groups of the copies with the same options. What it does to one parameter must
            not depend on the others.
    """

    def __init__(self, groups: Groups, build: Callable[[Groups], torch.optim.Optimizer]) -> None:
        super().__init__(groups, {})
        self._buckets: list[tuple[dict[str, Any], list[torch.nn.Parameter], torch.optim.Optimizer]] = []
        for group in self.param_groups:
            for bucket in _buckets(group["params"]):
                copies = [torch.nn.Parameter(parameter.detach().float().clone()) for parameter in bucket]
                self._buckets.append((group, bucket, build([{**group, "params": copies}])))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # what it takes no closure for
        """One step of the inner optimizers on the copies, which are then rounded into the parameters."""
        for group, bucket, inner in self._buckets:
            options = inner.param_groups[0]
            options.update({name: value for name, value in group.items() if name != "params"})
            for parameter, master in zip(bucket, options["params"], strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
            inner.step()
            for parameter, master in zip(bucket, options["params"], strict=True):
                parameter.copy_(master)
                master.grad = None

    def buckets(self) -> Iterator[tuple[list[torch.nn.Parameter], torch.optim.Optimizer]]:
        """The low-precision parameters of each bucket, and the optimizer over their copies, in the same order."""
        return ((parameters, inner) for _, parameters, inner in self._buckets)

    def state_dict(self) -> dict[str, Any]:
        """State and copies of every bucket."""
        return {
            "buckets": [
                {"optimizer": inner.state_dict(), "masters": [p.detach() for p in inner.param_groups[0]["params"]]}
                for _, _, inner in self._buckets
            ]
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state over; the parameters become the rounded copies."""
        for (_, bucket, inner), state in zip(self._buckets, state_dict["buckets"], strict=True):
            inner.load_state_dict(state["optimizer"])
            masters = inner.param_groups[0]["params"]
            for parameter, master, saved in zip(bucket, masters, state["masters"], strict=True):
                master.copy_(saved)
                parameter.copy_(master)


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    elements = 0
    for parameter in parameters:
        if bucket and elements + parameter.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
        bucket.append(parameter)
        elements += parameter.numel()
    if bucket:
        yield bucket
