"""What an evaluation keeps: continued after a signal, scored again where the task changed, refused where damaged."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from task_fixtures import CHOICE, opinionated
from tiny import make_packed
from transformers import AutoModelForCausalLM

from inheritune_lit.cli import main
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation import scorer
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.evaluation.cells import floor_of
from inheritune_lit.evaluation.harness import evaluate
from inheritune_lit.evaluation.open_lm import LitLM
from inheritune_lit.evaluation.results import ResultFolder
from inheritune_lit.evaluation.score_cache import SharedWork
from inheritune_lit.io.folders import own_folder

SUMS = """task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "Q: {{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["Q:"], max_gen_toks: 4, do_sample: false}
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "#### ([0-9]+)"}, {function: take_first}]}
  - {name: flexible, filter: [{function: regex, regex_pattern: "(.)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROWS = [{"q": f"the door {i}", "c": ["opens", "water", "a cell"], "a": i % 3} for i in range(6)]


@pytest.fixture
def task(tmp_path):
    def write(text: str = CHOICE, rows: list[dict] = ROWS, name: str = "mine") -> Path:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path / f"{name}.yaml"

    return write


def scored(model: Path, file: Path, out_dir: Path | None = None, **more):
    return evaluate(EvaluateArgs([model], tasks=str(file), out_dir=out_dir, **more)).checkpoints[0]


def test_every_filter_has_its_score_and_samples(two_models, task, tmp_path):
    found = scored(two_models[0], task(SUMS), tmp_path / "out", log_samples=True)
    assert list(found.tasks["sums"]) == ["exact_match,strict", "exact_match,flexible"]
    assert [cell.title for cell in found.cells] == ["mine exact_match,strict", "mine exact_match,flexible"]
    samples = [json.loads(line) for line in (tmp_path / "out/first/sums.samples.jsonl").open()]
    assert [sample["filter"] for sample in samples].count("flexible") == len(ROWS)
    (tmp_path / "s.yaml").write_text(f"columns: [{{title: S, task: {tmp_path}/mine.yaml, metric: exact_match}}]")
    (cell,) = evaluate(EvaluateArgs(two_models[:1], suite=str(tmp_path / "s.yaml"))).checkpoints[0].cells
    assert (cell.title, cell.metric) == ("S", "exact_match,strict")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('text: "{{q}}"', 'text: "Q: {{q}}"'),
        ("doc_to_choice: c", "doc_to_choice: [opens, water, door]"),
        ("test_split: test", "test_split: test\ntarget_delimiter: ': '"),
        ("test_split: test", "test_split: test\ndescription: 'Answer. '"),
        ("test_split: test", "test_split: test\nfewshot_split: test\nnum_fewshot: 1"),
        ("metric: acc,", "metric: acc_norm,"),
    ],
)
def test_a_changed_task_is_scored_again_and_an_equal_one_is_not(two_models, task, tmp_path, old, new):
    scored(two_models[0], task(), tmp_path / "out")
    kept = (tmp_path / "out/first/mine.json").stat().st_mtime_ns
    scored(two_models[0], task(CHOICE + "\n# a comment\n"), tmp_path / "out")
    assert (tmp_path / "out/first/mine.json").stat().st_mtime_ns == kept
    again = scored(two_models[0], task(CHOICE.replace(old, new)), tmp_path / "out")
    assert (tmp_path / "out/first/mine.json").stat().st_mtime_ns != kept
    assert again.tasks == scored(two_models[0], task(CHOICE.replace(old, new))).tasks


def test_several_right_answers_have_a_floor(two_models, task):
    rows = [{**row, "a": [0, 2] if i % 2 else [1, 2]} for i, row in enumerate(ROWS)]
    (cell,) = scored(two_models[0], task(rows=rows)).cells
    assert (cell.floor.kind, cell.floor.value) == ("constant class", 100.0)  # the last choice is always right
    record = {"answers": [[0, 2], [1], [0, 1, 2]], "choices": [3, 3, 4]}
    assert floor_of([record], "acc", "chance", [1.0]).value == pytest.approx((2 / 3 + 1 / 3 + 3 / 4) / 3)
    assert floor_of([record], "acc", "constant", [1.0]).value == pytest.approx(2 / 3)
    texts = [{**row, "a": row["c"][row["a"]]} for row in ROWS]
    assert scored(two_models[0], task(rows=texts)).cells[0].floor.value == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"a": 3}, "row 5 .*answer 3 of 3"),
        ({"a": -1}, "row 5 .*answer -1 of 3"),
        ({"a": "nothing"}, "row 5 .*answer 'nothing' of 3"),
        ({"a": [0, 1]}, "row 5|do not fit"),
        ({"c": ["a", "", "b"]}, "row 5 .*choice ''"),
    ],
)
def test_a_row_that_cannot_be_right_is_named(two_models, task, row, told):
    with pytest.raises(UserError, match=told):
        scored(two_models[0], task(rows=[*ROWS[:4], {**ROWS[4], **row}]))
    with pytest.raises(UserError, match=r"row 1|do not fit"):
        scored(two_models[0], task(rows=[{**ROWS[0], "c": ["", "a", "b"]}]))


