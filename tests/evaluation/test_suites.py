"""Suites: the paper's tables as data, their tasks and floors."""

import json
from pathlib import Path

import pytest
from tiny import write_jsonl

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.cells import floor_of
from inheritune_lit.evaluation.local_rows import space_logiqa
from inheritune_lit.evaluation.suite import GROUPS, load_suite
from inheritune_lit.evaluation.tasks import TaskResolver, mmlu_subjects, task_manager
from inheritune_lit.resources import suites_dir

NAMES = ["paper-table1", "paper-table4", "paper-table5", "quick"]
REPOSITORY = Path(__file__).parents[2]


def test_every_suite_names_tasks_and_metrics_that_lm_eval_has():
    assert sorted(path.stem for path in suites_dir().glob("*.yaml")) == NAMES
    for name in NAMES:
        for column in load_suite(name).columns:
            if column.task != "mmlu":
                config = task_manager().task_index[column.task].cfg
                assert column.metric in [entry["metric"] for entry in config["metric_list"]]


def test_table_5_has_the_seven_of_ten_that_the_paper_prints_bold():
    """Its caption: at least 90% of the reference, or above at least two baselines."""
    reference, *baselines, ours = (row.scores for row in load_suite("paper-table5").paper)
    bold = {
        title
        for title, score in ours.items()
        if score >= 0.9 * reference[title] or sum(score > each[title] for each in baselines) >= 2
    }
    assert len(bold) == 7 and set(ours) - bold == {"PIQA", "WinoGrande", "LogiQA"}


