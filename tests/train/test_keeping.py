"""What a run keeps besides its state: checkpoints, the best weights, logs elsewhere; saving in the background."""

import sys
import types

import pytest
import torch
from train_command import losses_of, pretrain_command

from inheritune_lit.cli import main
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.evaluation.held_out import validate
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.load import is_tied, load_model, load_state
from inheritune_lit.train import saving
from inheritune_lit.train.metrics import read_metrics


def test_the_newest_and_the_best_are_kept(checkpoint, packed, tmp_path):
    run = tmp_path / "run"
    # A rate that first helps and then harms: the best is neither the first nor the last.
    changes = {"train__max_steps": 60, "train__save_interval": 20, "train__keep_last": 1, "train__keep_best": "true"}
    changes |= {"optimizer__lr": 0.3, "train__max_loss_jump": "null", "eval__max_iters": None}
    assert main(pretrain_command(checkpoint, packed, run, **changes)) == 0
    assert sorted(path.name for path in run.iterdir()) == [
        "best",
        "final",
        "inheritune.json",
        "metrics.csv",
        "step-00000040",
    ]
    losses = {int(row["step"]): float(row["val_loss"]) for row in read_metrics(run / "metrics.csv") if row["val_loss"]}
    del losses[0]
    record = read_manifest(run / "best")
    assert (record["steps"], record["val_loss"]) == min(
        ((step, loss) for step, loss in losses.items()), key=lambda x: x[1]
    )
    found = validate(load_model(run / "best"), PackedDataset(packed, "val", 16), batch_size=8)
    assert found.loss == pytest.approx(record["val_loss"], abs=1e-5)
    # A kept checkpoint is a checkpoint: training can begin from it.
    assert main(pretrain_command(run / "step-00000040", packed, tmp_path / "again", train__max_steps=10)) == 0


def test_the_mean_of_the_last_saves(checkpoint, packed, tmp_path, capsys):
    run = tmp_path / "run"
    changes = {"train__max_steps": 8, "train__save_interval": 2, "train__keep_last": 2, "train__average_last": 3}
    command = pretrain_command(checkpoint, packed, run, **changes)
    assert main([*command, "--train.max_time", "0.01"]) == 0 and not (run / "averaged").exists()  # stopped somewhere
    assert main(command) == 0
    names = ["step-00000004", "step-00000006", "final"]
    kept = [torch.load(run / name / "lit_model.pth", weights_only=True) for name in names]
    averaged = torch.load(run / "averaged" / "lit_model.pth", weights_only=True)
    assert averaged.keys() == kept[0].keys() and is_tied(load_state(run / "averaged")) == is_tied(
        load_state(checkpoint)
    )
    for name, tensor in averaged.items():
        assert not torch.equal(kept[0][name], kept[2][name])
        torch.testing.assert_close(tensor.double(), sum(each[name].double() for each in kept) / 3, rtol=1e-6, atol=1e-8)
    manifest = read_manifest(run / "averaged")
    assert manifest["averaged"] == names and manifest["kind"] == "checkpoint"
    assert manifest["tokens"] == read_manifest(run / "final")["tokens"] > 0  # which a model card states
    validate(load_model(run / "averaged"), PackedDataset(packed, "val", 16), batch_size=8)
    capsys.readouterr()
    assert main(pretrain_command(checkpoint, packed, tmp_path / "few", train__average_last=3, train__keep_last=1)) == 2
    assert "--train.average_last 3: --train.keep_last 1 keeps fewer; give 2" in capsys.readouterr().err


def test_saving_in_the_background_changes_nothing(checkpoint, packed, tmp_path):
    for run, background in (("now", "false"), ("later", "true")):
        command = pretrain_command(
            checkpoint, packed, tmp_path / run, train__save_interval=3, train__async_save=background
        )
        assert main([*command, "--train.max_time", "0.1"]) == 0  # stopped somewhere
        assert main(command) == 0
    assert losses_of(tmp_path / "now") == losses_of(tmp_path / "later")
    weights = [load_state(tmp_path / run / "final") for run in ("now", "later")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_what_is_saved_in_the_background_is_of_one_step(checkpoint, packed, tmp_path, monkeypatch):
    """Training goes on while the file is written; the file must not notice."""
    import threading

    go_on, saved = threading.Event(), []

    def slow_save(folder, model, optimizer, counters):
        if counters["step"] == 10:
            before = {name: tensor.clone() for name, tensor in model.items()}
            go_on.wait(10)
            saved.append(all(torch.equal(before[name], tensor) for name, tensor in model.items()))
        save_state(folder, model, optimizer, counters)

    save_state, original = saving.save_state, saving.Saver.wait

    def wait(self):
        go_on.set()
        original(self)

    monkeypatch.setattr(saving, "save_state", slow_save)
    monkeypatch.setattr(saving.Saver, "wait", wait)
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run", train__async_save="true")) == 0
    assert saved == [True]


def test_a_tied_head_stays_tied_in_a_checkpoint(tmp_path, packed, tokenizer_dir):
    from tiny import make_checkpoint

    make_checkpoint(tmp_path / "tied", tokenizer_dir, tied=True)
    command = pretrain_command(tmp_path / "tied", packed, tmp_path / "run", train__keep_last=2, precision="bf16-true")
    assert main(command) == 0
    for name in ("step-00000010", "step-00000020", "final"):
        kept = load_state(tmp_path / "run" / name)
        assert is_tied(kept)
        assert kept["lm_head.weight"].dtype == torch.bfloat16


class Recorder(types.ModuleType):
    """Stands in for a logging package and notes what it is given."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.rows, self.finished, self.options = {}, False, {}

    def init(self, **options):
        self.options = options
        return self

    def log(self, values, step):
        self.rows[step] = values

    log_metrics = log

    def finish(self):
        self.finished = True

    end_run = finish

    def set_experiment(self, name):
        self.options["experiment"] = name

    def search_runs(self, **options):
        return []

    def start_run(self, run_name, tags):
        self.options |= {"name": run_name, "id": tags["inheritune.run"]}


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_other_loggers_get_every_row(checkpoint, packed, tmp_path, monkeypatch, logger):
    recorder = Recorder(logger)
    monkeypatch.setitem(sys.modules, logger, recorder)
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run", logger_name=logger)) == 0
    rows = {int(row["step"]): row for row in read_metrics(tmp_path / "run" / "metrics.csv")}
    assert recorder.rows.keys() == rows.keys()
    assert recorder.rows[30]["val_loss"] == float(rows[30]["val_loss"])
    assert recorder.finished
    assert recorder.options["name"] == "run"


def test_a_missing_logger_is_one_line(checkpoint, packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run", logger_name="wandb")) == 2
    assert "--logger_name wandb needs the package wandb; install it, or use csv" in capsys.readouterr().err