ROLLING = CHOICE.replace("multiple_choice", "loglikelihood_rolling").replace("doc_to_choice: c\n", "")


PERPLEXITY = ROLLING.replace("target: a", "target: \"{{ '山' * 4000 }}\"").replace(
    "metric: acc, aggregation: mean", "metric: word_perplexity, aggregation: weighted_perplexity"
)
MINE = SUMS.replace("sums", "mine")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (PERPLEXITY, "task 'mine': lm-eval cannot score it"),
        (MINE.replace("do_sample: false", "num_beams: 4"), "task 'mine': row 1: the task asks"),
        (MINE.replace("do_sample: false", "temperature: 0.5"), "generate with do_sample=True, which is not offered"),
        (MINE.replace("max_gen_toks: 4", "max_gen_toks: 100000"), "task 'mine': row 1: a task asks"),
        (CHOICE + "unsafe_code: true\n", "task 'mine': lm-eval cannot"),
        (CHOICE + "description: '{{ 1 // (a - 2) }}'\n", "task 'mine', row 3: lm-eval"),
    ],
)
def test_what_lm_eval_raises_is_a_line_that_names_the_task(two_models, task, tmp_path, capsys, text, told):
    command = ["eval", str(two_models[0]), "--tasks", str(task(text)), "--out_dir", str(tmp_path / "out")]
    assert main(command) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("inheritune: error: ") and told in last


