"""fp32 copies of bf16 parameters: the optimizer works on the copies, so that small updates are not rounded away."""

from collections.abc import Callable
from typing import Any

import torch

Groups = list[dict[str, Any]]


class MasterWeights(torch.optim.Optimizer):
    """An optimizer over fp32 copies of low-precision parameters.

    bf16 has 8 bits of precision: an update below 1/256 of a weight is lost when it is added to it. Here it is added to
    the copy, and the weight is the copy rounded.

    Args:
        groups: parameter groups of the low-precision parameters, with their options.
        build: makes the optimizer from groups of the copies with the same options.
    """

    def __init__(self, groups: Groups, build: Callable[[Groups], torch.optim.Optimizer]) -> None:
        copies = [{**group, "params": [_copy(parameter) for parameter in group["params"]]} for group in groups]
        self.inner = build(copies)
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of the inner optimizer on the copies, which are then rounded into the parameters."""
        for group, inner_group in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner_group.update({name: value for name, value in group.items() if name != "params"})
            for parameter, master in zip(group["params"], inner_group["params"], strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
        self.inner.step()
        for group, inner_group in zip(self.param_groups, self.inner.param_groups, strict=True):
            for parameter, master in zip(group["params"], inner_group["params"], strict=True):
                parameter.copy_(master)
                master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, and the copies in the order of the groups."""
        masters = [master for group in self.inner.param_groups for master in group["params"]]
        return {"inner": self.inner.state_dict(), "masters": [master.detach() for master in masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state over; the parameters become the rounded copies."""
        self.inner.load_state_dict(state_dict["inner"])
        saved = iter(state_dict["masters"])
        for group, inner_group in zip(self.param_groups, self.inner.param_groups, strict=True):
            for parameter, master in zip(group["params"], inner_group["params"], strict=True):
                master.copy_(next(saved))
                parameter.copy_(master)


def _copy(parameter: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(parameter.detach().float().clone())
