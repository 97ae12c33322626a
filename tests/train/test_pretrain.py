"""Training against plain torch loops, and what a killed, stopped or mistaken run leaves behind."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import make_checkpoint, make_packed

from inheritune_lit.cli import main
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.data.sampler import MixtureSampler
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.model.load import is_tied, load_model, load_state
from inheritune_lit.train.args import DistillArgs, EvalArgs, OptimizerArgs, PretrainArgs, TeachArgs, TrainArgs
from inheritune_lit.train.optim import learning_rate


def read_rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses_of(run_dir: Path) -> list[tuple[str, str, str]]:
    return [(row["step"], row["loss"], row["val_loss"]) for row in read_rows(run_dir)]


def test_steps_equal_a_hand_written_loop(run, checkpoint, packed, tmp_path, train_args):
    run(train=replace(train_args, max_steps=3, max_norm=0.5))
    model = load_model(checkpoint)
    data = PackedDataset(packed, "train", 32)
    sampler = MixtureSampler({"easy": len(data)}, seed=5)
    decayed = [p for name, p in model.named_parameters() if "norm" not in name and "ln_f" not in name]
    plain = [p for name, p in model.named_parameters() if "norm" in name or "ln_f" in name]
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()}
    expected = []
    for step in range(3):
        # The whole global batch at once: accumulation must not change the gradient.
        ids = torch.stack([torch.from_numpy(data[sampler[i]]) for i in range(8 * step, 8 * step + 8)])
        loss = -model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None]).mean()
        grads = dict(zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True))
        norm = torch.stack([g.pow(2).sum() for g in grads.values()]).sum().sqrt()
        expected.append((loss.item(), norm.item()))
        lr = learning_rate(step, 3, train_args, lr=3e-3)
        with torch.no_grad():
            for p, grad in grads.items():
                grad = grad * min(1.0, 0.5 / (norm.item() + 1e-6))
                mean, square = moments[p]
                mean.mul_(0.9).add_(0.1 * grad)
                square.mul_(0.95).add_(0.05 * grad**2)
                if any(p is q for q in decayed):
                    p.mul_(1 - lr * 0.1)
                else:
                    assert any(p is q for q in plain)
                corrected = (square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
                p.sub_(lr * mean / (1 - 0.9 ** (step + 1)) / corrected)
    rows = read_rows(tmp_path / "run")[1:]
    assert [float(row["loss"]) for row in rows] == pytest.approx([loss for loss, _ in expected], abs=1e-5)
    assert [float(row["grad_norm"]) for row in rows] == pytest.approx([norm for _, norm in expected], rel=1e-4)
    trained = load_state(tmp_path / "run" / "final")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach(), atol=2e-5, rtol=1e-4)


def test_training_lowers_the_held_out_loss_and_leaves_a_checkpoint(run, checkpoint, tmp_path, train_args):
    result = run(train=replace(train_args, max_steps=60))
    rows = read_rows(tmp_path / "run")
    before = float(rows[0]["val_loss"])
    assert rows[0]["step"] == "0"
    assert result.val_loss < before - 2
    assert result.val_loss == float(rows[-1]["val_loss"])
    assert (result.steps, result.tokens) == (60, 60 * 8 * 32)
    manifest = json.loads((result.final / "inheritune.json").read_text())
    assert manifest["tokens"] == result.tokens
    assert (result.final / "tokenizer.model").read_bytes() == (checkpoint / "tokenizer.model").read_bytes()
    assert json.loads((result.final / "config.json").read_text())["num_hidden_layers"] == 2
    assert load_model(result.final).lm_head.weight.dtype == torch.float32
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["final", "inheritune.json", "metrics.csv"]


def test_an_inherited_start_beats_a_random_one_on_equal_tokens(run, tmp_path, tokenizer_dir, train_args):
    taught = run(tmp_path / "teacher", train=replace(train_args, max_steps=60)).final
    make_checkpoint(tmp_path / "one-layer", tokenizer_dir, n_layer=1)
    random_start = tmp_path / "one-layer"
    from inheritune_lit.inherit.slice import slice_model

    inherited_start = slice_model(SliceArgs(str(taught), n=1, out_dir=tmp_path / "slice")).folder
    random_run = run(tmp_path / "a", initial_checkpoint_dir=random_start)
    inherited_run = run(tmp_path / "b", initial_checkpoint_dir=inherited_start)
    assert inherited_run.val_loss + 5 * inherited_run.val_stderr < random_run.val_loss


def test_a_tied_head_stays_tied(run, tmp_path, tokenizer_dir):
    make_checkpoint(tmp_path / "tied", tokenizer_dir, tied=True)
    final = run(initial_checkpoint_dir=tmp_path / "tied").final
    assert is_tied(load_state(final))


def test_bf16_mixed_keeps_fp32_weights_and_learns(run, tmp_path, train_args):
    result = run(precision="bf16-mixed", train=replace(train_args, max_steps=40))
    assert load_model(result.final).lm_head.weight.dtype == torch.float32
    assert result.val_loss < float(read_rows(tmp_path / "run")[0]["val_loss"]) - 1


COMMAND = """
import sys, time
from pathlib import Path
import inheritune_lit.train.loop as loop
from inheritune_lit.cli import main
step = loop.Trainer.train_step
def slow(self):
    if self.step >= int(sys.argv[1]):
        print("reached", flush=True)
        time.sleep(3)
    return step(self)
