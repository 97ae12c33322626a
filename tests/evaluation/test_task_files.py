"""Task files: every form that lm-eval takes is scored, and what others wrote runs, reads and writes nothing else."""

import json
import os
from pathlib import Path

import pytest
from task_fixtures import CHOICE

from inheritune_lit.cli import main
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.evaluation.harness import evaluate

FILES = "{data_files: {test: rows.jsonl}}"
SHOTS = "num_fewshot: 2\nfewshot_config: {sampler: first_n, doc_to_text: '{{q}}?', samples: [SAMPLES]}\n"
SAMPLES = "{q: x, c: [a, b], a: 0}, {q: y, c: [a, b], a: 1}"


@pytest.fixture
def here(tmp_path) -> Path:
    folder = tmp_path / "tasks"
    (folder / "below").mkdir(parents=True)
    rows = [{"q": f"the door {i}", "c": ["opens", "water"], "a": i % 2} for i in range(4)]
    for name in ("rows", "more", "part-1", "part-2"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "normal.yaml").write_text(CHOICE)
    (folder / "helpers.py").write_text("open('ran', 'w')\ndef pick(doc):\n    return doc['c']\n")
    (tmp_path / "secret.jsonl").write_text((folder / "rows.jsonl").read_text())
    (tmp_path / "secret.yaml").write_text(CHOICE)
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    return folder


def scored(model, *files: Path, **more):
    return evaluate(EvaluateArgs([model], tasks=",".join(map(str, files)), **more)).checkpoints[0]


def written(here: Path, text: str, name: str = "file.yaml") -> Path:
    (here / name).write_text(text)
    return here / name


def of_train(text: str) -> str:
    return text.replace("test_split: test", "test_split: train")


@pytest.mark.parametrize(
    ("text", "tasks", "rows"),
    [
        (of_train(CHOICE.replace(FILES, "{data_files: rows.jsonl}")), ["mine"], 4),
        (of_train(CHOICE.replace(FILES, "{data_files: [rows.jsonl, more.jsonl]}")), ["mine"], 8),
        (CHOICE.replace("rows.jsonl", "[rows.jsonl, more.jsonl]"), ["mine"], 8),
        (CHOICE.replace("rows.jsonl", "'part-*.jsonl'"), ["mine"], 8),
        (CHOICE.replace("doc_to_choice: c", "doc_to_choice: {no: opens, yes: water}"), ["mine"], 4),
        ("include: normal.yaml\ntask: other\n", ["other"], 4),
        ("include: [normal.yaml]\ntask: other\ndoc_to_text: 'Q: {{q}}'\n", ["other"], 4),
        ("group: both\ntask: [normal.yaml]\n", ["mine"], 4),
        ("group: both\ntask:\n  - mine\n", ["mine"], 4),
        ("group: both\ntask:\n  - task: mine\n    num_fewshot: 1\n", ["mine"], 4),
        ("group: both\ntask:\n  - group: inner\n    task: [mine]\n", ["mine"], 4),
        ("group: both\ntask:\n  - INLINE\n  - normal.yaml\n", ["both::inline", "mine"], 4),
        (CHOICE + SHOTS.replace("SAMPLES", SAMPLES), ["mine"], 4),
    ],
)
def test_the_forms_of_lm_evals_guide_are_scored(two_models, here, text, tasks, rows):
    inline = CHOICE.rstrip().replace("task: mine", "task: inline").replace("\n", "\n    ")
    found = scored(two_models[0], written(here, text.replace("INLINE", inline)))
    assert list(found.tasks) == tasks
    assert found.tasks[tasks[0]]["acc"]["n"] == rows
    assert len(found.cells) == len(tasks)


