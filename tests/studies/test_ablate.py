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
from tiny import make_checkpoint, make_packed

from inheritune_lit.analysis.args import SearchArgs
from inheritune_lit.analysis.search import search_layers
from inheritune_lit.cli import main
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import layers_text, parse_layers
from inheritune_lit.inherit.searched import load_search
from inheritune_lit.io.manifest import read_manifest
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
    "criteria": ["first", "last", "influence", "random"],
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
ablate(AblateArgs(*sys.argv[1:4], search=sys.argv[4], **SETTINGS))
"""


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
    """A reference, data, and a search that has the first layers as those of the highest influence."""
    folder = tmp_path_factory.mktemp("criteria")
    make_checkpoint(folder / "ref", tokenizer_dir, n_layer=4)
    data, search = make_packed(folder / "data", tokenizer_dir), folder / "search"
    search_layers(SearchArgs(folder / "ref", data, search, n_min=2, num_sequences=4, seq_length=16))
    found = json.loads((search / "search.json").read_text())
    found["compared"]["influence"]["2"]["layers"] = [0, 1]
    (search / "search.json").write_text(json.dumps(found))
    return folder / "ref", data, search


def test_a_killed_comparison_goes_on_and_ends_the_same(inputs, tmp_path, steps, capsys):
    ref, data, search = inputs
    result = ablate(AblateArgs(ref, data, tmp_path / "whole", search=search, **SETTINGS))
    whole = result.record.runs
    # influence shares the runs of "first".
    assert len(steps) == 3 * 2 * STEPS
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", _KILLED, str(ref), str(data), str(tmp_path / "killed"), str(search), *paths]
    killed = subprocess.run(command, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "ablation.json").exists()
    steps.clear()
    again = ablate(AblateArgs(ref, data, tmp_path / "killed", search=search, **SETTINGS))
    # One run was finished, the second had saved at its second step.
    assert len(steps) == 3 * 2 * STEPS - STEPS - 2
    assert timeless(again.record.runs) == timeless(whole)
    steps.clear()
    assert ablate(AblateArgs(ref, data, tmp_path / "killed", search=search, **SETTINGS)) == again
    assert not steps

    record = json.loads((tmp_path / "whole" / "ablation.json").read_text())
    table = {one["title"]: one for one in record["criteria"]}
    assert table["influence"]["same_as"] == "first"
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
    assert "influence chose the same layers as first" in (tmp_path / "whole" / "ablation.md").read_text()


def test_other_settings_are_refused(inputs, tmp_path):
    ref, data, _ = inputs
    short = SETTINGS | {"criteria": ["first"], "seeds": [1]}
    ablate(AblateArgs(ref, data, tmp_path / "out", **short))
    with pytest.raises(UserError, match=r"was started with optimizer\.lr 0\.003, not 0\.001"):
        ablate(AblateArgs(ref, data, tmp_path / "out", **short | {"optimizer": OptimizerArgs(lr=1e-3)}))


def test_selections(inputs):
    _, _, folder = inputs
    assert select_layers("first", 3, 8, None) == [0, 1, 2]
    assert select_layers("middle", 4, 8, None) == [2, 3, 4, 5]
    assert select_layers("last", 3, 8, None) == [5, 6, 7]
    assert select_layers("alternate", 4, 8, None) == [0, 2, 4, 6]
    assert select_layers("random", 3, 8, None) is None
    record = json.loads((folder / "search.json").read_text())
    for n in (2, 3):
        assert select_layers("search", n, 4, load_search(folder)) == record["found"][str(n)]["layers"]
        assert select_layers("ends", n, 4, load_search(folder)) == [*range(n - 1), 3]
    assert select_layers("influence", 2, 4, load_search(folder)) == [0, 1]


@pytest.mark.parametrize("criterion", ["first", "middle", "last", "alternate"])
@pytest.mark.parametrize("depth", [1, 5, 30])
def test_selections_are_n_different_layers_in_order(criterion, depth):
    for n in range(1, depth + 1):
        layers = select_layers(criterion, n, depth, None)
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
        ({"n": 5}, "--n 5 is more than the reference's 4 layers; give 1 to 4"),
        ({"n": 0}, "--n 0 is below 1"),
        ({"n": 1}, "--n 1 is not one of the 2 to 3 layers in "),
        ({"seeds": [1, 1]}, r"--seeds is \[1, 1\]"),
        ({"seed": 3}, "--seed 3 is for one run; give --seeds"),
        ({"criteria": []}, r"--criteria is \[\]"),
        ({"search": None}, "criterion influence takes what a search found; give --search"),
        ({"search": "nowhere"}, "nowhere/search.json can't be read"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(changes, told, inputs, tmp_path):
    ref, data, search = inputs
    with pytest.raises(UserError, match=told):
        ablate(AblateArgs(ref, data, tmp_path / "out", **SETTINGS | {"search": search} | changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("n_layer", "told"), [(6, "whose n_layer is 4, not 6"), (4, "from .*, not of this tiny")])
def test_a_search_of_another_reference_is_refused(n_layer, told, inputs, tokenizer_dir, tmp_path):
    _, data, search = inputs
    make_checkpoint(tmp_path / "other", tokenizer_dir, n_layer=n_layer, seed=1)
    with pytest.raises(UserError, match=told):
        ablate(AblateArgs(tmp_path / "other", data, tmp_path / "out", search=search, **SETTINGS))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_which_layers(inputs, tmp_path, caplog):
    ref, data, search = inputs
    caplog.set_level("INFO")
    ablate(AblateArgs(ref, data, tmp_path / "out", search=search, dry_run=True, **SETTINGS))
    assert "  first      0-1\n  last       2-3\n  influence  0-1\n  random     fresh weights" in caplog.text
    assert "  3 different x 2 seeds = 6 runs, each " in caplog.text
    assert not (tmp_path / "out").exists()


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


def test_data_that_is_not_packed_is_refused(inputs, tmp_path):
    with pytest.raises(UserError, match="is not packed data; make it with `inheritune prepare`"):
        ablate(AblateArgs(inputs[0], tmp_path, tmp_path / "out", **SETTINGS | {"criteria": ["first"]}))
