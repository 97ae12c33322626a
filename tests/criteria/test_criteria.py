"""Slices by several criteria, healed alike: what is chosen, what it costs, and a kill in between."""

import json
import math
import signal
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread
from synthetic_analysis import make_analysis
from tiny import make_checkpoint, make_packed

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.layers import layers_text, parse_layers
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.studies.ablate import compare_criteria, select_layers
from inheritune_lit.studies.ablate_args import HealingArgs
from inheritune_lit.studies.ablate_outcome import Healed, spreads
from inheritune_lit.train import loop
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, TrainArgs

STEPS = 6
HEALING = HealingArgs(
    n=2,
    seeds=[1, 2],
    criteria=["first", "last", "avg-rank", "random"],
    train=TrainArgs(
        global_batch_size=4,
        micro_batch_size=4,
        max_steps=STEPS,
        max_seq_length=16,
        lr_warmup_steps=2,
        min_lr=1e-4,
        save_interval=2,
    ),
    eval=EvalArgs(interval=3, max_iters=2),
    optimizer=OptimizerArgs(lr=3e-3),
    precision="32-true",
)

_KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from inheritune_lit.train import loop
from test_criteria import HEALING, compare_criteria, of_depth_4
steps = [0]
step = loop.Trainer.train_step
def step_or_die(self):
    steps[0] += 1
    if steps[0] == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
