"""The benchmarks' parts that need no GPU: budget, micro-batch, partial results, failures, wheels, a contender."""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_checkpoint
from torch.nn import functional as F

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bare  # noqa: E402
import gpu_train  # noqa: E402
import gpu_wheels  # noqa: E402
import matmul  # noqa: E402
import training  # noqa: E402
from gpu_first_run import Budget, choose_micro_batch, chosen_by_default, order, run_all, text  # noqa: E402
from record import Record  # noqa: E402

ABSENT = ("litgpt", "lightning", "lm_eval", "jsonargparse", "docstring_parser", "zstandard", "torch", "inheritune_lit")
"""Not to be imported before the wheels are installed; torch and the project only because that takes seconds."""


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def ran(*seconds: float, losses: tuple[float, ...] = (4.0, 3.0), **more: object) -> dict:
    return {"step_seconds": list(seconds), "losses": list(losses), "peak_memory_mb": 100.0, "seconds": 30.0, **more}


def test_the_micro_batch_is_the_largest_divisor_that_fits():
    predicted = {1: 13, 2: 16, 3: 19, 4: 22, 6: 28, 8: 34, 12: 46, 24: 82}
    for available, expected in ((12, 1), (13, 1), (18, 2), (33, 6), (34, 8), (45, 8), (1000, 24)):
        assert choose_micro_batch(predicted.__getitem__, available, 24) == expected


def test_a_budget_grants_what_is_left_and_nothing_to_what_will_not_end():
    clock = Clock()
    clock.now = 1000.0
    budget = Budget(100, clock)
    assert budget.grant(60, 40) == 60
    clock.now = 1055.0
    assert budget.grant(60, 40) == 45
    clock.now = 1061.0
    assert (budget.left, budget.grant(60, 40), budget.grant(60, 39)) == (39.0, None, 39.0)
    clock.now = 2000.0
    assert budget.left == 0


def test_contenders_share_the_budget_and_results_are_kept_after_each():
    clock, calls, saved = Clock(), [], []
    takes = {"a": 70, "slow": 100, "b": 45, "c": 45}

    def run(name, seconds, micro_batch_size):
        calls.append((name, seconds, micro_batch_size))
        clock.now += min(takes[name], seconds)
        return {"failed": "took more than 90 s"} if takes[name] > seconds else ran(1.0, seconds=takes[name])

    rows = run_all(["a", "slow", "b", "c"], run, Budget(230, clock), 8, 90, lambda rows: saved.append(list(rows)))
    # "slow" is stopped, "b" gets what is left, though "a" took 70 s; 25 s are not enough for "c".
    assert calls == [("a", 90, 8), ("slow", 90, 8), ("b", 70, 8)]
    assert saved == [["a"], ["a", "slow"], ["a", "slow", "b"], ["a", "slow", "b", "c"]]
    assert rows["slow"]["failed"] == "took more than 90 s"
    assert rows["c"]["skipped"].startswith("25 s of the budget are left, one takes 45")


