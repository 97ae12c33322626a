"""Training a part of a model: which one, its bits and costs, against plain torch loops and torch's own counters."""

from dataclasses import replace

import pytest
import torch
from test_devices import two_ranks
from tiny import SHAPE, make_checkpoint
from torch.utils.flop_counter import FlopCounterMode
from train_command import kill_at_step, losses_of, pretrain_command

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.cli import main
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.data.sampler import MixtureSampler
from inheritune_lit.errors import UserError
from inheritune_lit.model.flops import flops_per_token, layers_reached
from inheritune_lit.model.gpt import build_model
from inheritune_lit.model.load import is_tied, load_model, load_state
from inheritune_lit.train.args import OptimizerArgs
from inheritune_lit.train.loss import TrainingModel
from inheritune_lit.train.optim import build_optimizer, learning_rate
from inheritune_lit.train.trainable import TrainedModel

THREE = Config(**{**SHAPE, "n_layer": 3})
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def names_of(gpt: torch.nn.Module) -> list[str]:
    return [name for name, _ in gpt.named_parameters(remove_duplicate=False)]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ("lm_head", lambda name: name == HEAD),
        (
            "lm_head, ln_f,h.1-2",
            lambda name: name.startswith(("lm_head", "transformer.ln_f", "transformer.h.1", "transformer.h.2")),
        ),
        ("h.last:2", lambda name: name.startswith(("transformer.h.1.", "transformer.h.2."))),
        ("transformer.h.0+2.attn", lambda name: name.startswith(("transformer.h.0.attn.", "transformer.h.2.attn."))),
        ("h.*.mlp.fc_*", lambda name: ".mlp.fc_" in name),
        ("h,wte", lambda name: name.startswith("transformer.h.") or name == EMBEDDING),
        (None, lambda name: True),
    ],
)
def test_patterns_name_parts_of_the_model(patterns, chosen):
    gpt = build_model(THREE)
    model = TrainedModel.of(gpt, patterns)
    assert model.names == {name for name in names_of(gpt) if chosen(name)}
    model.freeze(gpt)
    assert model.count(trained=True) == sum(each.numel() for each in gpt.parameters() if each.requires_grad)
    assert model.count() == sum(each.numel() for each in gpt.parameters())


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (
            "lmhead,ln_f",
            "'lmhead' names nothing of the model; it has wte, ln_f, lm_head and h.0-2 with norm_1, attn.qkv",
        ),
        ("h.1.attention", "'h.1.attention' names nothing"),
        ("", "'' names nothing"),
        ("h.0,", "'' names nothing"),
        ("h.12-14", r"--train.trainable h.12-14 names layer 14; the model has layers 0 to 2"),
        ("h.last:4", r"--train.trainable h.last:4 asks for 4 layers; the model has 3"),
        ("h.x", r"--train.trainable h.x: x is not understood; use first:n"),
    ],
)
def test_what_names_nothing_is_one_line(patterns, told):
    with pytest.raises(UserError, match=told):
        TrainedModel(THREE, False, patterns).count(trained=True)


def test_a_tied_head_is_the_embedding():
    gpt = build_model(THREE)
    gpt.lm_head.weight = gpt.transformer.wte.weight
    for one in ("lm_head", "wte"):
        model = TrainedModel.of(gpt, one)
        assert model.names == {HEAD, EMBEDDING} and model.count(trained=True) == 400 * 32
        assert "the head is the embedding, so the backward pass goes through 3 of 3 layers" in str(model)


def frozen_and_trained(start, final, model: TrainedModel) -> None:
    before, after = load_state(start), load_state(final)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name]) == (name not in model.names), name


