"""A run is continued wherever that leads to the same, stops at once when told to, and outlives a full disk."""

import errno
import json
import os
import shutil
import signal
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from train_command import losses_of, pretrain_command

from inheritune_lit.cli import main
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.evaluation import held_out
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.load import load_state
from inheritune_lit.train import loop, metrics, saving
from inheritune_lit.train.metrics import read_metrics
from inheritune_lit.train.optim import MAX_SKIPPED

SHORT = {"train__max_steps": 6, "train__lr_warmup_steps": 1, "train__log_interval": 1, "train__save_interval": 2}
SHORT |= {"eval__interval": 2, "eval__max_iters": 2}
STOP = ["--train.max_time", "0.001"]


@pytest.fixture
def command(checkpoint, packed, tmp_path):
    def build(**changes) -> list[str]:
        return pretrain_command(checkpoint, **{"packed": packed, "out_dir": tmp_path / "run", **SHORT, **changes})

    return build


def same_weights(one, other, tolerance=0.0) -> bool:
    states = [load_state(run / "final") for run in (one, other)]
    return all((tensor - states[1][name]).abs().max() <= tolerance for name, tensor in states[0].items())


@pytest.mark.parametrize(
    "changes",
    [
        {"train__micro_batch_size": 1},
        {"train__micro_batch_size": 4, "eval__samples": 4, "eval__max_iters": None},
        {"train__max_steps": None, "train__max_tokens": 6 * 4 * 16},
        {"eval__interval": 3, "train__keep_last": 1, "speed__loss_kernel": "plain"},
    ],
)
def test_what_does_not_change_the_outcome_may_change(command, tmp_path, changes):
    assert main(command(out_dir=tmp_path / "whole")) == 0
    assert main([*command(), *STOP]) == 0
    assert main(command(**changes)) == 0
    assert same_weights(tmp_path / "run", tmp_path / "whole", 1e-5)
    ends = [read_manifest(tmp_path / run / "final") for run in ("run", "whole")]
    assert ends[0]["val_tokens"] == ends[1]["val_tokens"] == 4 * 16
    assert ends[0]["val_loss"] == pytest.approx(ends[1]["val_loss"], abs=1e-4)


def test_a_checkpoint_may_move_but_not_change(command, checkpoint, tmp_path, capsys):
    assert main([*command(), *STOP]) == 0
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    assert main([*command(initial_checkpoint_dir=moved), *STOP]) == 0
    assert read_manifest(tmp_path / "run")["settings"]["initial_checkpoint_dir"] == str(moved)
    config = moved / "model_config.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"rope_base": 20_000}))
    assert main(command(initial_checkpoint_dir=moved)) == 2
    assert "was started with initial_config" in capsys.readouterr().err.splitlines()[-1]


