"""Growing from end to end: what it leaves, and what a kill leaves of it."""

import hashlib
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from grow_killed import run_or_die

from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.export import export
from inheritune_lit.cli import main
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.model.load import load_model, load_state
from inheritune_lit.train.loop import Trainer
from inheritune_lit.train.metrics import read_metrics


def record(folder: Path) -> dict:
    return json.loads((folder / "grow.json").read_text())


def sample_losses(checkpoint: Path, packed: Path) -> np.ndarray:
    """Mean loss of each of the 32 validation samples of 16 tokens, one by one."""
    model, data = load_model(checkpoint), PackedDataset(packed, "val", 16)
    losses = []
    with torch.no_grad():
        for number in range(32):
            ids = torch.from_numpy(data[number * len(data) // 32])
            logprobs_TV = model(ids[None, :-1]).double().log_softmax(-1)[0]
            losses.append(-logprobs_TV[torch.arange(16), ids[1:]].mean().item())
    return np.array(losses)


def test_history_is_what_the_checkpoints_say(undisturbed, reference, packed):
    history = record(undisturbed)
    assert [row["n_layer"] for row in history["rounds"]] == [2, 3, 4]
    assert [row["added"] for row in history["rounds"]] == [0, 1, 1]
    theirs = sample_losses(reference, packed)
    assert history["reference"]["loss"] == pytest.approx(theirs.mean(), abs=1e-5)
    assert history["reference"]["tokens"] == 150 * 8 * 16
    for number, row in enumerate(history["rounds"]):
        ours = sample_losses(undisturbed / row["folder"] / "final", packed)
        assert row["loss"] == pytest.approx(ours.mean(), abs=1e-5)
        assert row["difference"] == pytest.approx((ours - theirs).mean(), abs=1e-5)
        assert row["stderr"] == pytest.approx((ours - theirs).std(ddof=1) / math.sqrt(32), rel=1e-3)
        assert row["tokens_in_all"] == (number + 1) * 6 * 8 * 16
        in_training = float(read_metrics(undisturbed / row["folder"] / "metrics.csv")[-1]["val_loss"])
        assert row["loss"] == pytest.approx(in_training, abs=1e-6)
    first, last = history["rounds"][0], history["rounds"][-1]
    # The whole reference is back in the end, a little trained: nearer, and hardly any worse than it was.
    assert first["verdict"] == "worse"
    assert last["difference"] < first["difference"]
    assert history["outcome"] == ("met" if last["verdict"] == "met" else "max_layers")
    assert history["final"] == f"{last['folder']}/final"
    table = (undisturbed / "grow.md").read_text().splitlines()
    assert len([line for line in table if line.startswith("|")]) == 2 + 1 + 3
    assert (undisturbed / "grow.png").read_bytes().startswith(b"\x89PNG")


def test_micro_batches_of_another_size_continue_it(command, tmp_path, capsys):
    """They are not part of the outcome, though ``--eval.max_iters`` counts them."""
    assert main(command(tmp_path / "grown", max_layers=2)) == 0
    assert main(command(tmp_path / "grown", max_layers=3, train__micro_batch_size=4)) == 0
    first, second = record(tmp_path / "grown")["rounds"]
    assert (first["n_layer"], second["n_layer"]) == (2, 3)
    settings = [
        json.loads((tmp_path / "grown" / row["folder"] / "inheritune.json").read_text()) for row in (first, second)
    ]
    assert [each["settings"]["eval"]["samples"] for each in settings] == [32, 32]
    assert main(command(tmp_path / "grown", max_layers=3, train__micro_batch_size=4, eval__max_iters=8)) == 2
    assert "max_iters 4, not 8" in capsys.readouterr().err


def test_new_layers_are_the_references_and_old_ones_go_on(undisturbed, reference):
    theirs = load_state(reference)
    for before, start, new in (("round-01-2l", "start-02-3l", 2), ("round-02-3l", "start-03-4l", 3)):
        trained, grown = load_state(undisturbed / before / "final"), load_state(undisturbed / start)
        for name, tensor in grown.items():
            inherited = name.startswith(f"transformer.h.{new}.")
            assert torch.equal(tensor, theirs[name] if inherited else trained[name]), name
        assert any(not torch.equal(trained[name], theirs[name]) for name in trained)
    first = load_state(undisturbed / "start-01-2l")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in first.items())


def test_rounds_may_begin_with_the_reference_again(grow, reference, tmp_path):
    grow(margin=0, old_layers="inherited")
    theirs = load_state(reference)
    for name in ("start-01-2l", "start-02-3l", "start-03-4l"):
        begun = load_state(tmp_path / "grown" / name)
        assert all(torch.equal(tensor, theirs[layer]) for layer, tensor in begun.items()), name


def test_a_hugging_face_folder_is_the_same_reference(grow, undisturbed, reference, tmp_path):
    export(ExportArgs(reference, tmp_path / "hf"))
    grow(margin=0, ref=tmp_path / "hf")
    assert record(tmp_path / "grown")["rounds"] == record(undisturbed)["rounds"]
    for name in ("round-01-2l", "round-03-4l"):
        ours, theirs = (load_state(folder / name / "final") for folder in (tmp_path / "grown", undisturbed))
        assert all(torch.equal(tensor, theirs[layer]) for layer, tensor in ours.items())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_models_are_measured_as_they_are_trained(grow, tmp_path, precision):
    grow(margin=0, precision=precision, documents="separate")
    for row in record(tmp_path / "grown")["rounds"]:
        in_training = float(read_metrics(tmp_path / "grown" / row["folder"] / "metrics.csv")[-1]["val_loss"])
        assert row["loss"] == pytest.approx(in_training, abs=1e-4)


def test_growing_goes_on_from_a_trained_checkpoint(grow, undisturbed, tmp_path):
    start = undisturbed / "round-01-2l" / "final"
    grow(margin=0, n=None, initial_checkpoint_dir=start, max_layers=3)
    rounds = record(tmp_path / "grown")["rounds"]
    assert [row["layers"] for row in rounds] == [[0, 1], [0, 1, 2]]
    # It starts where the run before ended, and not at the reference's layers.
    begun = float(read_metrics(tmp_path / "grown" / "round-01-2l" / "metrics.csv")[0]["val_loss"])
    assert begun == pytest.approx(record(undisturbed)["rounds"][0]["loss"], abs=1e-6)


def test_growing_stops_when_the_loss_is_met(grow, tmp_path):
    # Two layers cost less than 3 nats: the margin lets the first round pass.
    grow(margin=3)
    history = record(tmp_path / "grown")
    assert (len(history["rounds"]), history["outcome"]) == (1, "met")
    assert "Met in round 1: 2 of 4 layers" in (tmp_path / "grown" / "grow.md").read_text()
    assert not list((tmp_path / "grown").glob("start-02*"))


def test_limits_end_growing_and_may_be_raised(grow, tmp_path, capsys):
    grow(margin=0, max_layers=3)
    grow(margin=0, max_flops=2e8, out_dir=tmp_path / "poor")
    assert record(tmp_path / "grown")["outcome"] == "max_layers"
    assert record(tmp_path / "poor")["outcome"] == "max_flops"
    assert [len(record(tmp_path / name)["rounds"]) for name in ("grown", "poor")] == [2, 1]
    capsys.readouterr()
    grow(margin=0)
    assert len(record(tmp_path / "grown")["rounds"]) == 3
    told = capsys.readouterr()
    # The reference and the rounds that were done are not computed again.
    assert told.err.count("loss before training") + told.out.count("loss before training") == 1
    assert "measure tiny" not in told.err


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file, but of those that hold times; the metrics without their columns of speed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix == ".png":
            continue
        data = path.read_bytes()
        if path.name == "metrics.csv":
            rows = read_metrics(path)
            data = json.dumps([[row[key] for key in ("step", "tokens", "loss", "lr", "val_loss")] for row in rows])
            data = data.encode()
        if path.name != "inheritune.json":
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def test_killed_again_and_again_it_ends_like_an_undisturbed_one(command, undisturbed, tmp_path):
    often = command(tmp_path / "often", margin=0)
    deaths = 0
    # Each process gets a little further than the one before, to a moment that its predecessors do not share.
    while (code := run_or_die(often, 4 + deaths % 3)) == -signal.SIGKILL:
        deaths += 1
        assert deaths < 60
    assert code == 0
    assert deaths >= 6
    assert contents(tmp_path / "often") == contents(undisturbed)


def test_sigterm_ends_a_round_that_goes_on_later(grow, undisturbed, tmp_path, monkeypatch, capsys):
    step, done = Trainer.train_step, []

    def step_or_stop(self):
        done.append(self.step)
        if len(done) == 10:  # the fourth step of the second round
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", step_or_stop)
    grow(margin=0, out_dir=tmp_path / "stopped")
    assert "stopped after step 4" in capsys.readouterr().out
    assert len(record(tmp_path / "stopped")["rounds"]) == 1
    grow(margin=0, out_dir=tmp_path / "stopped")
    assert len(done) == 3 * 6
    assert contents(tmp_path / "stopped") == contents(undisturbed)


def test_time_is_for_all_rounds(grow, tmp_path, capsys):
    grow(margin=0, train__max_time=1e-6)
    assert "the same command continues" in capsys.readouterr().err
    assert not (tmp_path / "grown" / "grow.json").exists()


def test_rounds_have_fresh_samples_and_their_own_schedule(undisturbed):
    rows = [read_metrics(undisturbed / name / "metrics.csv") for name in ("round-01-2l", "round-02-3l")]
    rates = [[row["lr"] for row in rows_of if row["lr"]] for rows_of in rows]
    assert rates[0] == rates[1]
    seeds = [
        json.loads((undisturbed / name / "inheritune.json").read_text())["settings"]["seed"]
        for name in ("round-01-2l", "round-02-3l", "round-03-4l")
    ]
    assert seeds == [5, 6, 7]


def test_plan_costs_nothing(grow, tmp_path, capsys):
    grow("--dry_run")
    told = capsys.readouterr().err
    assert not (tmp_path / "grown").exists()
    # 6 * (matrices + attention): 2 layers of 6,656 matrix parameters, a head of 12,800, 2 * 32 * 16 of attention.
    per_token = 6 * (2 * (32 * 64 + 32 * 32 + 3 * 32 * 48) + 400 * 32 + 2 * 32 * 16)
    assert f"round 1: 2 layers, 41,120 parameters, 768 tokens, {768 * per_token:.2e} FLOPs" in told
    assert "round 3: 4 layers, new: 3, 56,608 parameters" in told
