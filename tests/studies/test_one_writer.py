"""A study's folder has one writer: a second process is told who that is, and changes nothing."""

import os
import subprocess
import sys

import pytest

from inheritune_lit.cli import main
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import LOCK, own_folder
from inheritune_lit.studies.replication import _gather

SMALL = "--train.max_steps 2 --train.global_batch_size 2 --train.micro_batch_size 2 --train.max_seq_length 16 "
SMALL += "--train.lr_warmup_steps 0 --eval.max_iters 2 --precision 32-true"


@pytest.mark.parametrize("study", ["grow", "ablate", "reproduce", "demo"])
def test_the_second_is_told_who_is_at_work(study, reference, packed, tmp_path, capsys):
    out_dir = tmp_path / "out"
    (tmp_path / "text.txt").write_text("some text\n")
    words = {
        "grow": f"--ref {reference} --data {packed} --out_dir {out_dir} --n 2 {SMALL}",
        "ablate": f"--ref {reference} --data {packed} --out_dir {out_dir} --n 2 --criteria first last {SMALL}",
        "reproduce": f"--source {tmp_path}/text.txt --out_dir {out_dir} --scale tiny",
        "demo": f"--out_dir {out_dir}",
    }[study]
    with own_folder(out_dir):
        (out_dir / ".killed.partial").mkdir()
        assert main([study, *words.split()]) == 2
        assert sorted(path.name for path in out_dir.iterdir()) == [".killed.partial", LOCK]
    errors = [line for line in capsys.readouterr().err.splitlines() if "inheritune: error" in line]
    assert len(errors) == 1 and f"process {os.getpid()} on " in errors[0], errors
    assert f"is at work on {out_dir}; wait for it" in errors[0]


def test_all_processes_end_where_another_growth_has_the_folder(reference, packed, tmp_path):
    more = f"{SMALL} --train.micro_batch_size 1 --devices 2"
    words = f"grow --ref {reference} --data {packed} --out_dir {tmp_path}/out --n 2 {more}"
    with own_folder(tmp_path / "out"):
        command = [sys.executable, "-m", "inheritune_lit", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("is at work on") == 1, done.stderr


def test_damaged_scores_of_the_demo_are_made_again(reference, packed, tmp_path):
    """The demo takes its scores from ``evaluate``, which reads the records of tasks and writes the rest anew."""
    words = f"eval {reference} --val_data {packed} --max_seq_length 16 --out_dir {tmp_path}/scores"
    assert main(words.split()) == 0
    whole = (tmp_path / "scores/results.json").read_text()
    for content in ("[]", "{}", '{"checkpoints": [{}]}', '{"checkpoints": 5}', "[" * 9999, ""):
        (tmp_path / "scores/results.json").write_text(content)
        assert main(words.split()) == 0
        assert (tmp_path / "scores/results.json").read_text() == whole


def test_a_run_of_a_study_that_is_no_run_any_more_is_named(reference, packed, tmp_path, capsys):
    words = (
        f"ablate --ref {reference} --data {packed} --out_dir {tmp_path}/out --n 2 --seeds 1 --criteria first {SMALL}"
    )
    assert main(words.split()) == 0
    final = next((tmp_path / "out/runs").glob("*/final/inheritune.json"))
    final.write_text(final.read_text().replace('"parent"', '"gone"'))
    capsys.readouterr()
    assert main(words.split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"{final.parent.parent} does not hold a finished run" in error and "the same command makes them again" in error
    )


def test_two_sources_of_one_name_are_refused(tmp_path):
    for place in ("a/books", "b/books"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "text").mkdir()
    with pytest.raises(UserError, match="are of one name"):
        _gather([tmp_path / "a/books", tmp_path / "b/books"], tmp_path / "text")
    assert _gather([tmp_path / "a/books"], tmp_path / "other") == str(tmp_path / "a/books")