loop.Trainer.train_step = step_or_die
compare_criteria(sys.argv[1], of_depth_4(), Path(sys.argv[2]), Path(sys.argv[3]), HEALING)
"""


def of_depth_4():
    """An analysis in which AvgRank chooses the same layers as "first"."""
    analysis = make_analysis(4)
    analysis.protocols.v4.avg_rank[:] = [9.0, 8.0, 2.0, 1.0]
    return analysis


@pytest.fixture
def steps(monkeypatch):
    """Counts optimizer steps."""
    done: list[int] = []
    step = loop.Trainer.train_step

    def counted(self):
        done.append(1)
        return step(self)

    monkeypatch.setattr(loop.Trainer, "train_step", counted)
    return done


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("criteria")
    make_checkpoint(folder / "ref", tokenizer_dir, n_layer=4)
    return folder / "ref", make_packed(folder / "data", tokenizer_dir)


def test_a_killed_comparison_goes_on_and_ends_the_same(inputs, tmp_path, steps, capsys):
    ref, data = inputs
    whole = compare_criteria(str(ref), of_depth_4(), data, tmp_path / "whole", HEALING)
    # avg-rank shares the runs of "first".
    assert len(steps) == 3 * 2 * STEPS
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", _KILLED, str(ref), str(data), str(tmp_path / "killed"), *paths]
    killed = subprocess.run(command, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "criteria.json").exists()
    steps.clear()
    again = compare_criteria(str(ref), of_depth_4(), data, tmp_path / "killed", HEALING)
    # One run was finished, the second had saved at its second step.
    assert len(steps) == 3 * 2 * STEPS - STEPS - 2
    assert again == whole
    steps.clear()
    assert compare_criteria(str(ref), of_depth_4(), data, tmp_path / "killed", HEALING) == whole
    assert not steps

    record = json.loads((tmp_path / "whole" / "criteria.json").read_text())
    table = {one["criterion"]: one for one in record["criteria"]}
    assert table["avg-rank"]["same_as"] == "first"
    assert table["last"]["layers"] == [2, 3] and table["random"]["layers"] is None
    for criterion, run in (("first", "layers-0-1-seed1"), ("random", "random-seed1")):
        final = read_manifest(tmp_path / "whole" / "runs" / run / "final")
        assert final["val_loss"] == next(one.loss for one in whole if (one.criterion, one.seed) == (criterion, 1))
        assert final["tokens"] == record["runs"][0]["tokens"]
    # What a seed changes is the data order, so the untrained slice scores the same.
    untrained = {one.untrained for one in whole if one.criterion == "last"}
    assert len(untrained) == 1 and not math.isnan(untrained.pop())
    assert whole[0].loss != whole[1].loss
    assert imread(tmp_path / "whole" / "criteria.png").shape[1] > 1000
    assert "avg-rank chose the same layers as first" in (tmp_path / "whole" / "criteria.md").read_text()


def test_other_settings_are_refused(inputs, tmp_path):
    ref, data = inputs
    short = replace(HEALING, criteria=["first"], seeds=[1])
    compare_criteria(str(ref), of_depth_4(), data, tmp_path / "out", short)
    with pytest.raises(UserError, match=r"was started with optimizer\.lr 0\.003, not 0\.001"):
        compare_criteria(
            str(ref), of_depth_4(), data, tmp_path / "out", replace(short, optimizer=OptimizerArgs(lr=1e-3))
        )


def test_selections():
    analysis = make_analysis(8)
    analysis.layers["block_influence"].mean[:] = [5, 1, 4, 1, 1, 1, 3, 6]
    analysis.protocols.v4.avg_rank[:] = [1, 1, 7, 7, 7, 7, 1, 1]
    assert select_layers("first", 3, analysis) == [0, 1, 2]
    assert select_layers("middle", 4, analysis) == [2, 3, 4, 5]
    assert select_layers("last", 3, analysis) == [5, 6, 7]
    assert select_layers("alternate", 4, analysis) == [0, 2, 4, 6]
    assert select_layers("block-influence", 4, analysis) == [0, 2, 6, 7]
    assert select_layers("avg-rank", 3, analysis) == [2, 3, 4]
    assert select_layers("random", 3, analysis) is None


@pytest.mark.parametrize("criterion", ["first", "middle", "last", "alternate", "block-influence", "avg-rank"])
@pytest.mark.parametrize("depth", [1, 5, 30])
def test_selections_are_n_different_layers_in_order(criterion, depth):
    analysis = make_analysis(depth)
    for n in range(1, depth + 1):
        layers = select_layers(criterion, n, analysis)
        assert len(layers) == n and layers == sorted(set(layers)) and layers[0] >= 0 and layers[-1] < depth
        assert parse_layers(layers_text(layers), depth) == layers


def test_differences_are_taken_seed_by_seed():
    def run(criterion, layer, seed, loss):
        return Healed(criterion, [layer], seed, 9.0, loss, 0.1, 100, [])

    # The seeds differ by far more than the criteria, and "last" is the better one in each.
    runs = [run("first", 0, seed, seed + 0.5) for seed in (1, 2, 3)]
    runs += [run("last", 1, seed, seed + 0.5 - 0.01 * seed) for seed in (1, 2, 3)]
    first, last = spreads(runs)
    assert first.std == pytest.approx(1)
    assert (last.difference, last.difference_std) == pytest.approx((-0.02, statistics.stdev([0.01, 0.02, 0.03])))
    assert (last.lower_in, last.low, last.high, last.same_as) == (3, 1.49, 3.47, None)
    assert first.difference == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n": 5}, "--healing.n is 5; give 1 to 4"),
        ({"n": 0}, "--healing.n is 0; give 1 to 4"),
        ({"seeds": [1, 1]}, r"--healing.seeds is \[1, 1\]"),
        ({"criteria": []}, r"--healing.criteria is \[\]"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(changes, told, inputs, tmp_path):
    ref, data = inputs
    with pytest.raises(UserError, match=told):
        compare_criteria(str(ref), of_depth_4(), data, tmp_path / "out", replace(HEALING, **changes))
    assert not (tmp_path / "out").exists()


def test_a_measure_that_is_not_there_is_told():
    analysis = make_analysis(4)
    del analysis.layers["block_influence"]
    with pytest.raises(UserError, match="criterion block-influence: the analysis lacks"):
        select_layers("block-influence", 2, analysis)