@pytest.mark.parametrize(("tied", "precision"), [(False, "32-true"), (True, "bf16-mixed")])
def test_frozen_weights_keep_their_bits_though_killed(tied, precision, packed, tmp_path, tokenizer_dir):
    """The start's weights are fp32 and no bf16 numbers, so holding them in bf16 would show."""
    start = tmp_path / "start"
    make_checkpoint(start, tokenizer_dir, tied=tied)
    changes = {"train__trainable": "h.1.mlp,ln_f", "precision": precision, "train__max_steps": 12, "eval__interval": 6}
    changes |= {"train__save_interval": 4, "train__lr_warmup_steps": 2}
    whole = pretrain_command(start, packed, tmp_path / "whole", **changes)
    assert main(whole) == 0
    killed = pretrain_command(start, packed, tmp_path / "killed", **changes)
    kill_at_step(6, killed)
    state = torch.load(tmp_path / "killed" / "state.pth", weights_only=True)
    model = TrainedModel.of(load_model(start), "h.1.mlp,ln_f")
    moments = state["optimizer"]["state"].values()
    assert state["model"].keys() == model.names
    assert sum(each["exp_avg"].numel() for each in moments) == model.count(trained=True) == 3 * 32 * 48 + 32
    assert main(killed) == 0
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")
    for run in ("whole", "killed"):
        frozen_and_trained(start, tmp_path / run / "final", model)
        assert is_tied(load_state(tmp_path / run / "final")) == tied
    one, two = (load_state(tmp_path / run / "final") for run in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "precision"), [("ddp", "bf16-mixed"), ("fsdp", "32-true"), ("fsdp", "bf16-mixed")]
)
def test_two_ranks_train_a_part_as_one_does(strategy, precision, checkpoint, packed, tmp_path):
    args = {"train__max_steps": 8, "precision": precision, "train__trainable": "lm_head,h.last:1.attn"}
    assert main(pretrain_command(checkpoint, packed, tmp_path / "one", **args)) == 0
    args |= {"devices": 2, "strategy": strategy}
    stopped = two_ranks(pretrain_command(checkpoint, packed, tmp_path / "two", **args, train__max_time=0.001))
    assert stopped.returncode == 0 and "stopped after step 1, saved" in stopped.stdout, stopped.stderr
    done = two_ranks(pretrain_command(checkpoint, packed, tmp_path / "two", **args))
    assert done.returncode == 0, done.stderr
    model = TrainedModel.of(load_model(checkpoint), "lm_head,h.last:1.attn")
    one, two = (load_state(tmp_path / run / "final") for run in ("one", "two"))
    for run in ("one", "two"):
        frozen_and_trained(checkpoint, tmp_path / run / "final", model)
    rtol = 1e-3 if precision == "32-true" else 0.02
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=rtol, atol=2e-3)