loop.Trainer.train_step = slow
sys.exit(main(sys.argv[2:]))
"""


def command_line(checkpoint, packed, out_dir) -> list[str]:
    settings = {
        "initial_checkpoint_dir": checkpoint,
        "data": packed,
        "out_dir": out_dir,
        "train.global_batch_size": 8,
        "train.micro_batch_size": 4,
        "train.max_steps": 12,
        "train.lr_warmup_steps": 2,
        "train.log_interval": 1,
        "train.save_interval": 4,
        "eval.interval": 6,
        "eval.max_iters": 2,
        "optimizer.lr": 0.003,
        "precision": "32-true",
    }
    return ["pretrain", *(f"--{name}={value}" for name, value in settings.items())]


def stop_at(step: int, number: int, arguments: list[str]) -> subprocess.CompletedProcess:
    """Run the command in another process and send it a signal in the middle of a step."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(step), *arguments], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line == "reached\n":
            break
    time.sleep(0.3)
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.wait()
        return subprocess.CompletedProcess(arguments, process.returncode, "")
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out)


def test_a_killed_run_continues_bit_for_bit(checkpoint, packed, tmp_path):
    assert main(command_line(checkpoint, packed, tmp_path / "whole")) == 0
    broken = command_line(checkpoint, packed, tmp_path / "broken")
    assert stop_at(6, signal.SIGKILL, broken).returncode == -signal.SIGKILL
    assert (tmp_path / "broken" / "state.pth").exists()
    assert main(broken) == 0
    assert losses_of(tmp_path / "broken") == losses_of(tmp_path / "whole")
    whole, resumed = (load_state(tmp_path / name / "final") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_sigterm_saves_and_exits_0(checkpoint, packed, tmp_path):
    arguments = command_line(checkpoint, packed, tmp_path / "run")
    stopped = stop_at(2, signal.SIGTERM, arguments)
    assert stopped.returncode == 0
    assert "stopped after step 3, saved" in stopped.stdout
    assert main(arguments) == 0
    assert main(command_line(checkpoint, packed, tmp_path / "whole")) == 0
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(run, tmp_path, capsys):
    first = run()
    weights = (first.final / "lit_model.pth").stat().st_mtime_ns
    capsys.readouterr()
    again = run()
    assert again == first
    assert "is finished: 12 steps" in str(again)
    assert (first.final / "lit_model.pth").stat().st_mtime_ns == weights


def test_other_settings_are_refused_by_name(run, train_args, tmp_path, tokenizer_dir):
    run()
    with pytest.raises(UserError, match=r"started with train.max_steps 12, not 13"):
        run(train=replace(train_args, max_steps=13))
    with pytest.raises(UserError, match=r"started with optimizer.lr 0.003, not 0.001"):
        run(optimizer=OptimizerArgs(lr=0.001))
    make_checkpoint(tmp_path / "other", tokenizer_dir, seed=9)
    with pytest.raises(UserError, match="started with initial_checkpoint_dir"):
        run(initial_checkpoint_dir=tmp_path / "other")
    run(train=replace(train_args, log_interval=3, save_interval=None))  # how often to look may change


def test_data_that_changed_is_refused(run, tmp_path, tokenizer_dir):
    data = make_packed(tmp_path / "data", tokenizer_dir)
    run(data=data)
    manifest = json.loads((data / "inheritune.json").read_text())
    manifest["options"]["val_fraction"] = 0.3
    (data / "inheritune.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="started with data_sha256"):
        run(data=data)


def test_a_damaged_state_is_one_line(run, tmp_path, train_args, monkeypatch):
    monkeypatch.setattr("inheritune_lit.train.pretrain.drop_state", lambda run_dir: None)
    run()
    import shutil

    shutil.rmtree(tmp_path / "run" / "final")
    state = tmp_path / "run" / "state.pth"
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"state.pth cannot be read"):
        run()


def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path, train_args):
    with pytest.raises(UserError, match=r"at step \d+, samples \d+ to \d+ of seed 5") as caught:
        run(optimizer=OptimizerArgs(lr=1e30, weight_decay=1e30), train=replace(train_args, max_norm=None, min_lr=1e29))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "final").exists()


