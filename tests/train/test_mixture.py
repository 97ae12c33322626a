"""Training on weighted domains and on separate documents."""

import itertools
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from train_command import WEIGHTS, kill_at_step, losses_of, pretrain_command

from inheritune_lit.cli import main
from inheritune_lit.data.megatron import open_documents
from inheritune_lit.data.packed import PADDING, PackedDataset
from inheritune_lit.data.sampler import CYCLE, MixtureSampler, micro_batch_samples
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.held_out import validate
from inheritune_lit.model.load import load_model
from inheritune_lit.train.args import EvalArgs, MixtureArgs, OptimizerArgs
from inheritune_lit.train.metrics import read_metrics
from inheritune_lit.train.optim import build_optimizer, learning_rate


def documents_of(packed: Path, split: str) -> list[np.ndarray]:
    """All documents, domains in order of their names, each in its file's order."""
    documents = []
    for prefix in sorted((packed / split).glob("*.bin")):
        tokens, lengths = open_documents(prefix.with_suffix(""))
        documents += np.split(tokens.astype(np.int64), np.cumsum(lengths)[:-1])
    return documents


def test_a_weighted_run_draws_by_weight(run, mixed, train_args, seen):
    run(data=mixed, mixture=MixtureArgs(WEIGHTS), train=replace(train_args, max_steps=40))
    data = PackedDataset(mixed, "train", 32)
    counts = Counter(data.domains_of(seen))
    assert len(seen) == 320
    for name, weight in WEIGHTS.items():
        assert abs(counts[name] - 320 * weight) < 3.5 * math.sqrt(320 * weight * (1 - weight))
    sampler = MixtureSampler(_domain_blocks(data), 5, {name: round(weight * CYCLE) for name, weight in WEIGHTS.items()})
    assert seen == sampler.blocks(range(320)).tolist()
    assert max(Counter(seen).values()) > 3  # the small domain went round several times, and nothing stopped


def test_a_killed_weighted_run_continues_bit_for_bit(checkpoint, mixed, tmp_path):
    changes = {"mixture__weights": json.dumps(WEIGHTS), "documents": "separate", "train__log_interval": 1}
    assert main(pretrain_command(checkpoint, mixed, tmp_path / "whole", **changes)) == 0
    broken = pretrain_command(checkpoint, mixed, tmp_path / "broken", **changes)
    kill_at_step(17, broken)
    assert torch.load(tmp_path / "broken" / "state.pth", weights_only=True)["counters"]["step"] == 10
    assert main(broken) == 0
    assert losses_of(tmp_path / "broken") == losses_of(tmp_path / "whole")
    weights = [
        torch.load(tmp_path / name / "final" / "lit_model.pth", weights_only=True) for name in ("whole", "broken")
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_separate_documents_equal_a_loop_over_documents(run, checkpoint, mixed, tmp_path, train_args, seen):
    result = run(data=mixed, documents="separate", train=replace(train_args, max_steps=3, max_norm=None))
    model = load_model(checkpoint)
    adamw = build_optimizer(model, OptimizerArgs(lr=3e-3))
    pieces = [
        torch.from_numpy(document[start : start + 33])
        for document in documents_of(mixed, "train")
        for start in range(0, len(document) - 1, 32)
    ]
    assert len(pieces) == len(PackedDataset(mixed, "train", 32, "separate"))
    tokens = 0
    for step, row in enumerate(read_metrics(tmp_path / "run" / "metrics.csv")[1:]):
        chosen = [pieces[block] for block in seen[8 * step : 8 * step + 8]]
        halves = [sum(len(piece) - 1 for piece in half) for half in (chosen[:4], chosen[4:])]
        assert halves[0] != halves[1]  # micro-batches with different numbers of targets
        # Each piece alone and without padding; the mean is over the tokens of the whole step.
        targets = sum(len(piece) - 1 for piece in chosen)
        losses = [-model(p[None, :-1])[0].log_softmax(-1).gather(1, p[1:, None]).sum() for p in chosen]
        loss = sum(losses) / targets
        loss.backward()
        norm = torch.stack([p.grad.pow(2).sum() for p in model.parameters()]).sum().sqrt()
        tokens += targets
        assert float(row["loss"]) == pytest.approx(loss.item(), abs=1e-5)
        assert float(row["grad_norm"]) == pytest.approx(norm.item(), rel=1e-4)
        assert int(row["tokens"]) == tokens
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, 3, train_args, lr=3e-3)
        adamw.step()
        adamw.zero_grad()
    assert result.tokens == tokens < 3 * 8 * 32


