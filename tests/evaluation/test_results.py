"""Result folders: a file a task, continued after a kill, refused for another model, summed up with noise and floors."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from task_fixtures import opinionated
from tiny import write_jsonl

from inheritune_lit.cli import main
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.evaluation.cells import mcnemar_exact
from inheritune_lit.evaluation.harness import evaluate

SUITE = """
title: Small
source: a paper, Table 9
average: true
columns:
  - {title: PIQA, task: piqa, metric: acc, num_fewshot: 0}
  - {title: Winograd, task: wsc, metric: acc, num_fewshot: 0}
  - {title: MMLU, task: mmlu, metric: acc, num_fewshot: 5}
  - {title: SciQ, task: sciq, metric: acc}
  - {title: Hellaswag, task: hellaswag, metric: acc_norm}
  - {title: WinoGrande, task: winogrande, metric: acc, random_init: {value: 50.5, source: a coin}}
  - {title: Wikitext, task: wikitext, metric: word_perplexity}
paper:
  - {model: Big, scores: {PIQA: 1, Winograd: 101}}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("suite") / "small.yaml"
    path.write_text(SUITE)
    return str(path)


@pytest.fixture(scope="module")
def scored(suite, two_models, rows_dir, tmp_path_factory) -> tuple[dict, Path]:
    out_dir = tmp_path_factory.mktemp("results") / "out"
    result = evaluate(EvaluateArgs(two_models, suite=suite, data_dir=rows_dir, out_dir=out_dir, log_samples=True))
    return result.record(), out_dir


def _cells(results: dict, model: int) -> dict[str, dict]:
    return {cell["title"]: cell for cell in results["checkpoints"][model]["cells"]}


def test_floors_and_differences_follow_from_the_rows(scored, rows_dir):
    results, out_dir = scored
    cells = _cells(results, 1)
    labels = [json.loads(line)["label"] for line in (rows_dir / "piqa/validation.jsonl").open()]
    assert cells["PIQA"]["floor"] == {"value": pytest.approx(100 * max(labels.count(0), labels.count(1)) / 12)} | {
        "kind": "constant class"
    }
    assert cells["Winograd"]["floor"]["value"] == pytest.approx(100 * 4 / 6)
    assert cells["SciQ"]["floor"] == {"value": 25.0, "kind": "chance"}
    assert cells["WinoGrande"]["floor"]["value"] == 50.0
    assert cells["Wikitext"]["floor"] is None
    right = []
    for name in ("first", "second"):
        samples = [json.loads(line) for line in (out_dir / name / "piqa.samples.jsonl").open()]
        guesses = [max((0, 1), key=lambda i: float(s["filtered_resps"][i][0])) for s in samples]
        right.append([guess == label for guess, label in zip(guesses, labels, strict=True)])
    assert cells["PIQA"]["value"] == pytest.approx(100 * sum(right[1]) / 12)
    assert cells["PIQA"]["difference"]["p_value"] == pytest.approx(mcnemar_exact(*right))
    assert cells["PIQA"]["difference"]["value"] == pytest.approx(100 * (sum(right[1]) - sum(right[0])) / 12)
    assert _cells(results, 0)["PIQA"]["difference"] is None


def test_mmlu_has_macro_micro_and_groups(scored):
    results, _ = scored
    cells, tasks = _cells(results, 0), results["checkpoints"][0]["tasks"]
    subjects = [tasks[f"mmlu_{name}"]["acc"] for name in ("virology", "anatomy")]
    assert cells["MMLU"]["value"] == pytest.approx(50 * sum(score["value"] for score in subjects))
    assert cells["MMLU, micro"]["n"] == 16
    assert cells["MMLU, STEM"]["value"] == pytest.approx(100 * tasks["mmlu_anatomy"]["acc"]["value"])
    assert cells["MMLU, other"]["value"] == pytest.approx(100 * tasks["mmlu_virology"]["acc"]["value"])
    assert "MMLU, humanities" not in cells


def test_tables_say_what_was_measured_and_what_was_not(scored):
    results, out_dir = scored
    text = (out_dir / "results.md").read_text()
    assert "| Big (from the paper, not re-run) |" in text
    assert f"| {_cells(results, 0)['PIQA']['value']:.2f} ±" in text
    assert "| *random weights* |" in text
    lines = list(csv.DictReader((out_dir / "results.csv").open()))
    by_name = {(line["model"], line["column"]): line for line in lines}
    for number, name in enumerate(("first", "second")):
        for title, cell in _cells(results, number).items():
            assert float(by_name[name, title]["score"]) == pytest.approx(cell["value"])
            assert float(by_name[name, title]["stderr"]) == pytest.approx(cell["stderr"])
    assert by_name["Big", "PIQA"]["source"] == "a paper, Table 9: Big; from the paper, not re-run"


