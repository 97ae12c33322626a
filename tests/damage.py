"""A small world of all the files that commands read, and ways to damage one of them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import make_checkpoint, make_packed, write_jsonl

from inheritune_lit.cli import main

TRAIN = (
    "--train.max_steps 3 --train.lr_warmup_steps 1 --train.global_batch_size 2 --train.micro_batch_size 1 "
    "--train.max_seq_length 16 --train.log_interval 1 --eval.interval 2 --eval.max_iters 1 --precision 32-true"
)
TASK = """task: next_word
dataset_path: json
dataset_kwargs:
  data_files:
    test: rows.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - metric: acc
"""


@dataclass(frozen=True)
class Trial:
    """A command and the files of the world that it reads.

    Attributes:
        command: its arguments; ``out`` is where it writes.
        files: patterns of the files that are damaged.
        own: the folder that the command continues, which may change; None where it makes a new one.
        weight: how often it is drawn, for one that is drawn once.
    """

    command: str
    files: tuple[str, ...]
    own: str | None = None
    weight: int = 1


SEARCH = "search lit --data data --num_sequences 1 --seq_length 8 --out_dir searched"
TRIALS = [
    Trial("slice hf --n 1 --out_dir out", ("hf/*",), weight=5),
    Trial("slice lit --n 1 --out_dir out", ("lit/*",), weight=4),
    Trial("export lit --out_dir out", ("lit/*",), weight=4),
    Trial("prepare --source text --tokenizer_dir hf --num_workers 1 --out_dir out", ("text/*", "hf/token*"), weight=5),
    Trial("prepare --verify data", ("data/*", "data/*/*"), weight=3),
    Trial(f"pretrain lit --data data --out_dir out {TRAIN}", ("lit/*", "data/*", "data/*/*"), weight=3),
    Trial(f"pretrain lit --data data --out_dir run {TRAIN}", ("run/*",), own="run", weight=2),
    Trial("pretrain --config recipe.yaml", ("recipe.yaml",), weight=2),
    Trial("plan --config recipe.yaml", ("recipe.yaml",), weight=2),
    Trial("plan hf --n 1 --tokens 1M", ("hf/*",)),
    Trial("eval lit --tasks task/next_word.yaml --out_dir out", ("task/*", "lit/*"), weight=3),
    Trial("eval lit --suite suite.yaml --data_dir task --out_dir out --limit 2", ("suite.yaml",)),
    Trial("eval lit --tasks task/next_word.yaml --out_dir scores", ("scores/*", "scores/*/*"), own="scores"),
    Trial("report run --out_dir out", ("run/*", "run/*/*"), weight=3),
    Trial(
        "search lit --data data --num_sequences 1 --seq_length 8 --out_dir searched", ("searched/*",), own="searched"
    ),
    Trial("slice lit --search searched --n 1 --out_dir out", ("searched/*",)),
    Trial("analyze lit --data data --num_sequences 1 --seq_length 8 --out_dir out", ("data/*", "data/*/*", "lit/*")),
]


def make_world(folder: Path, tokenizer_dir: Path) -> None:
    """Write one of everything, the results of commands by the commands themselves."""
    os.chdir(folder)
    make_checkpoint(Path("lit"), tokenizer_dir)
    assert main(["export", "lit", "--out_dir", "hf"]) == 0
    make_packed(Path("data"), tokenizer_dir)
    (folder / "data.jsonl").unlink()
    write_jsonl(Path("text/a.jsonl"), [{"text": f"the cat sees text {number}. " * 9} for number in range(40)])
    Path("text/b.txt").write_text("every model reads a tree. " * 50)
    write_jsonl(
        Path("task/rows.jsonl"), [{"text": "the cat", "gold": n % 2, "choices": ["a", "the dog"]} for n in range(4)]
    )
    Path("task/next_word.yaml").write_text(TASK)
    Path("suite.yaml").write_text("description: one task\ntasks:\n  - task: task/next_word.yaml\n    num_fewshot: 0\n")
    Path("recipe.yaml").write_text(
        "initial_checkpoint_dir: lit\ndata: data\nout_dir: out\nprecision: 32-true\nseed: 1\n"
        "train:\n  global_batch_size: 2\n  micro_batch_size: 1\n  max_seq_length: 16\n  max_steps: 2\n"
        "  lr_warmup_steps: 1\neval:\n  max_iters: 1\noptimizer:\n  lr: 3.0e-4\n"
    )
    assert (
        main(f"pretrain lit --data data --out_dir run {TRAIN} --train.max_time 0.0001 --train.save_interval 1".split())
        == 0
    )
    assert (
        main(["search", "lit", "--data", "data", "--num_sequences", "1", "--seq_length", "8", "--out_dir", "searched"])
        == 0
    )
    assert main(["eval", "lit", "--tasks", "task/next_word.yaml", "--out_dir", "scores"]) == 0


VALUES = [None, -1, 0, 1.5, 1e308, 10**20, "", "x" * 999, "\x1b[31m\n", [], [None], {}, {"a": {}}, True, [[0]] * 3]


def damage(path: Path, draw: random.Random) -> str:
    """Damage a file in one of many ways; returns which."""
    structured = path.suffix in (".json", ".yaml", ".jsonl") and draw.random() < 0.6
    name = draw.choice(list(_STRUCTURED if structured else _PLAIN))
    (_STRUCTURED if structured else _PLAIN)[name](path, draw)
    return name


def _rewrite(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    return lambda path, draw: path.write_bytes(change(path.read_bytes(), draw)) and None


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        # Where a format says what follows, and anywhere.
        place = draw.randrange(min(len(changed), draw.choice([16, 512, len(changed)])))
        changed[place] = draw.randrange(256)
    return bytes(changed)


def _replace(make: Callable[[Path], Any]) -> Callable[[Path, random.Random], None]:
    def apply(path: Path, draw: random.Random) -> None:
        path.unlink()
        make(path)

    return apply


_PLAIN = {
    "cut": _rewrite(lambda content, draw: content[: draw.randrange(len(content))]),
    "empty": _rewrite(lambda content, draw: b""),
    "zeros": _rewrite(lambda content, draw: bytes(len(content))),
    "flipped": _rewrite(_flip),
    "longer": _rewrite(lambda content, draw: content + draw.randbytes(draw.randint(1, 99))),
    "noise": _rewrite(lambda content, draw: draw.randbytes(len(content))),
    "twice": _rewrite(lambda content, draw: content * 2),
    "hole": _rewrite(lambda content, draw: content[: len(content) // 3] + content[len(content) // 2 :]),
    "0xff": _rewrite(lambda content, draw: b"\xff" * len(content)),
    "pointer": _rewrite(lambda content, draw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    "gone": lambda path, draw: path.unlink(),
    "folder": _replace(lambda path: path.mkdir()),
    "pipe": _replace(os.mkfifo),
    "loop": _replace(lambda path: path.symlink_to(path.name)),
    "dangling": _replace(lambda path: path.symlink_to("nowhere")),
    "device": _replace(lambda path: path.symlink_to("/dev/zero")),
}


def _change_value(path: Path, draw: random.Random) -> None:
    """Give a random value of a structured file another type, or take it away, or give it an unknown neighbour."""
    import yaml

    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    number = draw.randrange(len(lines))
    content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(lines[number])
    places = [(content, key) for key in _keys(content)]
    for parent, key in places:
        places += [(parent[key], inner) for inner in _keys(parent[key])]
    if not places:
        content = draw.choice(VALUES)
    else:
        parent, key = draw.choice(places)
        if draw.random() < 0.3:
            del parent[key]
        else:
            parent[key] = draw.choice(VALUES)
    lines[number] = yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


_STRUCTURED = {
    "value": _change_value,
    "value ": _change_value,  # most of what can be wrong
    "value  ": _change_value,
    "other": lambda path, draw: path.write_text(json.dumps(draw.choice(VALUES))) and None,
    "deep": lambda path, draw: path.write_text("[" * 100_000) and None,
    "digits": lambda path, draw: path.write_text('{"n": ' + "9" * 6000 + "}") and None,
    "bomb": lambda path, draw: (
        path.write_text(
            "a: &a [1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
        )
        and None
    ),
}


def listing(folder: Path) -> dict[str, str]:
    """Every path below a folder with what is there, for comparison."""

    def what(path: Path) -> str:
        return "link" if path.is_symlink() else str(path.stat().st_size) if path.is_file() else ""

    return {str(path.relative_to(folder)): what(path) for path in folder.rglob("*")}


def copy_world(world: Path, folder: Path) -> None:
    """A fresh copy of the world, without what an earlier trial left."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world, folder, symlinks=True)
