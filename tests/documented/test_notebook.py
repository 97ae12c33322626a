"""The notebook runs from top to bottom in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tour.ipynb"


def test_every_cell_runs(tmp_path):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    program = "\n\n".join("".join(cell["source"]) for cell in cells)
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
