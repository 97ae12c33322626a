"""docs/offline.md: fetched from a hub on this machine, used without any connection; docs/recipes.md."""

import shlex
import shutil
import socket
from pathlib import Path

import pytest
from hub_server import running_hub
from page import ROOT, SMALLER, bash_lines
from random_models import build_llama
from random_text import make_documents
from tiny import make_checkpoint, make_packed, write_jsonl

from inheritune_lit.cli import main


@pytest.fixture
def folder(tmp_path, rows_dir, monkeypatch) -> Path:
    """An empty folder to work in; data sets of tasks lie under the hub's names, which the data library takes too."""
    for task, path, split in [("piqa", "baber/piqa", "validation"), ("sciq", "allenai/sciq", "test")]:
        (tmp_path / path).mkdir(parents=True)
        shutil.copy(rows_dir / task / f"{split}.jsonl", tmp_path / path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, more: str = "") -> None:
    # Not all of the suite's rows are here.
    words = shlex.split(line.replace("--suite paper-table5", "--tasks piqa,sciq"))
    assert main([*words[1:], *shlex.split(more)]) == 0, line


def test_fetched_here_used_there(folder, tokenizer_dir, monkeypatch):
    lines = bash_lines((ROOT / "docs" / "offline.md").read_text())
    assert [line.split()[1] for line in lines] == ["slice", "prepare", "eval", "pretrain", "eval"]
    with running_hub(folder / "cache", monkeypatch) as hub:
        remote = folder / "remote"
        build_llama(vocab_size=400, num_hidden_layers=26, max_position_embeddings=256).save_pretrained(remote)
        for file in tokenizer_dir.iterdir():
            shutil.copy(file, remote)
        hub.repositories["openlm-research/open_llama_3b"] = remote
        rows = [{"text": text} for text in make_documents(60, 1)]
        write_jsonl(folder / "text" / "c4_sample.jsonl", rows)
        hub.repositories["togethercomputer/RedPajama-Data-1T-Sample"] = folder / "text"
        for line in lines[:3]:
            run(line, SMALLER["prepare"] if "prepare" in line else "")
    for name in ("remote", "text", "baber", "allenai", "cache"):
        shutil.rmtree(folder / name)

    def refused(*_, **__):
        raise OSError("this machine has no network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for line in lines[3:]:
        run(line, SMALLER["pretrain"] if "pretrain" in line else "--limit 4")
    assert (folder / "scores" / "results.md").is_file()


def test_recipes_page(folder, tokenizer_dir, capsys):
    lines = bash_lines((ROOT / "docs" / "recipes.md").read_text())
    assert [line.split()[1] for line in lines] == ["plan", "pretrain"]
    run(lines[0])
    assert "1,815,638,400 parameters" in capsys.readouterr().out
    make_checkpoint(folder / "checkpoints/openlm-research/open_llama_3b-13l", tokenizer_dir, block_size=2048)
    (folder / "data").mkdir()
    make_packed(folder / "data/redpajama-50b", tokenizer_dir)
    run(lines[1], "--train.max_seq_length 16 --train.micro_batch_size 1 --eval.max_iters 1")
    assert not (folder / "runs").exists()
