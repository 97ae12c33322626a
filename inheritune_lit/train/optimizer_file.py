"""The optimizer's state by parameter name, as one run hands it to the next."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import replace_file
from inheritune_lit.train.optim import MasterWeights

OPTIMIZER = "optimizer.pth"
_MASTER = "master"


def save_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write name -> state of every parameter, such as ``exp_avg``, ``exp_avg_sq`` and ``step`` of AdamW.

    Args:
        path: the file; a kill leaves the whole of it or nothing.
        model: whose parameters the optimizer has; not sharded.
    """
    content: dict[str, dict[str, Any]] = {}
    for names, inner, masters in _parts(model, optimizer):
        states = inner.state_dict()["state"]
        content |= {name: dict(states.get(number, {})) for number, name in enumerate(names)}
        for name, master in zip(names, masters, strict=False):
            content[name][_MASTER] = master.detach()
    replace_file(path, lambda aside: torch.save(content, aside))


def load_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give parameters the state saved under their names; those without one start afresh.

    Raises:
        UserError: the file is missing or damaged, or of another optimizer.
    """
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        for names, inner, masters in _parts(model, optimizer):
            state_dict = inner.state_dict()
            saved = {number: dict(content[name]) for number, name in enumerate(names) if content.get(name)}
            copies = {number: state.pop(_MASTER) for number, state in saved.items() if _MASTER in state}
            with torch.no_grad():
                for number, master in enumerate(masters):
                    if number in copies:
                        master.copy_(copies[number])
            inner.load_state_dict({**state_dict, "state": saved})
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} is no optimizer state of this model; give --optimizer_state reset") from error


def _parts(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[list[str], torch.optim.Optimizer, list[torch.Tensor]]]:
    """Plain optimizers with their parameters' names in order, and the fp32 copies where they work on such."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    if isinstance(optimizer, MasterWeights):
        for parameters, inner in optimizer.buckets():
            yield [names[parameter] for parameter in parameters], inner, inner.param_groups[0]["params"]
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    yield [names[parameter] for parameter in parameters], optimizer, []
