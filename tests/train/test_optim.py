"""Optimizers, precision and clipping against fp32 training and torch's own functions."""

from copy import deepcopy

import pytest
import torch
from tiny import SHAPE
from torch.nn import functional as F

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError
from inheritune_lit.model.gpt import build_model
from inheritune_lit.train.args import OptimizerArgs, SpeedArgs, TrainArgs, TrainingArgs
from inheritune_lit.train.loss import TrainingModel
from inheritune_lit.train.optim import LossGuard, MasterWeights, build_optimizer, clip_gradients, learning_rate
from inheritune_lit.train.setup import TrainState


def linear(dtype: torch.dtype) -> torch.nn.Linear:
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 16)
    with torch.no_grad():  # values that bf16 holds exactly, so that both start alike
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return layer.to(dtype)


def train(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    """Steps with gradients that don't depend on the weights, the same in every precision."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in layer.parameters():
            gradient = torch.randn(parameter.shape, generator=generator).bfloat16().to(parameter.dtype) + 1
            (parameter * gradient).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_small_updates_move_bf16_weights_as_they_move_fp32_ones():
    args = OptimizerArgs(lr=1e-6, weight_decay=0.0)
    exact, kept, lost = linear(torch.float32), linear(torch.bfloat16), linear(torch.bfloat16)
    start = exact.weight.detach().clone()
    plain = OptimizerArgs(lr=1e-6, weight_decay=0.0, master_weights=False)
    for layer, given in ((exact, args), (kept, args), (lost, plain)):
        train(layer, build_optimizer(layer, given), 2000)
    moved = (exact.weight - start).abs()
    assert moved.mean() > 1e-3
    assert torch.equal(kept.weight, exact.weight.bfloat16())
    # Without copies most weights never leave their place: an update of 1e-6 is far below half a unit of bf16.
    still = lost.weight.float() == start
    assert still.float().mean() > 0.5
    assert isinstance(build_optimizer(linear(torch.bfloat16), args), MasterWeights)
    assert isinstance(build_optimizer(linear(torch.float32), args), torch.optim.AdamW)


def test_master_weights_continue_from_their_state():
    args = OptimizerArgs(lr=1e-4)
    whole = linear(torch.bfloat16)
    optimizer = build_optimizer(whole, args)
    train(whole, optimizer, 10)
    state = deepcopy(optimizer.state_dict())
    again = linear(torch.bfloat16)
    restored = build_optimizer(again, args)
    restored.load_state_dict(state)
    assert torch.equal(again.weight, whole.weight)
    for layer, used in ((whole, optimizer), (again, restored)):
        used.param_groups[0]["lr"] = 1e-2  # what the schedule does
        train(layer, used, 3, seed=1)
    assert torch.equal(again.weight, whole.weight)
    assert (whole.weight.float() - linear(torch.float32).weight).abs().max() > 1e-2


def test_everything_decays_when_asked():
    layer = linear(torch.float32)
    groups = build_optimizer(layer, OptimizerArgs(decay="all", weight_decay=0.01)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0.01)]


def test_an_optimizer_by_its_path():
    layer = linear(torch.float32)
    args = OptimizerArgs(name="torch.optim.SGD", lr=0.5, weight_decay=0.0, init_args={"momentum": 0.9})
    optimizer = build_optimizer(layer, args)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9
    before = layer.bias.detach().clone()
    layer.bias.grad, layer.weight.grad = torch.ones(16), torch.zeros(16, 16)
    optimizer.step()
    torch.testing.assert_close(layer.bias.detach(), before - 0.5)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (OptimizerArgs(name="lion"), "'lion'; give adamw, adamw8bit or the path"),
        (OptimizerArgs(name="torch.nn.Linear"), "'torch.nn.Linear'; give adamw"),
        (OptimizerArgs(name="nowhere.Adam"), "'nowhere.Adam'; give adamw"),
        (OptimizerArgs(name="torch.optim.SGD", init_args={"speed": 1}), "does not take --optimizer.init_args"),
        (OptimizerArgs(name="adamw8bit"), "needs a CUDA device, this run is on cpu"),
    ],
)
def test_unknown_optimizers_are_one_line(args, told):
    with pytest.raises(UserError, match=told):
        build_optimizer(linear(torch.float32), args)


@pytest.mark.parametrize("name", ["adamw", "torch.optim.SGD"])  # one that is fused, one that is not
@pytest.mark.parametrize("max_norm", [None, 0.5, 1e9])
def test_clipping_is_torchs(name, max_norm):
    args = OptimizerArgs(name=name, lr=1e-2, weight_decay=0.1)
    layer, twin = linear(torch.float32), linear(torch.float32)
    optimizer, plain = build_optimizer(layer, args), build_optimizer(twin, args)
    for step in range(3):
        for parameter, other in zip(layer.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape) / 10**step
            other.grad = parameter.grad.clone()
        norm = clip_gradients(optimizer, max_norm)
        expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), float("inf") if max_norm is None else max_norm)
        torch.testing.assert_close(norm, expected)
        optimizer.step()
        plain.step()
        torch.testing.assert_close(layer.weight, twin.weight, rtol=1e-6, atol=1e-8)


def test_gradients_of_bf16_weights_are_measured_and_added_in_fp32():
    layer, exact = linear(torch.bfloat16), linear(torch.float32)
    optimizer = build_optimizer(layer, OptimizerArgs())
    total, parts = torch.zeros(16, 16), torch.randn(64, 16, 16).bfloat16()
    parts[1:] /= 300  # each below half a unit of the first in bf16
    for part in parts:
        (layer.weight * part).sum().backward()
        total += part.float()
    assert layer.weight.grad is None
    exact.weight.grad = total
    expected = torch.nn.utils.clip_grad_norm_([exact.weight], 1e9)
    torch.testing.assert_close(clip_gradients(optimizer, None), expected)
    assert torch.equal(optimizer.masters[layer.weight].grad, total)
    optimizer.zero_grad()
    assert optimizer.masters[layer.weight].grad is None


@pytest.mark.parametrize("tied", [False, True])
def test_rounding_once_a_step_is_autocast_bit_for_bit(tied):
    """bf16-mixed: two steps of two micro-batches, against fp32 weights that autocast rounds in every forward pass."""
    torch.manual_seed(0)
    plain = build_model(Config(**SHAPE))
    if tied:
        plain.lm_head.weight = plain.transformer.wte.weight
    models, args = [plain, deepcopy(plain)], OptimizerArgs(lr=1e-2)
    optimizers = [build_optimizer(plain, args), build_optimizer(models[1], args, round_linear=True)]
    assert models[1].transformer.h[0].attn.qkv.weight.dtype == torch.bfloat16
    assert models[1].transformer.wte.weight.dtype == torch.float32
    tokens_MBT = torch.randint(0, 60, (4, 2, 9))
    for micro, tokens_BT in enumerate(tokens_MBT):
        losses = []
        for model in models:
            with torch.autocast("cpu", torch.bfloat16):
                losses.append(TrainingModel(model, "plain")(tokens_BT[:, :-1], tokens_BT[:, 1:]))
            losses[-1].backward()
        assert torch.equal(*losses)
        if micro % 2:
            assert torch.equal(*(clip_gradients(optimizer, 1.0) for optimizer in optimizers))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    state = TrainState(models[1], None, optimizers[1])
    for name, tensor in plain.state_dict().items():
        assert torch.equal(state.weights()[name], tensor), name
        assert state.weights()[name].dtype == torch.float32
    # What is saved is what autocast's run saves, so that either continues the other.
    other = build_model(Config(**SHAPE))
    other.lm_head.weight = other.transformer.wte.weight if tied else other.lm_head.weight
    loaded = TrainState(other, None, build_optimizer(other, args, round_linear=True))
    loaded.load_state_dict(plain.state_dict())
    loaded.optimizer.load_state_dict(optimizers[0].state_dict())
    for name, tensor in models[1].state_dict().items():
        assert torch.equal(loaded.weights()[name], state.weights()[name])
        assert torch.equal(other.state_dict()[name], tensor)


def test_the_guard_knows_a_jump_from_noise():
    guard = LossGuard(max_jump=2.0)
    torch.manual_seed(0)
    for step in range(200):
        falling = 10 * 0.98**step + 3
        assert guard.fault(falling + 0.3 * torch.randn(()).item(), 1.0) is None
    assert "jumps" in guard.fault(guard.mean + 2.1, 1.0)
    assert "loss nan" in guard.fault(float("nan"), 1.0)
    assert "gradient norm inf" in guard.fault(3.0, float("inf"))
    assert guard.steps == 200
    assert LossGuard(2.0, **guard.state()) == guard


def test_constant_and_wsd_schedules():
    def rates(schedule: str, decay_steps: int = 0) -> list[float]:
        train = TrainArgs(schedule=schedule, min_lr=0.2, lr_warmup_steps=2, lr_decay_steps=decay_steps)
        return [learning_rate(step, 10, train, lr=1.0) for step in range(10)]

    assert rates("constant") == [0.5, *[1.0] * 9]
    assert rates("wsd", 4) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_fused_loss_equals_plain_cross_entropy(tmp_path):
    from tiny import SHAPE

    from inheritune_lit.checkpoint.config import Config
    from inheritune_lit.data.packed import PADDING
    from inheritune_lit.model.gpt import build_model
    from inheritune_lit.train.loss import TrainingModel

    torch.manual_seed(0)
    gpt = build_model(Config(**{**SHAPE, "block_size": 700}))
    tokens = torch.randint(0, 400, (3, 701))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, 600:] = PADDING
    found = {}
    for kernel in ("plain", "chunked"):  # 2,100 tokens: two whole chunks and a part of one
        gpt.zero_grad()
        loss = TrainingModel(gpt, kernel)(inputs, targets)
        (loss / 2000).backward()
        found[kernel] = loss.detach(), {name: p.grad.clone() for name, p in gpt.named_parameters()}
    expected = F.cross_entropy(gpt(inputs).double().flatten(0, 1), targets.flatten(), reduction="sum").float()
    torch.testing.assert_close(found["plain"][0], expected)
    torch.testing.assert_close(found["chunked"][0], expected)
    for name, grad in found["plain"][1].items():
        torch.testing.assert_close(found["chunked"][1][name], grad, rtol=1e-4, atol=1e-7, msg=name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = [TrainingModel(gpt, kernel)(inputs, targets) for kernel in ("plain", "chunked")]
    torch.testing.assert_close(mixed[0], mixed[1], rtol=1e-3, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(TrainingModel(gpt, "chunked")(inputs, targets), expected)


def test_z_loss_is_the_squared_normaliser():
    from litgpt.model import GPT
    from tiny import SHAPE

    from inheritune_lit.checkpoint.config import Config
    from inheritune_lit.train.loss import TrainingModel

    gpt = GPT(Config(**SHAPE))
    tokens = torch.randint(0, 400, (2, 9))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    extra = TrainingModel(gpt, "plain", z_loss=0.01)(inputs, targets) - TrainingModel(gpt, "plain")(inputs, targets)
    torch.testing.assert_close(extra, 0.01 * gpt(inputs).exp().sum(-1).log().square().sum(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"needs --speed\.loss_kernel plain"):
        TrainingArgs(train=TrainArgs(z_loss=0.01, min_lr=0), speed=SpeedArgs(loss_kernel="chunked"))
