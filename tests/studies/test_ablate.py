"""Slices by several criteria, healed alike: what is chosen, what it costs, and a kill in between."""

import json
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

from inheritune_lit.cli import main
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import layers_text, parse_layers
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.io.records import write_record
from inheritune_lit.studies.ablate import ablate, compare_criteria, select_layers
from inheritune_lit.studies.args import AblateArgs
from inheritune_lit.studies.runner import ExperimentResult
from inheritune_lit.train import loop
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, TrainArgs
from inheritune_lit.train.metrics import read_metrics

STEPS = 6
SETTINGS = {
    "n": 2,
    "seeds": [1, 2],
    "criteria": ["first", "last", "avg-rank", "random"],
    "train": TrainArgs(
        global_batch_size=4,
        micro_batch_size=4,
        max_steps=STEPS,
        max_seq_length=16,
        lr_warmup_steps=2,
        min_lr=1e-4,
        save_interval=2,
    ),
    "eval": EvalArgs(interval=3, max_iters=2),
    "optimizer": OptimizerArgs(lr=3e-3),
    "precision": "32-true",
}

_KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
sys.path[:0] = sys.argv[5:]
from inheritune_lit.train import loop
from test_ablate import SETTINGS, AblateArgs, ablate
steps = [0]
step = loop.Trainer.train_step
def step_or_die(self):
    steps[0] += 1
    if steps[0] == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
