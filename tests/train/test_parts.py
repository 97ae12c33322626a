"""Schedule, decay groups, plan and validation against closed forms and brute force."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from litgpt.model import GPT
from tiny import SHAPE, make_checkpoint

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.data.sampler import DomainSize, Mixture
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation import held_out
from inheritune_lit.evaluation.held_out import Stopped, block_losses, validate
from inheritune_lit.evaluation.score_cache import ScoreCache
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.model.load import load_model
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, PretrainArgs, TrainArgs
from inheritune_lit.train.optim import build_optimizer, learning_rate
from inheritune_lit.train.plan import plan_run
from inheritune_lit.train.trainable import TrainedModel


def test_cosine_with_warmup_at_known_points():
    def rate(step: int) -> float:
        return learning_rate(step, 110, TrainArgs(min_lr=0.1, lr_warmup_steps=10), lr=1.0)

    assert [rate(0), rate(4), rate(9)] == pytest.approx([0.1, 0.5, 1.0])
    assert rate(59) == pytest.approx(0.55)  # half of the cosine
    assert rate(34) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert rate(109) == pytest.approx(0.1)
    assert all(rate(step) > rate(step + 1) for step in range(9, 109))


def test_no_warmup_starts_at_the_cosine():
    assert learning_rate(0, 2, TrainArgs(min_lr=0.0, lr_warmup_steps=0), lr=1.0) == pytest.approx(0.5)


def test_only_matrices_decay():
    model = GPT(Config(**{**SHAPE, "bias": True, "norm_class_name": "LayerNorm"}))
    groups = build_optimizer(model, OptimizerArgs(weight_decay=0.3)).param_groups
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay_of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay_of[id(parameter)] == (0.0 if "norm" in name or "ln_f" in name or "bias" in name else 0.3)


def test_validation_is_the_mean_over_blocks(packed, tmp_path, tokenizer_dir):
    model = make_checkpoint(tmp_path / "model", tokenizer_dir)
    dataset = PackedDataset(packed, "val", 16)
    with torch.no_grad():
        losses = []
        for number in range(7):
            ids = dataset[number * len(dataset) // 7]
            logprobs_TV = model(torch.from_numpy(ids[None, :-1])).double().log_softmax(-1)[0]
            losses.append(-np.mean([logprobs_TV[t, ids[t + 1]].item() for t in range(16)]))
    result = validate(model, dataset, batch_size=3, max_blocks=7)
    assert result.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert result.stderr == pytest.approx(np.std(losses, ddof=1) / math.sqrt(7), rel=1e-4)
    assert (result.blocks, result.tokens) == (7, 112)
    assert validate(model, dataset, batch_size=5, max_blocks=7).loss == pytest.approx(result.loss, abs=1e-6)
    assert validate(model, dataset, batch_size=64).blocks == len(dataset)
    assert math.isnan(validate(model, dataset, batch_size=1, max_blocks=1).stderr)


def test_losses_of_a_large_vocabulary_keep_their_digits(packed):
    torch.manual_seed(0)
    dataset, tokens, logits_BTV = PackedDataset(packed, "val", 64), 64, 4 * torch.randn(3, 64, 32_000)
    found = block_losses(lambda tokens_BT: logits_BTV, dataset, 3, 3)
    for logits_TV, block, loss in zip(logits_BTV.double(), range(3), found.losses, strict=True):
        targets_T = torch.from_numpy(dataset[block * len(dataset) // 3][1:])
        exact = -logits_TV.log_softmax(-1)[range(tokens), targets_T].sum().item()
        assert loss == pytest.approx(exact, abs=tokens * 1e-5)


def test_batches_whose_losses_are_fetched_together(packed, tmp_path, tokenizer_dir, monkeypatch):
    model, dataset = make_checkpoint(tmp_path / "model", tokenizer_dir), PackedDataset(packed, "val", 16)
    one_by_one = block_losses(model, dataset, 3, 20)
    monkeypatch.setattr(held_out, "batches_per_wait", lambda device: 4)
    kept = ScoreCache(tmp_path / "cache", {})
    asked = []

    def stop() -> bool:
        asked.append(sum(kept.get(name) is not None for name in kept._results))
        return len(asked) == 6

    with pytest.raises(Stopped):
        block_losses(model, dataset, 3, 20, stop=stop, cache=kept)
    # Asked before each of 7 passes; those of the first four were kept together.
    assert asked == [0, 0, 0, 0, 12, 12]
    together = block_losses(model, dataset, 3, 20, stop=lambda: bool(asked.append(0)), cache=kept)
    assert together == one_by_one and len(asked) == 6 + 3


def test_validation_equals_transformers_loss(packed, tmp_path, tokenizer_dir):
    transformers = pytest.importorskip("transformers")
    make_checkpoint(tmp_path / "model", tokenizer_dir)
    state = load_model(tmp_path / "model").state_dict()
    judge = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(tmp_path / "model")).eval()
    q, kv = 32, 16
    theirs = {
        "model.embed_tokens.weight": state["transformer.wte.weight"],
        "model.norm.weight": state["transformer.ln_f.weight"],
        "lm_head.weight": state["lm_head.weight"],
    }
    names = {
        "attn.proj": "self_attn.o_proj",
        "mlp.fc_1": "mlp.gate_proj",
        "mlp.fc_2": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
    }
    for layer in range(2):
        ours, its = f"transformer.h.{layer}", f"model.layers.{layer}"
        for name, value in zip("qkv", state[f"{ours}.attn.qkv.weight"].split([q, kv, kv]), strict=True):
            theirs[f"{its}.self_attn.{name}_proj.weight"] = value
        for name, other in names.items():
            theirs[f"{its}.{other}.weight"] = state[f"{ours}.{name}.weight"]
    judge.load_state_dict(theirs)
    dataset = PackedDataset(packed, "val", 32)
    ids_BT1 = torch.from_numpy(np.stack([dataset[number * len(dataset) // 4] for number in range(4)]))
    with torch.no_grad():
        logits_BTV = judge(ids_BT1[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT1[:, 1:].flatten()).item()
    ours = validate(load_model(tmp_path / "model"), dataset, batch_size=2, max_blocks=4).loss
    assert ours == pytest.approx(expected, abs=1e-5)


OPENLLAMA_13L = Config(
    block_size=2048,
    n_layer=13,
    n_embd=3200,
    n_head=32,
    intermediate_size=8640,
    padded_vocab_size=32000,
    vocab_size=32000,
    rotary_percentage=1.0,
    parallel_residual=False,
    bias=False,
    norm_class_name="RMSNorm",
    mlp_class_name="LLaMAMLP",
)


def test_flops_of_the_papers_model():
    # 6 x 13 x 123,904,000 matrix parameters of the layers, 6 x 32,000 x 3,200 of the head, 6 x 13 x 3,200 x 2,048
    assert flops_per_token(OPENLLAMA_13L, 2048) == 6 * (13 * 123_904_000 + 102_400_000 + 13 * 3200 * 2048)
    assert flops_per_token(OPENLLAMA_13L, 2048) == pytest.approx(10.79e9, rel=1e-3)


def _plan(train: TrainArgs, train_blocks: int = 1000, mixture: Mixture | None = None):
    domains = {"all": DomainSize(train_blocks, train_blocks * (train.max_seq_length or 2048))}
    mixture = mixture or Mixture(domains, None)
    return plan_run(TrainedModel(OPENLLAMA_13L, False, None), train, EvalArgs(), mixture, val_blocks=50)


def test_plan_of_the_papers_run():
    train = TrainArgs(global_batch_size=64, micro_batch_size=8, max_seq_length=2048, epochs=8)
    plan = _plan(train, train_blocks=10**9 // 2048)
    assert plan.tokens_per_step == 131_072
    assert plan.accumulation == 8
    assert plan.total_steps == 8 * (10**9 // 2048) // 64 == 61_035


def test_budgets_mean_the_same_run():
    base = TrainArgs(global_batch_size=10, micro_batch_size=5, max_seq_length=100, lr_warmup_steps=1)
    by_steps = _plan(replace(base, max_steps=200))
    assert by_steps == _plan(replace(base, max_tokens=200_000)) == _plan(replace(base, epochs=2))
    assert _plan(replace(base, max_tokens=200_999)).tokens == 200_000


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"micro_batch_size": 4}, "global_batch_size 10 is not a multiple of --train.micro_batch_size 4"),
        ({"max_steps": None}, "exactly one of .* seen: none"),
        ({"epochs": 1}, "exactly one of .* seen: max_steps 200, epochs 1"),
        ({"max_steps": None, "max_tokens": 999}, "max_tokens 999 makes no optimizer step: a step takes 1,000"),
        ({"max_steps": 0}, "max_steps 0 makes no optimizer step"),
        ({"max_seq_length": 4096}, "max_seq_length is 4096; the model attends to at most 2048"),
        ({"lr_warmup_steps": 200}, "lr_warmup_steps 200 leave no step"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"min_lr": 1.0}, "min_lr is 1.0"),
        ({"max_norm": -1.0}, "max_norm is -1.0"),
    ],
)
def test_contradictions_are_refused(changes, told):
    base = TrainArgs(global_batch_size=10, micro_batch_size=5, max_seq_length=100, lr_warmup_steps=1, max_steps=200)
    with pytest.raises(UserError, match=told):
        _plan(PretrainArgs("start", "data", "run", train=replace(base, **changes)).train)