def test_a_finished_run_says_how_to_train_further(command, packed, tmp_path, capsys):
    assert main(command()) == 0
    assert main(command(train__max_steps=9)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "started with train.max_steps 6, not 9" in line
    assert f"{tmp_path / 'run' / 'final'} further as the --initial_checkpoint_dir of a new run" in line
    again = command(train__max_steps=9, out_dir=tmp_path / "more", initial_checkpoint_dir=tmp_path / "run" / "final")
    assert main(again) == 0


def test_a_state_of_the_other_kind_is_not_passed_over(command, tmp_path, capsys):
    assert main([*command(), *STOP]) == 0
    (tmp_path / "run" / "state.pth").unlink()
    (tmp_path / "run" / "state").mkdir()
    assert main(command()) == 2
    assert "was saved with --strategy fsdp or hybrid" in capsys.readouterr().err.splitlines()[-1]


def test_the_loss_of_other_data_is_not_a_jump(command, packed, tmp_path, monkeypatch, prepare_domains):
    original, level = loop.Trainer._loss, [1.0]
    monkeypatch.setattr(loop.Trainer, "_loss", lambda self, chosen: original(self, chosen) * level[0])
    monkeypatch.setattr("inheritune_lit.train.optim._SETTLED", 2)
    args = {"train__max_loss_jump": 0.5, "train__bad_step": "skip", "train__max_steps": 20}
    steps = loop.Trainer.train_step

    def step(self):
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return steps(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "train_step", step)
        assert main(command(**args)) == 0
    level[0] = 2.0
    other = prepare_domains(tmp_path / "other", {"a": 60})
    assert main([*command(**args, packed=other), "--allow_data_change", "true"]) == 0
    assert read_metrics(tmp_path / "run" / "metrics.csv")[-1]["skipped"] == "0"


def test_a_run_that_only_leaves_out_steps_stops(command, tmp_path, monkeypatch, capsys):
    original = loop.Trainer._loss
    monkeypatch.setattr("inheritune_lit.train.optim._SETTLED", 2)
    monkeypatch.setattr(
        loop.Trainer, "_loss", lambda self, chosen: original(self, chosen) * (9 if chosen[0] >= 16 else 1)
    )
    args = {"train__bad_step": "skip", "train__max_steps": 30}
    for _ in range(2):  # again at once, not after as many more
        assert main(command(**args)) == 2
        told = capsys.readouterr().err
        assert f"at step {4 + MAX_SKIPPED}" in told.splitlines()[-1]
        assert "continue with --train.max_loss_jump null" in told.splitlines()[-1]
    assert main(command(**args, train__max_loss_jump="null")) == 0
    skipped = MAX_SKIPPED - 1
    assert f"{skipped} bad steps were left out" in capsys.readouterr().out
    row = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    assert (row["skipped"], row["tokens"]) == (str(skipped), str((30 - skipped) * 4 * 16))


@pytest.mark.parametrize("validation", [1, 2, 4])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_validation_is_left_and_done_later(command, tmp_path, monkeypatch, capsys, validation, number):
    """The first one, one in the middle, and the last one, after which no step is left."""
    assert main(command(out_dir=tmp_path / "whole", eval__max_iters=None)) == 0
    calls, passes, batch = [], [], PackedDataset.batch

    def validate(*args, **kwargs):
        calls.append(1)
        return held_out.validate(*args, **kwargs)

    def read(self, samples):
        if self.split == "val" and len(calls) == validation:
            passes.append(1)
            if len(passes) == 2:
                os.kill(os.getpid(), number)
        return batch(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", validate)
        patch.setattr(PackedDataset, "batch", read)
        assert main(command(eval__max_iters=None)) == (0 if number == signal.SIGTERM else 130)
    assert len(passes) == 2
    done = 2 * (validation - 1)
    told = capsys.readouterr()
    assert "again to stop now" in told.err
    assert ("stopped before the first step" if validation == 1 else f"stopped after step {done}") in told.out + told.err
    assert (tmp_path / "run" / "state.pth").is_file() == (validation > 1)
    assert main(command(eval__max_iters=None)) == 0
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_step_of_minutes_is_left(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "_PATIENCE", 0.0)
    assert main(command(out_dir=tmp_path / "whole")) == 0
    original = loop.Trainer._loss

    def loss(self, samples):
        if samples[0] == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_loss", loss)
        assert main(command()) == 0
    told = capsys.readouterr()
    assert "it is left, and done when the run is continued" in told.err
    assert "stopped after step 3" in told.out
    assert main(command()) == 0
    assert same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("what", ["final", "best", "step-00000004", "state", "metrics"])
def test_a_full_disk_is_one_line_and_costs_no_weights(command, tmp_path, monkeypatch, capsys, what):
    args = {"train__keep_last": 2, "train__keep_best": "true"}
    assert main(command(**args, out_dir=tmp_path / "whole")) == 0
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    steps, step = [], loop.Trainer.train_step

    def train_step(self):
        steps.append(self.step)
        return step(self)

    def fail_in(original, place):
        def write(path, *rest):
            if what in str(path) and (what != "state" or steps[-1] > 3):
                raise full
            return original(path, *rest)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "train_step", train_step)
        patch.setattr(saving, "write_torch_checkpoint", fail_in(saving.write_torch_checkpoint, what))
        if what == "state":
            patch.setattr(saving, "replace_file", fail_in(saving.replace_file, what))
        if what == "metrics":
            patch.setattr(metrics.MetricsLog, "write", lambda self, row: (_ for _ in ()).throw(full))
        assert main(command(**args)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "error" in line] == lines[-1:]
    assert "No space left on device" in lines[-1] and str(tmp_path / "run") in lines[-1]
    with monkeypatch.context() as patch:
        if what == "final":
            patch.setattr(loop.Trainer, "train_step", lambda self: 1 / 0)  # nothing is trained again
        assert main(command(**args)) == 0
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "run")) == sorted(os.listdir(tmp_path / "whole"))


