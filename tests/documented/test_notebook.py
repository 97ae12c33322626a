"""The notebook runs from top to bottom in an empty folder, and is saved with what its cells print."""

import json
import os
import subprocess
import sys

import pytest
from tour import NOTEBOOK, code_of

CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_every_cell_runs(tmp_path):
    program = "\n\n".join(map(code_of, CELLS))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "tour/runs/scores/results.json").read_text())["checkpoints"]
    _, inherited, random = (model["held_out"]["loss"] for model in scores)
    assert inherited < random  # what the recipe is for, by far more than the noise of such a run
    assert (tmp_path / "tour/report/report.html").is_file() and (tmp_path / "tour/analysis/analysis.md").is_file()
    assert "1,815,638,400 parameters" in done.stdout


def test_it_is_saved_with_its_outputs():
    for number, cell in enumerate(CELLS, start=1):
        assert cell["execution_count"] == number
        assert bool(cell["outputs"]) == ("print(" in code_of(cell)), code_of(cell)
