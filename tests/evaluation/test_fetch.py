"""Rows mirrored from a hub of folders are those that lm-eval reads."""

import json

import pytest
from tiny import write_jsonl

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.evaluation.harness import evaluate


@pytest.fixture
def hub(rows_dir, tmp_path, monkeypatch):
    """A folder where data sets lie under the hub's names: the data library loads folders as it loads repositories."""
    for task, path, split in [("piqa", "baber/piqa", "validation"), ("sciq", "allenai/sciq", "test")]:
        rows = [json.loads(line) for line in (rows_dir / task / f"{split}.jsonl").open()]
        write_jsonl(tmp_path / "hub" / path / f"{split}.jsonl", rows)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "hub")
    return tmp_path


def test_a_mirror_gives_the_same_scores_as_the_rows_themselves(hub, rows_dir, two_models, caplog):
    caplog.set_level("INFO")
    evaluate(EvaluateArgs(fetch_data=hub / "mirror", tasks="piqa,sciq"))
    assert sorted(path.name for path in (hub / "mirror").iterdir()) == ["piqa", "sciq"]
    scores = [
        evaluate(EvaluateArgs(two_models[:1], tasks="piqa,sciq", data_dir=folder)).checkpoints[0].tasks
        for folder in (rows_dir, hub / "mirror")
    ]
    assert scores[0] == scores[1]
    evaluate(EvaluateArgs(fetch_data=hub / "mirror", tasks="piqa"))
    assert "piqa: there already" in caplog.text


def test_what_the_hub_does_not_have_leaves_nothing_behind(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (hub / "hub/baber/piqa/validation.jsonl").write_text("{broken\n")
    with pytest.raises(UserError, match="cannot fetch the validation rows of task 'piqa'") as caught:
        evaluate(EvaluateArgs(fetch_data=hub / "mirror", tasks="piqa"))
    assert "\n" not in str(caught.value)
    assert not list((hub / "mirror").iterdir())
    with pytest.raises(UserError, match="give --suite or --tasks"):
        evaluate(EvaluateArgs(fetch_data=hub / "mirror"))
    with pytest.raises(UserError, match="unknown task 'piqua'"):
        evaluate(EvaluateArgs(fetch_data=hub / "mirror", tasks="piqua"))
