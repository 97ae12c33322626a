"""The functions behind the commands, as a library."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny import make_checkpoint, make_packed

import inheritune_lit
from inheritune_lit import EvalArgs, OptimizerArgs, PretrainArgs, TrainArgs
from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.inherit.args import SliceArgs


def test_the_recipe_as_a_program(tmp_path, tokenizer_dir):
    make_checkpoint(tmp_path / "reference", tokenizer_dir)
    data = make_packed(tmp_path / "data", tokenizer_dir)
    small = inheritune_lit.slice_model(SliceArgs(str(tmp_path / "reference"), n=1, out_dir=tmp_path / "small")).folder
    done = inheritune_lit.pretrain(
        PretrainArgs(
            small,
            data,
            tmp_path / "run",
            train=TrainArgs(global_batch_size=4, max_seq_length=16, max_steps=4, lr_warmup_steps=1),
            eval=EvalArgs(max_iters=2),
            optimizer=OptimizerArgs(lr=1e-3),
        )
    )
    results = inheritune_lit.evaluate(EvaluateArgs([done.final], val_data=data, val_blocks=8, max_seq_length=16))
    # The same 8 validation samples: 2 micro-batches of 4.
    assert results.checkpoints[0].held_out["loss"] == pytest.approx(done.val_loss, rel=1e-5)
    folder = inheritune_lit.export(ExportArgs(done.final, tmp_path / "hf")).folder
    assert (folder / "model.safetensors").is_file()
    with pytest.raises(inheritune_lit.UserError, match="no folder at"):
        inheritune_lit.make_report(inheritune_lit.ReportArgs([tmp_path / "nowhere"], out_dir=tmp_path / "report"))


def test_every_name_is_there_and_documented():
    for name in inheritune_lit.__all__:
        assert getattr(inheritune_lit, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        inheritune_lit.nothing  # noqa: B018


def test_importing_it_costs_nothing():
    code = "import sys, inheritune_lit; print([name for name in ('torch', 'litgpt', 'numpy') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


PROGRAM = """
from pathlib import Path
from inheritune_lit import PrepareArgs, PretrainArgs, TrainArgs, evaluate, export, plan, prepare, pretrain
from inheritune_lit import EvaluateArgs, EvaluationResult, ExportArgs, PlanArgs, SliceArgs, slice_model

folder: Path = slice_model(SliceArgs("openllama-3b", n=13)).folder
packed: str = str(prepare(PrepareArgs("text", folder, Path("data"), val_fraction=0.01)))
result = pretrain(PretrainArgs(folder, Path("data"), Path("run"), train=TrainArgs(max_steps=9)))
if result.final is not None:
    scores: EvaluationResult = evaluate(EvaluateArgs([result.final], suite="quick"))
    hf: Path = export(ExportArgs(result.final, Path("hf"))).folder
hours: dict[str, float] = plan(PlanArgs("openllama-3b", n=13, tokens="8B")).hours
"""


needs_mypy = pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")


@pytest.mark.slow
@needs_mypy
def test_the_package_passes_mypy(tmp_path):
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@needs_mypy
def test_a_typed_program_passes_mypy(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    options = [
        "--strict",
        "--follow-imports=silent",
        "--ignore-missing-imports",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    # Where the package is: mypy does not follow what an editable installation puts on the path.
    environment = {**os.environ, "MYPYPATH": str(Path(inheritune_lit.__file__).parents[1])}
    for text, passes in ((PROGRAM, True), (PROGRAM.replace("n=13)).folder", 'n="13")).folder'), False)):
        (tmp_path / "program.py").write_text(text)
        command = [sys.executable, "-m", "mypy", *options, "program.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert (done.returncode == 0) is passes, done.stdout
