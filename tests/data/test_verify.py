"""``prepare --verify`` finds every kind of damage."""

import json
import re
import shutil

import pytest

from inheritune_lit.cli import main
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.prepare import prepare


@pytest.fixture
def out(corpus, tokenizer_dir, tmp_path):
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    return tmp_path / "out"


def test_an_untouched_folder_passes_wherever_it_is(out, tmp_path, capsys):
    shutil.copytree(out, tmp_path / "copy")
    shutil.rmtree(out)
    assert main(["prepare", "--verify", str(tmp_path / "copy")]) == 0
    assert "8 files with 146,531 tokens are as the manifest says" in capsys.readouterr().out


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def forget_a_document(path):
    manifest = json.loads(path.read_text())
    manifest["domains"]["c4"]["train"]["documents"] -= 1
    path.write_text(json.dumps(manifest))


def forget_the_tokens(path):
    manifest = json.loads(path.read_text())
    manifest["domains"]["c4"]["val"]["tokens"] = "x"
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("file", "damage", "told"),
    [
        ("train/c4.bin", flip, "train/c4.bin has another SHA-256"),
        ("val/c4.idx", flip, "val/c4.idx has another SHA-256"),
        ("train/c4.bin", lambda path: path.write_bytes(path.read_bytes()[:-2]), "train/c4.bin has .* bytes instead of"),
        ("val/book.idx", lambda path: path.unlink(), "val/book.idx is missing"),
        ("train/new.bin", lambda path: path.write_bytes(b"x"), "train/new.bin is not listed"),
        ("inheritune.json", forget_a_document, "train/c4 holds 90970 tokens of 126 documents"),
        ("inheritune.json", forget_the_tokens, r"isn't the manifest .*: domains\.c4\.val\.tokens is str 'x'"),
        ("train", shutil.rmtree, "train/book.bin is missing and 3 more"),
    ],
)
def test_damage_is_named(out, capsys, file, damage, told):
    damage(out / file)
    assert main(["prepare", "--verify", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("inheritune: error: ")
    assert re.search(told, error), error


def test_what_is_no_packed_data(tmp_path, capsys):
    assert main(["prepare", "--verify", str(tmp_path / "nowhere")]) == 2
    assert "no packed data at" in capsys.readouterr().err


def test_a_preparation_needs_its_three_folders(tmp_path, capsys):
    assert main(["prepare", "--source", str(tmp_path)]) == 2
    assert "--tokenizer_dir is required" in capsys.readouterr().err