def test_a_part_is_trained_as_a_plain_loop_does(run, checkpoint, packed, tmp_path, train_args):
    patterns = "lm_head,ln_f,h.1.attn"
    run(train=replace(train_args, max_steps=4, trainable=patterns, max_norm=0.5))
    model = load_model(checkpoint)
    data = PackedDataset(packed, "train", 32)
    sampler = MixtureSampler({"easy": len(data)}, seed=5)
    chosen = ("lm_head", "transformer.ln_f", "transformer.h.1.attn")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(chosen)
    trained = [each for each in model.parameters() if each.requires_grad]
    matrices, vectors = ([each for each in trained if (each.dim() > 1) == two] for two in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    for step in range(4):
        ids = torch.stack([torch.from_numpy(data[sampler[i]]) for i in range(8 * step, 8 * step + 8)])
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 4, replace(train_args, max_steps=4), lr=3e-3)
        optimizer.step()
        optimizer.zero_grad()
    final = load_state(tmp_path / "run" / "final")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(final[name], parameter.detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("speed", ["activation_checkpointing", pytest.param("compile", marks=pytest.mark.slow)])
def test_recomputed_or_compiled_it_is_the_same(speed, checkpoint, packed, tmp_path):
    args = {
        "train__trainable": "lm_head,h.1.attn",
        "precision": "bf16-mixed",
        "train__max_steps": 6,
        "eval__interval": 6,
    }
    args |= {"train__log_interval": 1, "speed__loss_kernel": "plain"}
    assert main(pretrain_command(checkpoint, packed, tmp_path / "plain", **args)) == 0
    assert main(pretrain_command(checkpoint, packed, tmp_path / "other", **args, **{f"speed__{speed}": "true"})) == 0
    one, two = (
        [float(loss) for row in losses_of(tmp_path / run) for loss in row[2:] if loss] for run in ("plain", "other")
    )
    assert two == pytest.approx(one, rel=1e-3)
    model = TrainedModel.of(load_model(checkpoint), args["train__trainable"])
    frozen_and_trained(checkpoint, tmp_path / "other" / "final", model)


@pytest.mark.parametrize("patterns", [None, "lm_head", "h.1.mlp", "h.2", "lm_head,ln_f", "wte", "h.0.attn.qkv,lm_head"])
@pytest.mark.parametrize("kernel", ["plain", "chunked"])
def test_gradients_are_those_of_the_whole_model(kernel, patterns):
    torch.manual_seed(0)
    gpt = build_model(THREE)
    tokens_BT = torch.randint(0, 400, (2, 33))
    TrainingModel(gpt, "plain")(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
    whole = {name: each.grad for name, each in gpt.named_parameters()}
    gpt.zero_grad()
    model = TrainedModel.of(gpt, patterns)
    model.freeze(gpt)
    TrainingModel(gpt, kernel)(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
    for name, parameter in gpt.named_parameters():
        if name in model.names:
            torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-6)
        else:
            assert parameter.grad is None
    optimizer = build_optimizer(gpt, OptimizerArgs())
    assert sum(each.numel() for group in optimizer.param_groups for each in group["params"]) == model.count(
        trained=True
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "patterns",
    [
        None,
        "lm_head",
        "ln_f",
        "wte",
        "h.1.mlp",
        "h.1.mlp.proj",
        "h.1.attn.proj",
        "h.1.norm_2",
        "h.last:2,lm_head",
        "h.0+2.attn",
    ],
)
def test_flops_are_those_of_torchs_counter(patterns, tied):
    gpt = build_model(THREE)
    if tied:
        gpt.lm_head.weight = gpt.transformer.wte.weight
    model = TrainedModel.of(gpt, patterns)
    model.freeze(gpt)
    tokens_BT = torch.zeros(2, 33, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        TrainingModel(gpt, "plain")(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
    products = sum(count for name, count in counter.get_flop_counts()["Global"].items() if "mm" in str(name))
    assert model.flops_per_token(0) == products / 64  # no tokens to attend to: matrices alone
    attention = model.flops_per_token(32) - model.flops_per_token(0)
    reached = layers_reached(model.config, model.names)
    reached -= patterns in ("h.1.mlp", "h.1.mlp.proj", "h.1.attn.proj", "h.1.norm_2")  # above the lowest attention
    assert attention == (2 * 3 + 4 * reached) * 32 * 32
    assert patterns or model.flops_per_token(32) == flops_per_token(THREE, 32)


def test_another_part_does_not_continue_a_run(checkpoint, packed, tmp_path, capsys):
    args = {"train__trainable": "lm_head", "train__max_time": 0.001}
    command = pretrain_command(checkpoint, packed, tmp_path / "run", **args)
    assert main(command) == 0
    parameters = 400 * 32
    told = capsys.readouterr().err
    assert f"trains {parameters:,} of" in told and "lm_head; the backward pass goes through 0 of 2 layers" in told
    for other in ("lm_head,ln_f", None):
        assert main(pretrain_command(checkpoint, packed, tmp_path / "run", train__trainable=other)) == 2
        assert "was started with train.trainable 'lm_head', not" in capsys.readouterr().err
    assert main(pretrain_command(checkpoint, packed, tmp_path / "other", train__trainable="head")) == 2
    assert "'head' names nothing of the model; it has" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
