"""The commands of docs/commands.md run, one after the other, on a tiny model in place of the documented one."""

import re
import shlex
from pathlib import Path

from random_text import make_documents
from tiny import make_checkpoint, write_jsonl

from inheritune_lit.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_every_command_of_the_page_runs(tmp_path, tokenizer_dir, rows_dir, monkeypatch, capsys):
    make_checkpoint(tmp_path / "smollm2", tokenizer_dir, n_layer=30, block_size=2048)
    for seed, domain in enumerate(("arxiv", "c4", "wikipedia")):
        texts = make_documents(150, seed)
        write_jsonl(tmp_path / "redpajama-sample" / f"{domain}_sample.jsonl", [{"text": text} for text in texts])
    (tmp_path / "rows").symlink_to(rows_dir)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```\n\$ (inheritune .*?[^\\])\n", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    commands = [shlex.split(block.replace("\\\n", " "))[1:] for block in blocks]
    assert [command[0] for command in commands] == [
        "slice",
        "prepare",
        "pretrain",
        "eval",
        "export",
        "grow",
        "analyze",
        "teach",
    ]
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr().err)
    kept = ("checkpoints/smollm2-15l", "data/redpajama-sample", "runs/smollm2-15l/final", "scores", "hf/smollm2-15l")
    for made in kept:
        assert (tmp_path / made / "inheritune.json").is_file()
    for planned in ("runs/grow", "analysis", "data/teacher"):
        assert not (tmp_path / planned).exists()