def test_table_4_has_its_averages():
    printed = [47.74, 46.84, 48.08, 49.44, 48.17, 49.75]
    for row, average in zip(load_suite("paper-table4").paper, printed, strict=True):
        assert sum(row.scores.values()) / 5 == pytest.approx(average, abs=0.011)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("columns: []", "no columns"),
        (
            "columns: [{title: A, task: piqa, metric: acc, shots: 3}]",
            "columns.shots is unknown, known are title, task",
        ),
        ("columns: [{task: piqa}]", "columns.title is missing"),
        ("columns: [{title: A, task: piqa, floor: low}]", "floor is str 'low', not auto or constant or chance or none"),
        ("columns: [{title: A, task: piqa}]\npaper: [{model: M, scores: {B: 1}}]", "score for 'B'"),
        ("[1, 2]", "can't be read as a suite"),
        ("columns: {", "can't be read as a suite"),
        ("", "can't be read as a suite"),
        ("a: &a [*a]\ncolumns: [{title: A, task: piqa}]", "can't be read as a suite"),
        ("columns: [{title: [A], task: piqa}]", "title is list"),
        ("columns: [{title: A, task: 7}]", "task is int"),
        ("columns: [{title: A, task: piqa, num_fewshot: no}]", "num_fewshot"),
        ("columns: [{title: A, task: piqa, num_fewshot: -1}]", "num_fewshot -1"),
        ("columns: [{title: A, task: piqa, random_init: 3}]", "random_init"),
        ("columns: [{title: A, task: piqa, random_init: {value: x, source: y}}]", "random_init"),
        ("columns: [{title: A, task: piqa, metric: {a: 1}}]", "metric"),
        ("columns: [{title: A, task: piqa}]\npaper: [{model: M, scores: [1]}]", "scores"),
        ("columns: [{title: A, task: piqa}]\npaper: [{model: M, scores: {A: x}}]", "scores.A"),
        ("columns: [{title: A, task: piqa}]\naverage: 7", "average"),
        ("columns: [{title: A, task: piqa}]\nname: [x]", "name"),
        ("columns: [7]", "columns is int '7'"),
        ("columns: 7", "columns is int '7'"),
        ("title: A", "columns is missing"),
    ],
)
def test_bad_suites_are_one_line(tmp_path, text, told):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        load_suite(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_unknown_suites_are_answered_with_near_ones():
    with pytest.raises(UserError, match="did you mean paper-table5"):
        load_suite("paper-tabel5")


def test_mmlu_has_57_subjects_in_four_groups():
    found = mmlu_subjects()
    groups = [task_manager().task_index[name].cfg["tag"] for name in found.values()]
    assert len(found) == 57
    assert {tag: groups.count(tag) for tag in GROUPS} == {
        "mmlu_stem_tasks": 19,
        "mmlu_humanities_tasks": 13,
        "mmlu_social_sciences_tasks": 12,
        "mmlu_other_tasks": 13,
    }


def test_real_rows_have_the_known_floors(inheritune_data):
    def labels(task: str, split: str, key: str, count: int) -> dict:
        rows = [json.loads(line) for line in (inheritune_data / "tasks" / task / f"{split}.jsonl").open()]
        return {"answers": [row[key] for row in rows], "choices": [count] * len(rows)}

    for task, split, key, count, percent in [
        ("piqa", "validation", "label", 2, 50.49),
        ("qnli", "validation", "label", 2, 50.54),
        ("wnli", "validation", "label", 2, 56.34),
        ("mnli", "validation_matched", "label", 3, 35.45),
        ("logiqa", "test", "label", 4, 27.80),
    ]:
        found = floor_of([labels(task, split, key, count)], "acc", "auto", [1.0])
        assert 100 * found.value == pytest.approx(percent, abs=0.006)
    rows: dict[str, dict] = {}
    for line in (inheritune_data / "tasks/mmlu/test.jsonl").open():
        row = json.loads(line)
        rows.setdefault(row["subject"], {"answers": [], "choices": []})["answers"].append(row["answer"])
    sizes = [float(len(record["answers"])) for record in rows.values()]
    assert 100 * floor_of(list(rows.values()), "acc", "auto", [1.0] * 57).value == pytest.approx(27.04, abs=0.006)
    assert 100 * floor_of(list(rows.values()), "acc", "auto", sizes).value == pytest.approx(26.89, abs=0.006)


def test_answers_always_in_one_place_have_chance_as_their_floor():
    record = {"answers": [3] * 6, "choices": [4, 4, 2, 2, 4, 4]}
    assert floor_of([record], "acc", "auto", [1.0]).value == pytest.approx((4 * 0.25 + 2 * 0.5) / 6)
    assert floor_of([record], "acc", "none", [1.0]) is None
    assert floor_of([record], "perplexity", "auto", [1.0]) is None


def test_logiqa_gets_the_blanks_of_lm_evals_data_set():
    raw = {"label": "b", "context": "One.Two.", "question": "Which?", "options": ["A.x", "B", "C", "D."]}
    spaced = {**raw, "context": "One. Two.", "options": ["A. x", "B", "C", "D."]}
    assert space_logiqa([raw]) == [spaced]
    assert space_logiqa([spaced]) == [spaced]


def test_rows_may_be_parquet_or_folders_of_the_hub(rows_dir, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [json.loads(line) for line in (rows_dir / "piqa/validation.jsonl").open()]
    layouts = ["piqa/validation.parquet", "baber/piqa/data/validation-00000-of-00001.parquet"]
    layouts.append("piqa/validation/0000.parquet")
    for number, layout in enumerate(layouts):
        path = tmp_path / str(number) / layout
        path.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        resolved = TaskResolver(tmp_path / str(number), None, tmp_path).resolve(["piqa"])
        assert resolved.rows["piqa"].splits == {"validation": [path]}
        task = resolved.manager.load(resolved.specs)["tasks"]["piqa"]
        assert [dict(doc) for doc in task.eval_docs] == rows


def test_mmlu_subjects_may_have_folders_of_their_own(rows_dir, tmp_path):
    for split in ("dev", "test"):
        rows = [json.loads(line) for line in (rows_dir / f"mmlu/{split}.jsonl").open()]
        write_jsonl(tmp_path / f"cais/mmlu/anatomy/{split}.jsonl", [r for r in rows if r["subject"] == "anatomy"])
    resolved = TaskResolver(tmp_path, None, tmp_path).resolve(["mmlu"])
    assert list(resolved.each()) == ["mmlu_anatomy"]
    task = resolved.manager.load(resolved.specs)["tasks"]["mmlu_anatomy"]
    assert len(task.eval_docs) == 8
