"""Experiments side by side: the same results as one after the other, stopped and continued."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_checkpoint, make_packed

from inheritune_lit.checkpoint.folder import WEIGHTS
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.studies.runner import Experiment, run_experiments
from inheritune_lit.train.args import EvalArgs, PretrainArgs, TrainArgs

_STUDY = """
import sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from test_runner import experiments
from inheritune_lit.studies.runner import run_experiments
if __name__ == "__main__":
    print(len(run_experiments(experiments(Path(sys.argv[1]), Path(sys.argv[2]), steps=250), num_workers=2)))
"""


def experiments(inputs: Path, out_dir: Path, steps: int = 4, lr_warmup_steps: int = 1) -> list[Experiment]:
    """Two slices with a start in common, and one that starts from the first of them."""

    def one(name: str, ref: Path, n: int, seed: int, start: str) -> Experiment:
        initial = out_dir / start
        train = TrainArgs(
            global_batch_size=4,
            micro_batch_size=4,
            max_seq_length=16,
            max_steps=steps,
            lr_warmup_steps=lr_warmup_steps,
            save_interval=None,
        )
        training = PretrainArgs(
            initial,
            inputs / "data",
            out_dir / name,
            train=train,
            eval=EvalArgs(interval=steps, max_iters=2),
            precision="32-true",
            seed=seed,
        )
        slicing = SliceArgs(str(ref), n=n, out_dir=initial)
        return Experiment(name, name, slicing, training)

    return [
        one("first", inputs / "ref", 2, 1, "start"),
        one("second", inputs / "ref", 2, 2, "start"),
        one("third", out_dir / "first" / "final", 1, 1, "third-start"),
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer_dir) -> Path:
    folder = tmp_path_factory.mktemp("runner")
    make_checkpoint(folder / "ref", tokenizer_dir, n_layer=3)
    make_packed(folder / "data", tokenizer_dir)
    return folder


def weights(out_dir: Path) -> dict[str, bytes]:
    return {name: (out_dir / name / "final" / WEIGHTS).read_bytes() for name in ("first", "second", "third")}


def test_side_by_side_is_one_after_the_other(inputs, tmp_path):
    seen = []
    results = run_experiments(experiments(inputs, tmp_path / "one"), record=lambda done: seen.append(len(done)))
    assert seen == [1, 2, 3] and [each.name for each in results] == ["first", "second", "third"]
    side = run_experiments(experiments(inputs, tmp_path / "two"), num_workers=2)
    assert [each.name for each in side] == ["first", "second", "third"]
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


def test_a_cluster_does_the_same(inputs, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        results = run_experiments(experiments(inputs, tmp_path / "cluster"), cluster=cluster.scheduler_address)
    assert [each.name for each in results] == ["first", "second", "third"]
    run_experiments(experiments(inputs, tmp_path / "one"))
    assert weights(tmp_path / "cluster") == weights(tmp_path / "one")


def test_sigterm_saves_and_the_same_call_continues(inputs, tmp_path):
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    (tmp_path / "study.py").write_text(_STUDY)
    command = [sys.executable, str(tmp_path / "study.py"), str(inputs), str(tmp_path / "out"), *folders]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    study = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    for name in ("first", "second"):  # both have started
        while not (tmp_path / "out" / name / "metrics.csv").exists():
            assert study.poll() is None
    study.send_signal(signal.SIGTERM)
    told, _ = study.communicate(timeout=120)
    assert study.returncode == 0 and int(told) < 3
    assert not (tmp_path / "out" / "third").exists()
    results = run_experiments(experiments(inputs, tmp_path / "out", steps=250))
    undisturbed = run_experiments(experiments(inputs, tmp_path / "whole", steps=250))
    assert [each.curve for each in results] == [each.curve for each in undisturbed]
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_failure_is_told_and_the_others_stop(inputs, tmp_path):
    with pytest.raises(UserError, match="leave no step for the cosine schedule"):
        run_experiments(experiments(inputs, tmp_path, lr_warmup_steps=9), num_workers=2)


def test_no_scheduler_is_told(inputs, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    with pytest.raises(UserError, match="no Dask scheduler answers there"):
        run_experiments(experiments(inputs, tmp_path), cluster="nowhere")