def test_tensorboard_events_beside_the_csv(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(logger_name="tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    rows = [(int(row["step"]), float(row["loss"])) for row in read_rows(tmp_path / "run") if row["loss"]]
    assert dict(logged) == pytest.approx(dict(rows))


def test_dry_run_writes_nothing(run, tmp_path, caplog):
    caplog.set_level("INFO", "inheritune_lit")
    planned = run(dry_run=True)
    assert planned.final is None and planned.plan.total_steps == 12 and str(planned) == ""
    assert "12 steps of 256 tokens = 3,072 tokens" in caplog.text
    assert not (tmp_path / "run").exists()


def test_someone_elses_folder_is_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("x")
    with pytest.raises(UserError, match="already holds files"):
        run()
    assert os.listdir(tmp_path / "run") == ["mine"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"initial_checkpoint_dir": Path("nowhere")}, "no checkpoint folder at nowhere"),
        ({"data": Path("nowhere")}, "no packed data at nowhere"),
    ],
)
def test_missing_parts_are_one_line(run, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        run(**changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: EvalArgs(interval=0), "eval.interval is 0"),
        (lambda: OptimizerArgs(beta1=1), "beta1 is 1"),
        (lambda: TrainArgs(max_steps=5, max_tokens=9), "exactly one of .* seen: max_tokens 9, max_steps 5"),
        (lambda: TrainArgs(schedule="wsd", max_steps=5), "needs decay steps"),
        (lambda: PretrainArgs("start", "data", "run"), "exactly one of .* seen: none"),
        (lambda: PretrainArgs("start", "data", "run", n=3, train=TrainArgs(max_steps=5)), "--n 3 needs {n}"),
        (lambda: DistillArgs(alpha=2), "distill.alpha is 2"),
        (lambda: TeachArgs("teacher", "data", "out", max_seq_length=0), "max_seq_length is 0"),
    ],
)
def test_arguments_are_checked_when_they_are_made(make, told):
    with pytest.raises(UserError, match=told):
        make()


def test_a_bad_budget_is_refused_before_torch_is_imported(tmp_path):
    words = ["pretrain", "--initial_checkpoint_dir", "a", "--data", "b", "--out_dir", "c"]
    words += ["--train.max_steps", "5", "--train.max_tokens", "9"]
    code = f"import sys; from inheritune_lit.cli import main; sys.exit(main({words}) + ('torch' in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2
    assert "give exactly one of --train.max_tokens" in ended.stderr


def test_one_recipe_names_many_depths():
    args = PretrainArgs("slices/{n}", "data", "runs/{n}", n=13, train=TrainArgs(max_steps=5))
    assert (args.initial_checkpoint_dir, args.out_dir) == (Path("slices/13"), Path("runs/13"))
    assert replace(args, seed=2).out_dir == Path("runs/13")


@pytest.mark.parametrize("recipe", sorted(Path(__file__).parents[2].glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_parses(recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", f"--config={recipe}", "--print_config"])
    assert stop.value.code == 0
    assert "global_batch_size" in capsys.readouterr().out