def test_a_model_that_computes_nan_is_refused_and_nothing_is_left(tokenizer_dir, task, tmp_path):
    model = opinionated(tmp_path / "nan", tokenizer_dir)
    state = torch.load(model / "lit_model.pth")
    state["transformer.ln_f.weight"][3] = math.nan
    torch.save(state, model / "lit_model.pth")
    with pytest.raises(UserError, match="task 'mine': the model computes NaN"):
        scored(model, task(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    packed = make_packed(tmp_path / "packed", tokenizer_dir)
    with pytest.raises(UserError, match="the model computes NaN"):
        evaluate(EvaluateArgs([model], val_data=packed, max_seq_length=32, out_dir=tmp_path / "out"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["task", "packed"])
def test_a_signal_keeps_what_is_scored(two_models, task, tmp_path, tokenizer_dir, monkeypatch, capsys, number, kind):
    command = ["eval", str(two_models[0]), "--out_dir", str(tmp_path / "out"), "--max_batch_tokens", "24"]
    command += ["--tasks", str(task())]
    monkeypatch.setattr(scorer, "_TOKENS", 1024)
    if kind == "packed":
        command += ["--val_data", str(make_packed(tmp_path / "packed", tokenizer_dir)), "--max_seq_length", "256"]
    whole = evaluate(EvaluateArgs(two_models[:1], tasks=str(task()), max_batch_tokens=24)).checkpoints[0].tasks
    compute, done = SharedWork.compute, []

    def interrupted(self, batches, names, rows, rows_of, *rest):
        def counted(batch):
            done.append(batch)
            if len(done) == 2:
                os.kill(os.getpid(), number)
            return rows_of(batch)

        compute(self, batches, names, rows, counted, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(SharedWork, "compute", interrupted)
        if number == signal.SIGINT:
            assert main(command) == 130
        else:
            with pytest.raises(SystemExit, match="143"):
                main(command)
    assert "stopping; what is scored is in" in capsys.readouterr().err
    assert list((tmp_path / "out").rglob("scores-*.jsonl"))
    computed = []

    def counting(self, batches, names, *rest):
        computed.append((sum(map(len, batches)), len(names)))
        compute(self, batches, names, *rest)

    monkeypatch.setattr(SharedWork, "compute", counting)
    assert main(command) == 0
    assert computed[0][0] < computed[0][1]
    assert json.loads((tmp_path / "out/results.json").read_text())["checkpoints"][0]["tasks"] == whole
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")} == set()


def test_a_limit_bounds_packed_data_and_the_loss_is_transformers(hf_checkpoint, tmp_path):
    packed = make_packed(tmp_path / "packed", hf_checkpoint)
    args = EvaluateArgs([hf_checkpoint], val_data=packed, max_seq_length=32, limit=3)
    held_out = evaluate(args).checkpoints[0].held_out
    assert held_out["blocks"] == 3
    dataset, model = PackedDataset(packed, "val", 32), AutoModelForCausalLM.from_pretrained(hf_checkpoint)
    losses = []
    for number in range(3):
        ids = torch.from_numpy(dataset[number * len(dataset) // 3])[None]
        ids = ids[:, : int((ids >= 0).sum())]
        with torch.no_grad():
            losses.append((float(model(ids, labels=ids).loss), ids.shape[1] - 1))
    expected = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    assert held_out["loss"] == pytest.approx(expected, abs=1e-4)


def test_packed_data_is_kept_apart_by_its_limit(two_models, tmp_path, tokenizer_dir):
    packed = make_packed(tmp_path / "packed", tokenizer_dir)
    args = {"val_data": packed, "max_seq_length": 32, "out_dir": tmp_path / "out"}
    evaluate(EvaluateArgs(two_models[:1], **args, val_blocks=2))
    with pytest.raises(UserError, match="val_blocks 2, not 3"):
        evaluate(EvaluateArgs(two_models[:1], **args, val_blocks=3))


def test_a_second_process_is_told_who_is_at_work(two_models, task, tmp_path):
    scored(two_models[0], task(), tmp_path / "out")
    with own_folder(tmp_path / "out"), pytest.raises(UserError, match=r"process \d+ on .* is at work"):
        scored(two_models[0], task(), tmp_path / "out")


def _damaged(record: dict) -> list[object]:
    without = [{key: value for key, value in record.items() if key != left} for left in record]
    wrong = [{**record, key: value} for key in record for value in (None, [], "x", {"a": [None]}, 7.5)]
    return [*without, *wrong, [], None, "x"]


def test_damaged_results_are_one_line_or_make_no_difference(two_models, task, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["eval", str(two_models[0]), "--tasks", str(task()), "--out_dir", str(out)]
    assert main(command) == 0
    right = capsys.readouterr().out
    path = out / "first/mine.json"
    record = json.loads(path.read_text())
    folder = ResultFolder(out, json.loads((out / "inheritune.json").read_text())["settings"])
    for content in _damaged(record):
        path.write_text(json.dumps(content))
        try:
            kept = folder.read("first", "mine", record["identity"])
        except UserError as error:
            assert "mine.json" in str(error)
        else:
            assert kept is None or {**record, **kept}.keys() == record.keys()
    for text in ("", "{", "[" * 100000, '{"identity": NaN}', path.read_text()[:200]):
        path.write_text(text)
        assert main(command) == 2
        assert "mine.json" in capsys.readouterr().err.splitlines()[-1]
    path.unlink()
    for manifest in (
        {"kind": "evaluation"},
        {"kind": "evaluation", "settings": []},
        {"kind": 3},
        {"kind": "evaluation", "settings": {"checkpoints": 3, "columns": None}},
    ):
        (out / "inheritune.json").write_text(json.dumps(manifest))
        assert main(command) == 2
        assert "Traceback" not in capsys.readouterr().err
    shutil.rmtree(out)
    assert main(command) == 0
    assert capsys.readouterr().out == right


def test_checkpoints_of_one_name_are_kept_apart(two_models, task, tmp_path):
    for name in ("a/b_c", "a_b/c", "x/c", "results.json"):
        shutil.copytree(two_models[0], tmp_path / name)
    a, b, c = (tmp_path / name for name in ("a_b/c", "x/c", "a/b_c"))
    found = evaluate(EvaluateArgs([a, b, c], tasks=str(task()), out_dir=tmp_path / "out")).checkpoints
    assert len({one.name for one in found}) == 3
    assert len([path for path in (tmp_path / "out").iterdir() if path.is_dir()]) == 3
    with pytest.raises(UserError, match=r"would be called results.json"):
        scored(tmp_path / "results.json", task(), tmp_path / "other")


def test_no_forward_pass_of_a_finished_task(two_models, task, tmp_path, monkeypatch):
    scored(two_models[0], task(), tmp_path / "out")
    monkeypatch.setattr(LitLM, "loglikelihood", lambda *_: pytest.fail("it is scored again"))
    scored(two_models[0], task(), tmp_path / "out")