def test_every_file_tells_where_it_comes_from(scored):
    _, out_dir = scored
    record = json.loads((out_dir / "second" / "mmlu_anatomy.json").read_text())
    same = record["identity"]
    assert {"weights_sha256", "tokenizer_sha256", "n_layer", "dtype", "softmax_dtype", "bos", "limit"} <= set(same)
    assert set(same["versions"]) == {"inheritune-lit", "torch", "litgpt", "lm-eval"}
    assert same["num_fewshot"] == 5
    assert same["task_version"] == 1.0
    assert len(same["rows_sha256"]) == 64
    assert record["truncated"] == 0


def _command(suite: str, models: list[Path], rows_dir: Path, out_dir: Path) -> list[str]:
    arguments = ["eval", "--checkpoint_dir", *map(str, models), "--suite", suite]
    return [*arguments, "--data_dir", str(rows_dir), "--out_dir", str(out_dir)]


def test_a_killed_suite_continues_and_gives_the_same_table(scored, suite, two_models, rows_dir, tmp_path):
    _, whole = scored
    command = _command(suite, two_models, rows_dir, tmp_path / "out")
    done = tmp_path / "out" / "first" / "wsc.json"
    process = subprocess.Popen([sys.executable, "-m", "inheritune_lit", *command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not done.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "results.md").exists()
    kept = done.stat().st_mtime_ns
    assert main(command) == 0
    assert done.stat().st_mtime_ns == kept
    for name in ("results.md", "results.csv"):
        assert (tmp_path / "out" / name).read_text() == (whole / name).read_text()


def test_results_of_another_kind_are_refused(scored, two_models, suite, rows_dir, tmp_path, tokenizer_dir, capsys):
    _, out_dir = scored
    other = opinionated(tmp_path / "first", tokenizer_dir, seed=7)
    command = _command(suite, two_models, rows_dir, out_dir)
    before = {path: path.stat().st_mtime_ns for path in out_dir.rglob("*")}
    rows = tmp_path / "rows"
    for path in rows_dir.rglob("*.jsonl"):
        lines = [json.loads(line) for line in path.open()]
        write_jsonl(rows / path.relative_to(rows_dir), lines[:-1] if path.parent.name == "piqa" else lines)
    for changed, told in [
        (_command(suite, [other, two_models[1]], rows_dir, out_dir), "was made with weights_sha256"),
        (_command(suite, two_models, rows, out_dir), "was made with rows_sha256"),
        ([*command, "--limit", "3"], "was made with limit None, not 3"),
        ([*command, "--dtype", "bfloat16"], "was made with dtype 'float32', not 'bfloat16'"),
        (_command(suite, two_models[:1], rows_dir, out_dir), "has results of checkpoints 'second' too"),
        (_command("quick", two_models, rows_dir, out_dir), "was made with suite 'small', not 'quick'"),
    ]:
        assert main(changed) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("inheritune: error: ") and told in error
    assert {path: path.stat().st_mtime_ns for path in out_dir.rglob("*")} == before


def test_folders_of_something_else_are_left_alone(two_models, rows_dir, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds files"):
        evaluate(EvaluateArgs(two_models[:1], tasks="piqa", data_dir=rows_dir, out_dir=tmp_path))
    with pytest.raises(UserError, match="given twice"):
        evaluate(EvaluateArgs([two_models[0]] * 2, tasks="piqa", data_dir=rows_dir))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"question": "is it", "passage": "it is", "label": 1}], "'goal' is undefined"),
        (
            [{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}] * 3 + [{"goal": "a", "sol1": "b"}],
            "row 4 .* wrong shape",
        ),
        ([{"goal": "a", "sol1": "b", "sol2": "c", "label": -1}], "answer -1 of 2"),
        ([], "piqa"),
    ],
)
def test_rows_of_another_task_are_refused(two_models, tmp_path, rows, told):
    write_jsonl(tmp_path / "piqa/validation.jsonl", rows)
    with pytest.raises(UserError, match=told) as caught:
        evaluate(EvaluateArgs(two_models[:1], tasks="piqa", data_dir=tmp_path, out_dir=tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