def test_out_of_memory_is_tried_again_with_half():
    def run(name, seconds, size):
        full = {"failed": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"}
        return full if size > fits[name] else ran(1.0, micro_batch_size=size)

    fits = {"ours": 8, "litgpt": 2, "huge": 0}
    rows = run_all(list(fits), run, Budget(1e6, Clock()), 8, 90, lambda rows: None)
    assert [rows[name].get("micro_batch_size") for name in fits] == [8, 2, None]
    assert "note" not in rows["ours"]
    assert rows["litgpt"]["note"] == "out of memory at a micro-batch of 8; out of memory at a micro-batch of 4"
    assert "out of memory" in rows["huge"]["failed"]


def test_what_failed_at_the_tiny_shape_comes_last():
    small = {"a": ran(1.0), "b": {"failed": "x"}, "c": ran(1.0)}
    assert order(["b", "a", "c", "new"], small) == ["a", "c", "new", "b"]
    assert [chosen_by_default(major)[-5:] for major in ((8, 0), (9, 0), (10, 3), (12, 0), None)] == [
        "flash", "cudnn", "cudnn", "flash", "flash"
    ]  # fmt: skip


SPEC = {"tokens_per_step": 1000, "flops_per_token": 2e9}


def test_a_summary_with_failures_compares_with_the_first_that_ran():
    results = {
        "broken": {"failed": "no such kernel"},
        "ours-bf16-mixed": ran(2.0, 1.0, 4.0, predicted_memory_mb=80.0),
        "litgpt-bf16-mixed": ran(4.0, 4.0, losses=(4.0, 3.25)),
        "ours-fp8": ran(0.5),
        "ours-fp32": ran(0.5),
        "late": {"skipped": "nothing is left"},
    }
    rows = training.summarise(results, SPEC, {"bf16": 2.5e12, "fp32": 1e12})
    assert list(rows) == list(results)
    assert (rows["broken"], rows["late"]) == (results["broken"], results["late"])
    ours, litgpt = rows["ours-bf16-mixed"], rows["litgpt-bf16-mixed"]
    assert (ours["tokens_per_s_median"], ours["tokens_per_s_best"], ours["tflops_median"]) == (500, 1000, 1.0)
    assert (ours["share_of_matmul"], ours["memory_to_predicted"], ours["speed_to_first"]) == (0.4, 1.25, 1.0)
    assert (litgpt["speed_to_first"], litgpt["largest_loss_difference"]) == (0.5, 0.25)
    # 4 TFLOP/s are below twice bf16's rate, and above fp32's.
    assert "suspect" not in rows["ours-fp8"]
    assert "faster than matrix products" in rows["ours-fp32"]["suspect"]
    for found in (rows, training.summarise({"broken": {"failed": "x"}}, SPEC), {}):
        lines = training.table(found)
        assert all(name in lines for name in found)
    assert "skipped: nothing is left" in training.table(rows)


def test_the_line_of_an_error_is_not_the_advice_below_it():
    output = "Traceback:\n  File x\nRuntimeError: boom\ntorch._dynamo.exc.Unsupported: no\n\nYou can set FLAGS=1\n"
    assert training.error_line(output) == "torch._dynamo.exc.Unsupported: no"
    assert training.error_line("inheritune: error: x is y\n") == "inheritune: error: x is y"
    assert training.error_line("\n") == ""


def test_a_timeout_ends_a_contender_with_its_children(tmp_path):
    child = f"import time; time.sleep(3); open({str(tmp_path / 'alive')!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.monotonic()
    assert training.run_within([sys.executable, "-c", parent], 1.0) is None
    assert time.monotonic() - began < 3
    time.sleep(3)
    assert not (tmp_path / "alive").exists()
    assert training.run_within([sys.executable, "-c", "raise SystemExit(7)"], 60) == 7


def test_a_record_is_whole_after_each_piece_of_news(tmp_path):
    logs = tmp_path / "full" / "logs"
    logs.mkdir(parents=True)
    record = Record(tmp_path / "out", "gpu-first-run", text, [logs, tmp_path / "none"])
    record.write(command="python x", machine={"card": None})
    (logs / "a.txt").write_text("all that it wrote")
    rows = {"a": {"failed": "boom"}, "b": {"skipped": "late"}}
    record.write(matmul_tflops={"bf16": 1.5}, copy_gb_per_s=3.0, small=rows, rows=rows)
    found = json.loads((tmp_path / "out" / "gpu-first-run.json").read_text())
    assert (found["rows"], found["finished"]) == (rows, False)
    written = (tmp_path / "out" / "gpu-first-run.txt").read_text()
    assert "boom" in written and "skipped: late" in written and "not finished" in written
    with tarfile.open(tmp_path / "out" / "gpu-first-run-logs.tar.gz") as archive:
        assert archive.extractfile("full/a.txt").read() == b"all that it wrote"
    assert len(list((tmp_path / "out").iterdir())) == 3


def make_wheel(folder: Path, name: str, text: str) -> None:
    """A wheel with one module."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", text)
        wheel.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: torch\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")


def test_wheels_are_installed_apart_and_only_what_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "only_in_wheels", "value = 41 + 1")
    make_wheel(wheels, "PyYAML", "raise AssertionError('the machine has its own')")
    assert [wheel.name[:4] for wheel in bare.missing(wheels, {"pyyaml"})] == ["only"]
    command = [sys.executable, str(BENCHMARKS / "bare.py"), str(wheels), "-c"]
    program = "import only_in_wheels, yaml, inheritune_lit, sys; print(only_in_wheels.value, *sys.argv[1:])"
    for _ in range(2):  # the second time they are there
        done = subprocess.run([*command, program, "--wheels", "x"], capture_output=True, text=True, cwd=tmp_path)
        assert (done.stdout, done.returncode) == ("42 --wheels x\n", 0), done.stderr
    (packages,) = (tmp_path / "cache" / "inheritune-lit").iterdir()
    assert not (packages / "PyYAML.py").exists()
    make_wheel(wheels, "another", "")
    assert bare.packages_folder(wheels) != packages
    with pytest.raises(SystemExit, match=r"holds no wheels.*gpu_wheels.py"):
        bare.install(tmp_path)


def test_wheels_are_of_another_machine_and_bring_no_torch():
    call = gpu_wheels.command(Path("wheels"), gpu_wheels.TRAINING, "3.12", "aarch64")
    assert {"--no-deps", "--only-binary=:all:", "manylinux2014_aarch64"} <= set(call)
    assert call[call.index("--python-version") + 1] == "3.12"
    every = [*gpu_wheels.TRAINING, *gpu_wheels.EVALUATION, *gpu_wheels.BITSANDBYTES]
    assert not any(re.match(r"(torch|triton|nvidia.*)\b(?!-)", package) for package in every)


def test_the_scripts_begin_without_what_a_bare_machine_lacks(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass Absent:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {ABSENT!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    program = "import bare, record, gpu_wheels, gpu_first_run, gpu_train; print('begun')"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{BENCHMARKS}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "begun\n", done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_way_out_is_named(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu_first_run.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no CUDA device; try the script with --small" in done.stderr
    assert not (tmp_path / "out").exists()


def test_rates_are_of_the_fastest_timing(monkeypatch):
    seconds = iter([9.0, 2.0, 1.0, 4.0, 2.0, 2.0])  # the first is not counted
    monkeypatch.setattr(matmul, "_seconds", lambda work, device: next(seconds))
    assert matmul._rate(lambda: None, 8.0, torch.device("cpu")) == 8.0


def test_a_run_of_minutes_has_as_many_steps_as_it_has_time():
    assert gpu_train.steps_for(5, 400_000, 65_536) == 1831
    assert gpu_train.steps_for(5, 1, 65_536) == gpu_train.LEAST
    empty = dict.fromkeys(("tokens_per_s", "mfu", "memory_gb", "val_loss", "val_stderr"), "")
    rows = [{**empty, "step": "0", "tokens": "0", "val_loss": "9.0", "val_stderr": "0.5"}]
    rows += [
        {**empty, "step": str(step), "tokens": str(step * 10), "tokens_per_s": speed, "memory_gb": "2.5"}
        for step, speed in ((1, "1.0"), (2, "90.0"), (3, "100.0"), (4, "110.0"))
    ]
    found = gpu_train.summary(rows)
    assert (found["steps"], found["tokens"], found["tokens_per_s"], found["memory_gb"]) == (4, 40, 105.0, 2.5)
    assert found["held_out"] == [{"step": 0, "loss": 9.0, "stderr": 0.5}]
    assert found["share_of_peak"] is None


@pytest.mark.slow
def test_a_contender_trains_the_weights_and_tokens_that_it_is_given(tmp_path, tokenizer_dir):
    model = make_checkpoint(tmp_path / "checkpoint", tokenizer_dir)
    tokens_SNT1 = np.random.default_rng(0).integers(0, 400, size=(2, 4, 17))
    np.save(tmp_path / "tokens.npy", tokens_SNT1)
    spec = {
        "micro_batch_size": 4,
        "lr": 1e-3,
        "warm_up": 1,
        "flops_per_token": 1e6,
        "tokens_per_step": 64,
        "flops": 1.0,
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    row = training.run_contender(tmp_path, "ours-fp32-eager", micro_batch_size=2)
    tokens_BT1 = torch.from_numpy(tokens_SNT1[0])
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens_BT1[:, :-1]).flatten(0, 1), tokens_BT1[:, 1:].flatten()).item()
    assert row["losses"][0] == pytest.approx(loss, abs=1e-4)
    assert row["losses"][1] != pytest.approx(loss, abs=1e-3)
    assert (len(row["step_seconds"]), row["micro_batch_size"]) == (1, 2)
    assert row["predicted_memory_mb"] > 0 and row["loss_kernel"] == "chunked"
    (tmp_path / "tokens.npy").write_bytes(b"")
    row = training.run_contender(tmp_path, "ours-fp32-eager")
    assert row["failed"].startswith("EOFError")
    assert "Traceback" in (tmp_path / "logs" / "ours-fp32-eager.txt").read_text()