loop.Trainer.train_step = step_or_die
ablate(AblateArgs(*sys.argv[1:4], analysis=sys.argv[4], **SETTINGS))
"""


def of_depth_4():
    """An analysis in which AvgRank chooses the same layers as "first"."""
    analysis = make_analysis(4)
    analysis.protocols.v4.avg_rank[:] = [9.0, 8.0, 2.0, 1.0]
    return analysis


def timeless(runs):
    """Results without the time that they took."""
    return [replace(run, seconds=0.0) for run in runs]


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
    (folder / "analysis").mkdir()
    write_record(folder / "analysis" / "analysis.json", of_depth_4())
    return folder / "ref", make_packed(folder / "data", tokenizer_dir), folder / "analysis"


def test_a_killed_comparison_goes_on_and_ends_the_same(inputs, tmp_path, steps, capsys):
    ref, data, analysis = inputs
    result = ablate(AblateArgs(ref, data, tmp_path / "whole", analysis=analysis, **SETTINGS))
    whole = result.record.runs
    # avg-rank shares the runs of "first".
    assert len(steps) == 3 * 2 * STEPS
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", _KILLED, str(ref), str(data), str(tmp_path / "killed"), str(analysis), *paths]
    killed = subprocess.run(command, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "ablation.json").exists()
    steps.clear()
    again = ablate(AblateArgs(ref, data, tmp_path / "killed", analysis=analysis, **SETTINGS))
    # One run was finished, the second had saved at its second step.
    assert len(steps) == 3 * 2 * STEPS - STEPS - 2
    assert timeless(again.record.runs) == timeless(whole)
    steps.clear()
    assert ablate(AblateArgs(ref, data, tmp_path / "killed", analysis=analysis, **SETTINGS)) == again
    assert not steps

    record = json.loads((tmp_path / "whole" / "ablation.json").read_text())
    table = {one["title"]: one for one in record["criteria"]}
    assert table["avg-rank"]["same_as"] == "first"
    assert table["last"]["layers"] == [2, 3] and table["random"]["layers"] is None
    for criterion, run in (("first", "layers-0-1-seed1"), ("random", "random-seed1")):
        final = read_manifest(tmp_path / "whole" / "runs" / run / "final")
        assert final["val_loss"] == next(one.val_loss for one in whole if (one.title, one.seed) == (criterion, 1))
        assert final["tokens"] == record["runs"][0]["tokens"]
    # What a seed changes is the data order, so the untrained slice scores the same.
    untrained = {one.untrained for one in whole if one.title == "last"}
    assert len(untrained) == 1 and untrained.pop() is not None
    assert whole[0].val_loss != whole[1].val_loss
    assert imread(tmp_path / "whole" / "ablation.png").shape[1] > 1000
    assert "avg-rank chose the same layers as first" in (tmp_path / "whole" / "ablation.md").read_text()


def test_other_settings_are_refused(inputs, tmp_path):
    ref, data, _ = inputs
    short = SETTINGS | {"criteria": ["first"], "seeds": [1]}
    ablate(AblateArgs(ref, data, tmp_path / "out", **short))
    with pytest.raises(UserError, match=r"was started with optimizer\.lr 0\.003, not 0\.001"):
        ablate(AblateArgs(ref, data, tmp_path / "out", **short | {"optimizer": OptimizerArgs(lr=1e-3)}))


def test_selections():
    depth, analysis = 8, make_analysis(8)
    analysis.layers["block_influence"].mean[:] = [5, 1, 4, 1, 1, 1, 3, 6]
    analysis.protocols.v4.avg_rank[:] = [1, 1, 7, 7, 7, 7, 1, 1]
    assert select_layers("first", 3, depth, analysis) == [0, 1, 2]
    assert select_layers("middle", 4, depth, analysis) == [2, 3, 4, 5]
    assert select_layers("last", 3, depth, analysis) == [5, 6, 7]
    assert select_layers("alternate", 4, depth, analysis) == [0, 2, 4, 6]
    assert select_layers("block-influence", 4, depth, analysis) == [0, 2, 6, 7]
    assert select_layers("avg-rank", 3, depth, analysis) == [2, 3, 4]
    assert select_layers("random", 3, depth, analysis) is None


@pytest.mark.parametrize("criterion", ["first", "middle", "last", "alternate", "block-influence", "avg-rank"])
@pytest.mark.parametrize("depth", [1, 5, 30])
def test_selections_are_n_different_layers_in_order(criterion, depth):
    analysis = make_analysis(depth)
    for n in range(1, depth + 1):
        layers = select_layers(criterion, n, depth, analysis)
        assert len(layers) == n and layers == sorted(set(layers)) and layers[0] >= 0 and layers[-1] < depth
        assert parse_layers(layers_text(layers), depth) == layers


def test_differences_are_taken_seed_by_seed():
    def run(criterion, layer, seed, loss):
        return ExperimentResult("", criterion, (), seed, [layer], 1, 8, 99, 5, 100, 1.0, 1.0, 9.0, loss, 0.1, [])

    # The seeds differ by far more than the criteria, and "last" is the better one in each.
    runs = [run("first", 0, seed, seed + 0.5) for seed in (1, 2, 3)]
    runs += [run("last", 1, seed, seed + 0.5 - 0.01 * seed) for seed in (1, 2, 3)]
    first, last = compare_criteria(runs)
    assert first.std == pytest.approx(1)
    assert (last.difference, last.difference_std) == pytest.approx((-0.02, statistics.stdev([0.01, 0.02, 0.03])))
    assert (last.lower_in, last.low, last.high, last.same_as) == (3, 1.49, 3.47, None)
    assert first.difference == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n": 5}, "--n is 5; give 1 to 4"),
        ({"n": 0}, "--n is 0; give 1 to 4"),
        ({"seeds": [1, 1]}, r"--seeds is \[1, 1\]"),
        ({"criteria": []}, r"--criteria is \[\]"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(changes, told, inputs, tmp_path):
    ref, data, _ = inputs
    with pytest.raises(UserError, match=told):
        ablate(AblateArgs(ref, data, tmp_path / "out", **SETTINGS | changes))
    assert not (tmp_path / "out").exists()


def test_a_measure_that_is_not_there_is_told():
    depth, analysis = 4, make_analysis(4)
    del analysis.layers["block_influence"]
    with pytest.raises(UserError, match="criterion block-influence: the analysis lacks"):
        select_layers("block-influence", 2, depth, analysis)


def test_recipe_compares_criteria_and_continues(inputs, tmp_path, capsys):
    ref, data, _ = inputs
    recipe = Path(__file__).parents[2] / "recipes" / "analysis" / "criteria-cpu.yaml"
    small = {"train.max_tokens": 400, "train.global_batch_size": 4, "train.micro_batch_size": 4}
    small |= {"train.lr_warmup_steps": 1, "criteria": "[first,last]", "seeds": "[3]", "n": 1}
    small |= {"ref": ref, "data": data, "out_dir": tmp_path / "out"}
    call = [
        "ablate",
        "--config",
        str(recipe),
        *(word for name, value in small.items() for word in (f"--{name}", str(value))),
    ]
    assert main(call) == 0
    assert "| first | 0 |" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [one["layers"] for one in record["criteria"]] == [[0], [3]]
    last = read_metrics(tmp_path / "out" / "runs" / "layers-3-seed3" / "metrics.csv")
    assert record["runs"][1]["val_loss"] == pytest.approx(float(last[-1]["val_loss"]), abs=1e-6)
    assert record["runs"][1]["untrained"] == pytest.approx(float(last[0]["val_loss"]), abs=1e-6)
    assert main(call) == 0
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == record


def test_an_analysis_is_made_where_a_criterion_needs_one(inputs, tmp_path):
    ref, data, _ = inputs
    short = SETTINGS | {"criteria": ["avg-rank"], "seeds": [1]}
    result = ablate(AblateArgs(ref, data, tmp_path / "out", **short))
    values = json.loads((tmp_path / "out" / "analysis" / "analysis.json").read_text())["protocols"]["v4"]["avg_rank"]
    assert result.record.criteria[0].layers == sorted(sorted(range(4), key=lambda layer: -values[layer])[:2])


def test_data_that_is_not_packed_is_refused(inputs, tmp_path):
    with pytest.raises(UserError, match="is not packed data; make it with `inheritune prepare`"):
        ablate(AblateArgs(inputs[0], tmp_path, tmp_path / "out", **SETTINGS))
