"""Recorded settings against asked ones, and what messages have in common."""

import pytest

from inheritune_lit.errors import UserError, first_line, suggest
from inheritune_lit.io.folders import new_folder
from inheritune_lit.io.manifest import check_folder, check_settings, differences, write_manifest


def test_differences_are_named_with_their_path():
    old = {"seed": 1, "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]}, "gone": True}
    new = {"seed": 1, "optimizer": {"lr": 0.2, "betas": [0.9, 0.95]}, "added": "x"}
    assert list(differences(old, new)) == [
        ("added", None, "x"),
        ("gone", True, None),
        ("optimizer.lr", 0.1, 0.2),
    ]
    assert list(differences(old, dict(old))) == []


def test_settings_that_may_differ():
    check_settings("runs/a was made", {"data": 1, "seed": 1}, {"data": 2, "seed": 1}, free=("data",))
    with pytest.raises(UserError, match=r"^runs/a was made with seed 1, not 2; give another --out_dir$"):
        check_settings("runs/a was made", {"seed": 1}, {"seed": 2})


def test_a_folder_is_vacant_the_same_or_refused(tmp_path):
    folder = tmp_path / "run"
    assert check_folder(folder, "run", {"seed": 1}) is None
    with new_folder(folder) as staging:
        write_manifest(staging, "run", {"settings": {"seed": 1}})
    manifest = check_folder(folder, "run", {"seed": 1})
    assert manifest and manifest["settings"] == {"seed": 1}
    with pytest.raises(UserError, match="was started with seed 1, not 2; use the old value"):
        check_folder(folder, "run", {"seed": 2})
    with pytest.raises(UserError, match="holds a run, not a growth"):
        check_folder(folder, "growth", {"seed": 1})
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds files"):
        check_folder(tmp_path / "other", "run", {})


def test_near_names_are_suggested():
    assert suggest("OpenLama-3b", ["openllama-3b", "pythia-1b"]) == "did you mean openllama-3b?"
    assert suggest("h10", ["H100", "H200", "L4"], most=2, cutoff=0.5) == "did you mean H100 or H200?"
    assert suggest("zzz", ["a", "b"], "give a or b") == "give a or b"


def test_first_line_of_an_error():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