def test_runs_of_one_name_are_two_runs_for_a_logger(command, tmp_path, monkeypatch):
    calls = []
    stub = types.ModuleType("wandb")
    stub.init = lambda **options: (
        calls.append(options) or types.SimpleNamespace(log=lambda *row, **step: None, finish=lambda: None)
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    one, other = (command(out_dir=tmp_path / place / "run", logger_name="wandb") for place in "ab")
    assert main([*one, *STOP]) == main(one) == main(other) == 0
    shutil.rmtree(tmp_path / "b")
    assert main(other) == 0
    ids = [call["id"] for call in calls]
    assert ids[0] == ids[1] and len(set(ids)) == 3
    assert {call["name"] for call in calls} == {"run"}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("place", [0, -1, "middle"])
def test_ids_beyond_the_vocabulary_are_named(command, packed, tmp_path, capsys, split, place):
    data = shutil.copytree(packed, tmp_path / "data")
    path = next((data / split).glob("*.bin"))
    ids = np.memmap(path, dtype=np.uint16, mode="r+")
    ids[len(ids) // 2 if place == "middle" else place] = 65_535
    ids.flush()
    code = main(command(packed=data, eval__max_iters=None, train__max_steps=None, train__epochs=1))
    assert code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{path} is damaged: it holds token id 65535" in line


DAMAGES = {
    "metrics.csv": [b"\xff\xfe", b"a,b\n1,2\n", b"step,tokens\n\xc2\xb2,1\n", b"step\n" + b"9" * 5000 + b"\n", b"\0"],
    "inheritune.json": [b"", b"[]", b'{"kind": "run"}', b'{"kind": "run", "settings": 3}', b"[" * 9999],
    "state.pth": [b"", b"PK\3\4", b"x" * 4000],
}


@pytest.mark.parametrize(("name", "content"), [(name, each) for name, some in DAMAGES.items() for each in some])
def test_a_damaged_file_of_a_run_is_one_line(command, tmp_path, capsys, name, content):
    assert main([*command(), *STOP]) == 0
    (tmp_path / "run" / name).write_bytes(content)
    capsys.readouterr()
    code = main(command())
    lines = capsys.readouterr().err.splitlines()
    if code:  # a row that is none is left out
        assert code == 2
        assert [line for line in lines if "error" in line] == lines[-1:]
        assert str(tmp_path / "run") in lines[-1]


def test_settings_of_another_type_are_one_line(command, tmp_path, capsys):
    assert main([*command(), *STOP]) == 0
    run = tmp_path / "run"
    whole = json.loads((run / "inheritune.json").read_text())
    fields = ("train", "eval", "seed", "domains", "mixture", "initial_weights_sha256")
    for number, field in enumerate(fields):
        for value in ([], 3.5, None)[number % 2 :]:
            damaged = whole | {"settings": whole["settings"] | {field: value}}
            (run / "inheritune.json").write_text(json.dumps(damaged))
            assert main(command()) == 2
            assert str(run) in capsys.readouterr().err.splitlines()[-1]


def test_a_pipe_instead_of_a_state_does_not_block(command, tmp_path, capsys):
    assert main([*command(), *STOP]) == 0
    (tmp_path / "run" / "state.pth").unlink()
    os.mkfifo(tmp_path / "run" / "state.pth")
    assert main(command()) == 2
    assert "state.pth cannot be read" in capsys.readouterr().err.splitlines()[-1]


def test_too_little_memory_is_not_a_damaged_state(command, tmp_path, capsys, monkeypatch):
    assert main([*command(), *STOP]) == 0

    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", fail)
    assert main(command()) == 2
    assert "too little memory" in capsys.readouterr().err.splitlines()[-1]