UNSAFE = '"{{ q.__class__ }}"'
HOSTILE = {
    "function": (CHOICE.replace("choice: c", "choice: !function helpers.pick"), "only lm-eval's own tasks"),
    "object": (CHOICE.replace("choice: c", "choice: !!python/object/apply:os.system [touch ran]"), "can't be read"),
    "class": (CHOICE + "class: helpers.Task\n", "no field 'class'"),
    "text": (CHOICE.replace("{{q}}", "{{ cycler.__init__.__globals__.os.popen('touch ran') }}"), "unsafe"),
    "choice": (
        CHOICE.replace("choice: c", "choice: \"{{ [lipsum.__globals__['os'].system('touch ran')] }}\""),
        "unsafe",
    ),
    "target": (CHOICE.replace("target: a", f"target: {UNSAFE}"), "unsafe"),
    "description": (CHOICE + f"description: {UNSAFE}\n", "unsafe"),
    "prefix": (CHOICE + f"gen_prefix: {UNSAFE}\n", "unsafe"),
    "shots": (CHOICE + SHOTS.replace("SAMPLES", SAMPLES).replace("'{{q}}?'", UNSAFE), "unsafe"),
    "group": (f"group: g\ndoc_to_text: {UNSAFE}\ntask: [normal.yaml]\n", "unsafe"),
    "inner group": (
        f"group: g\ntask:\n  - group: h\n    task:\n      - task: mine\n        doc_to_text: {UNSAFE}\n",
        "unsafe",
    ),
    "memory": (CHOICE.replace("{{q}}", "{{ q * 10 ** 10 }}"), "more than"),
    "name above": (CHOICE.replace("task: mine", "task: ../../evil"), "task name '../../evil'"),
    "absolute name": (CHOICE.replace("task: mine", "task: /tmp/evil"), "task name"),
    "name that is none": (CHOICE.replace("task: mine", "task: [mine]"), "no field `task`"),
    "name in a group": ("group: g\ntask:\n  - task: ../evil\n    doc_to_text: x\n", "task name"),
    "data above": (CHOICE.replace("rows.jsonl", "../secret.jsonl"), "leads out of its folder"),
    "absolute data": (CHOICE.replace("rows.jsonl", "/etc/passwd"), "leads out of its folder"),
    "data in a list": (CHOICE.replace("rows.jsonl", "[rows.jsonl, /etc/passwd]"), "leads out of its folder"),
    "linked data": (CHOICE.replace("rows.jsonl", "link.jsonl"), "leads out of its folder"),
    "linked pattern": (CHOICE.replace("rows.jsonl", "'l*.jsonl'"), "leads out of its folder"),
    "remote data": (CHOICE.replace("rows.jsonl", "'https://127.0.0.1/rows.jsonl'"), "not beside it"),
    "missing data": (CHOICE.replace("rows.jsonl", "none.jsonl"), "not beside it"),
    "no data": (CHOICE.replace(FILES, ""), "without data_files"),
    "data of numbers": (CHOICE.replace("rows.jsonl", "[1, 2]"), "give the name of a file"),
    "arguments of text": (CHOICE.replace(FILES, "rows.jsonl"), "dataset_kwargs is"),
    "include above": ("include: ../secret.yaml\ntask: other\n", "leads out of its folder"),
    "include of a system file": ("include: /etc/hostname\ntask: other\n", "leads out of its folder"),
    "include of itself": ("include: file.yaml\ntask: other\n", "includes itself"),
    "group of itself": ("group: g\ntask: [file.yaml]\n", "names itself"),
    "group file above": ("group: g\ntask: [../secret.yaml]\n", "leads out of its folder"),
    "unknown member": ("group: g\ntask: [piqua]\n", "unknown task 'piqua'; did you mean piqa"),
    "member that is none": ("group: g\ntask: [[1]]\n", "has the member"),
    "pickled rows": (CHOICE.replace("dataset_path: json", "dataset_path: pandas"), "could run code"),
    "rows of a folder": (CHOICE.replace("dataset_path: json", "dataset_path: ../tasks"), "dataset_path '../tasks'"),
    "a file as metric": (CHOICE.replace("metric: acc,", "metric: ./helpers.py,"), "not a metric of lm-eval's"),
    "a hub metric": (CHOICE.replace("metric: acc,", "metric: acc, hf_evaluate: true,"), "not a metric of lm-eval's"),
    "an unknown aggregation": (CHOICE.replace("aggregation: mean", "aggregation: meam"), "aggregation 'meam'"),
    "a prompt file": (CHOICE + "use_prompt: '/etc/hostname.yaml:x'\n", "use_prompt"),
    "a place to write": (CHOICE.replace("{data_files", "{storage_options: {}, data_files"), "storage_options"),
    "many repeats": (CHOICE + "repeats: 1000000000\n", "repeats is"),
    "many shots": (CHOICE + "num_fewshot: 1000000\n", "takes 1000000 examples"),
    "fewer than none": (CHOICE + "num_fewshot: -1\n", "num_fewshot is -1"),
    "an unknown field": (CHOICE + "doc_to_txt: x\n", "no field 'doc_to_txt'; did you mean doc_to_text"),
    "aliases": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
        + CHOICE,
        "too many values",
    ),
    "no mapping": ("- task: mine\n", "can't be read as a task file"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_others_wrote_is_refused_in_one_line(two_models, here, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, told = HOSTILE[kind]
    with pytest.raises(UserError) as caught:
        scored(two_models[0], written(here, text), out_dir=tmp_path / "out")
    assert told in str(caught.value)
    assert not {path.name for path in tmp_path.rglob("*")} & {"ran", "out", "evil.json"}


def test_a_pipe_is_no_task_file(two_models, here):
    os.mkfifo(here / "pipe.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        scored(two_models[0], here / "pipe.yaml")


def test_more_examples_than_rows_or_fewer_than_none(two_models, here, capsys):
    file = written(here, CHOICE + "fewshot_split: test\n")
    command = ["eval", str(two_models[0]), "--tasks", str(file), "--num_fewshot"]
    for shots in ("5", "4", "-1"):  # the row that is scored is no example
        assert main([*command, shots]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("inheritune: error: ")
    assert main([*command, "3"]) == 0


def test_two_tasks_of_one_name_are_refused_and_two_files_of_one_name_are_not(two_models, here):
    other = written(here / "below", CHOICE.replace("{{q}}", "Q: {{q}}"), "normal.yaml")
    (here / "below/rows.jsonl").write_text((here / "rows.jsonl").read_text())
    with pytest.raises(UserError, match="another has that name"):
        scored(two_models[0], here / "normal.yaml", other)
    other.write_text(CHOICE.replace("task: mine", "task: other"))
    assert len({cell.title for cell in scored(two_models[0], here / "normal.yaml", other).cells}) == 2
    with pytest.raises(UserError, match="called 'held_out'"):
        scored(two_models[0], written(here, CHOICE.replace("task: mine", "task: held_out")))