def test_ranks_together_see_what_one_rank_sees(mixed):
    data = PackedDataset(mixed, "train", 16, "separate")

    def rank_blocks(rank: int, ranks: int) -> list[int]:
        own = MixtureSampler(_domain_blocks(data), 3)  # a process of its own
        steps = [(step, micro) for step in range(len(data) // 24) for micro in range(24 // (2 * ranks))]
        return [b for step, micro in steps for b in own.blocks(micro_batch_samples(step, micro, 24, 2, rank, ranks))]

    alone = rank_blocks(0, 1)
    assert len(set(alone)) == len(alone) >= len(data) - 24
    for ranks in (2, 3, 4):
        shares = [rank_blocks(rank, ranks) for rank in range(ranks)]
        assert sorted(itertools.chain(*shares)) == sorted(alone)
        assert not any(set(one) & set(other) for one, other in itertools.combinations(shares, 2))


def test_validation_counts_real_targets_by_domain(checkpoint, mixed):
    model = load_model(checkpoint)
    data = PackedDataset(mixed, "val", 32, "separate")
    losses: dict[str, list[tuple[float, int]]] = {}
    with torch.no_grad():
        for block in range(len(data)):
            ids = torch.from_numpy(data[block])
            ids = ids[ids != PADDING]
            logprobs_TV = model(ids[None, :-1]).double().log_softmax(-1)[0]
            loss = -logprobs_TV.gather(1, ids[1:, None]).sum().item()
            losses.setdefault(data.domains_of([block])[0], []).append((loss, len(ids) - 1))
    result = validate(model, data, batch_size=3)
    everything = [pair for own in losses.values() for pair in own]
    assert set(result.domains) == {"code", "talk", "wiki"}
    for own, found in [(everything, result), *((losses[name], result.domains[name]) for name in losses)]:
        total, tokens = sum(loss for loss, _ in own), sum(count for _, count in own)
        assert found.loss == pytest.approx(total / tokens, abs=1e-5)
        assert (found.blocks, found.tokens) == (len(own), tokens)
    # The standard error against a bootstrap over blocks.
    pairs = np.array(everything)
    draws = np.random.default_rng(0).integers(0, len(pairs), (4000, len(pairs)))
    means = pairs[draws, 0].sum(1) / pairs[draws, 1].sum(1)
    assert result.stderr == pytest.approx(means.std(), rel=0.15)


def test_the_result_tells_the_loss_by_domain(run, mixed):
    result = run(data=mixed, eval=EvalArgs(interval=6))
    final, told = result.final, str(result)
    recorded = json.loads((final / "inheritune.json").read_text())["val_domains"]
    whole = validate(load_model(final), PackedDataset(mixed, "val", 32), 4)
    last = read_metrics(final.parent / "metrics.csv")[-1]
    for name, loss in whole.domains.items():
        assert float(last[f"val_loss/{name}"]) == pytest.approx(loss.loss, abs=1e-5)
        assert recorded[name]["loss"] == pytest.approx(loss.loss, abs=1e-5)
        assert f"  {name}: {recorded[name]['loss']:.4f} ± " in told


def test_plan_tells_epochs_by_domain_and_padding(checkpoint, mixed, tmp_path, capsys):
    args = pretrain_command(checkpoint, mixed, tmp_path / "run", mixture__weights="{code: 1, wiki: 1}")
    assert main([*args, "--dry_run"]) == 0
    blocks = {name: size.samples for name, size in PackedDataset(mixed, "train", 16).domains.items()}
    told = capsys.readouterr().err
    assert f"code  50.00% of the samples, {60 / blocks['code']:.2f} epochs of {blocks['code']}" in told
    assert f"wiki  50.00% of the samples, {60 / blocks['wiki']:.2f} epochs of {blocks['wiki']}" in told
    assert f"talk   0.00% of the samples, 0.00 epochs of {blocks['talk']}" in told
    assert main([*args, "--dry_run", "--documents", "separate", "--mixture.weights", "proportional"]) == 0
    data = PackedDataset(mixed, "train", 16, "separate")
    real = data.targets(range(len(data))).mean()
    told = capsys.readouterr().err
    assert f"30 steps of 64 tokens = 1,920 tokens, {1 - real / 16:.1%} of them padding" in told
    assert f"leaves about {int(120 * real):,} tokens" in told


def test_epochs_are_a_budget_of_tokens(checkpoint, mixed, tmp_path, capsys):
    """With weights too: as many tokens as the data has, times the epochs, however they fall on the domains."""
    data = PackedDataset(mixed, "train", 16, "separate")
    changes = {"train__max_steps": None, "train__epochs": 3, "documents": "separate"}
    for weights, per_sample in (
        ("proportional", sum(s.tokens for s in data.domains.values()) / len(data)),
        ("{wiki: 1}", data.domains["wiki"].tokens / data.domains["wiki"].samples),
    ):
        args = pretrain_command(checkpoint, mixed, tmp_path / "run", mixture__weights=weights, **changes)
        assert main([*args, "--dry_run"]) == 0
        steps = int(3 * sum(s.tokens for s in data.domains.values()) / (4 * per_sample) + 1e-9)
        assert f"      {steps:,} steps of 64 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("{code: 1, books: 1}", "names 'books'; the data has the domains code, talk, wiki"),
        ("{code: 1, wiki: -0.5}", "mixture.weights.wiki is -0.5; give 0 or more"),
        ("{code: .nan}", "mixture.weights.code is nan"),
        ("{code: 0, wiki: 0}", "mixture.weights are all 0"),
        ("{}", "mixture.weights is '{}'; give a mapping"),
        ("{code: 1, wiki: 0.00001}", "mixture.weights give wiki 1e-05 of the samples, less than one in 10,000"),
        ("{code: many}", "mixture.weights"),
        ("even", "mixture.weights"),
    ],
)
def test_weights_that_make_no_sense_are_one_line(checkpoint, mixed, tmp_path, capsys, weights, told):
    assert main(pretrain_command(checkpoint, mixed, tmp_path / "run", mixture__weights=weights)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("inheritune: error: ")
    assert told in line
    assert not (tmp_path / "run").exists()


def test_a_weighted_domain_without_a_sample_is_refused(run, mixed, tmp_path, tokenizer_dir):
    data = shutil.copytree(mixed, tmp_path / "data")
    manifest = json.loads((data / "inheritune.json").read_text())
    for suffix in ("bin", "idx"):
        (data / "train" / f"wiki.{suffix}").unlink()
    manifest["domains"]["wiki"]["train"] = {"documents": 0, "tokens": 0}
    (data / "inheritune.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"weights.wiki is 0.5, but wiki has no training sample"):
        run(data=data, mixture=MixtureArgs(WEIGHTS))
    result = run(data=data, mixture=MixtureArgs("uniform"))  # of the domains that are there
    assert result.steps == 12


def _domain_blocks(data: PackedDataset) -> dict[str, int]:
    return {name: size.samples for name, size in data.domains.items()}
