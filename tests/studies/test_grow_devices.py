"""Two processes grow what one does."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_two_ranks_grow_what_one_does(command, undisturbed, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # Without --n, which torchrun takes for an option of its own; half of the layers are two.
    arguments = command(tmp_path / "two", n=None, margin=0, devices=2, train__micro_batch_size=4, eval__max_iters=8)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "-m", "inheritune_lit", *arguments], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| verdict |") == 1  # one rank speaks
    one, two = (json.loads((folder / "grow.json").read_text()) for folder in (undisturbed, tmp_path / "two"))
    assert two["reference"]["loss"] == pytest.approx(one["reference"]["loss"], abs=1e-6)
    assert [row["layers"] for row in two["rounds"]] == [row["layers"] for row in one["rounds"]]
    for ours, theirs in zip(two["rounds"], one["rounds"], strict=True):
        assert ours["difference"] == pytest.approx(theirs["difference"], abs=1e-4)
        assert ours["stderr"] == pytest.approx(theirs["stderr"], abs=1e-4)
