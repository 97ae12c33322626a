"""Optimizer state handed to a deeper model."""

import pytest
import torch
from litgpt.model import GPT
from tiny import SHAPE

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError
from inheritune_lit.train.args import OptimizerArgs
from inheritune_lit.train.optim import build_optimizer, load_optimizer, save_optimizer


def trained(n_layer: int, dtype: torch.dtype, steps: int, seed: int = 0):
    """A model and an optimizer that have done some steps on random gradients."""
    torch.manual_seed(seed)
    model = GPT(Config(**{**SHAPE, "n_layer": n_layer})).to(dtype)
    optimizer = build_optimizer(model, OptimizerArgs(lr=1e-3))
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer) -> None:
    for parameter in model.parameters():
        push(parameter)
    optimizer.step()
    optimizer.zero_grad()


def push(parameter) -> None:
    """A random gradient, by a backward pass."""
    (parameter * torch.randn_like(parameter)).sum().backward()


def test_old_layers_keep_their_moments_and_new_ones_begin(tmp_path):
    small, done = trained(2, torch.float32, 7)
    save_optimizer(tmp_path / "optimizer.pth", small, done)
    large, fresh = trained(3, torch.float32, 0, seed=1)
    load_optimizer(tmp_path / "optimizer.pth", large, fresh)
    before = dict(small.named_parameters())
    for name, parameter in large.named_parameters():
        if ".h.2." in name:
            assert parameter not in fresh.state
            continue
        kept, found = done.state[before[name]], fresh.state[parameter]
        assert found.keys() == kept.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(found[key], kept[key]) for key in kept), name
    # Bias correction goes on from step 8 for the old and starts at 1 for the new.
    step(large, fresh)
    steps = {name: fresh.state[parameter]["step"].item() for name, parameter in large.named_parameters()}
    assert {count for name, count in steps.items() if ".h.2." in name} == {1}
    assert {count for name, count in steps.items() if ".h.2." not in name} == {8}


def test_fp32_copies_of_bf16_weights_are_kept_too(tmp_path):
    small, done = trained(2, torch.bfloat16, 5)
    save_optimizer(tmp_path / "optimizer.pth", small, done)
    # The grown model has the old layers' rounded weights.
    large, _ = trained(3, torch.bfloat16, 0, seed=1)
    large.load_state_dict({**large.state_dict(), **small.state_dict()})
    fresh = build_optimizer(large, OptimizerArgs(lr=1e-3))
    load_optimizer(tmp_path / "optimizer.pth", large, fresh)
    weights = {name: parameter.detach().clone() for name, parameter in large.named_parameters()}
    # The same gradients from here on lead both to the same weights, to the last bit.
    for number in range(3):
        for model, optimizer in ((small, done), (large, fresh)):
            for name, parameter in model.named_parameters():
                torch.manual_seed(1000 * number + seed_of(name))
                push(parameter)
            optimizer.step()
            optimizer.zero_grad()
    grown = dict(large.named_parameters())
    for name, parameter in small.named_parameters():
        assert torch.equal(grown[name], parameter), name
        assert not torch.equal(grown[name], weights[name]), name


def seed_of(name: str) -> int:
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(name))


def test_another_models_state_is_refused(tmp_path):
    small, done = trained(2, torch.float32, 1)
    path = tmp_path / "optimizer.pth"
    save_optimizer(path, small, done)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="not an optimizer state of this model"):
        load_optimizer(path, small, done)
