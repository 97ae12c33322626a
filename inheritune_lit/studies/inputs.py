"""Text, tokenizers, shapes and a task, made here: what studies need that start from nothing."""

import io
import json
import random
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import inheritune_lit as lit
from inheritune_lit.errors import UserError

_FILES = Path(__file__).parent
_MOST_LINES = 40_000
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"}
_MIN_CHARACTERS = 500
_MIN_CORPUS_CHARACTERS = 2_000_000


def write_corpus(folder: Path) -> int:
    """Write ``documentation.jsonl`` and ``sources.jsonl``, one document per file of the installation, and return the
    characters written. Too little text (a Python without the standard library's sources) is a ``UserError``.
    """
    topics: dict[str, str] = {}
    with suppress(ImportError):  # of the reference that ``help()`` shows; some Pythons lack them
        from pydoc_data.topics import topics
    total = 0
    for domain, documents in (("documentation", sorted(topics.items())), ("sources", _library_sources())):
        rows = [{"text": text, "meta": {"file": name}} for name, text in documents if len(text) >= _MIN_CHARACTERS]
        if lines := [json.dumps(row) + "\n" for row in rows]:
            (folder / f"{domain}.jsonl").write_text("".join(lines), encoding="utf-8")
        total += sum(map(len, lines))
    if total < _MIN_CORPUS_CHARACTERS:
        found = f"{total:,} characters of text, the demo needs {_MIN_CORPUS_CHARACTERS:,}"
        remedy = "use a Python with its sources, such as python.org's"
        raise UserError(f"this Python's standard library holds only {found}; {remedy}")
    return total


def _library_sources() -> Iterator[tuple[str, str]]:
    """Name and text of each source file of the standard library, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        # Codec tables and the like: long lists of numbers teach a language model nothing.
        if not _SKIPPED_FOLDERS.intersection(name.parts[:-1]) and name.parts[0] != "encodings":
            with suppress(UnicodeDecodeError, OSError):
                yield name.as_posix(), path.read_text(encoding="utf-8")


SHAPE: dict[str, Any] = json.loads(_FILES.joinpath("demo_shape.json").read_text(encoding="utf-8"))
"""Of the demo's model, as ``config.json`` has it; everything else is LLaMA's default."""


def write_shape(folder: Path, corpus: Path) -> None:
    """Fill a Hugging Face folder, without weights: ``config.json`` and a tokenizer made from a folder of JSON lines."""
    (folder / "config.json").write_text(json.dumps(SHAPE, indent=2) + "\n", encoding="utf-8")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer_config = json.dumps({"tokenizer_class": "LlamaTokenizer", **special})
    (folder / "tokenizer_config.json").write_text(tokenizer_config + "\n", encoding="utf-8")
    lines = (line for text in lit.iter_documents(corpus) for line in text.split("\n") if line.strip())
    train_tokenizer(folder / "tokenizer.model", lines, SHAPE["vocab_size"])


TASK = "demo_next_passage"
_CONTEXT_CHARACTERS = 200
_CHOICE_CHARACTERS = 80
_CHOICES = 4


def write_task(folder: Path, documents: Iterable[str], seed: int = 1337, per_document: int = 12) -> None:
    """Write rows from at least four held-out texts, and the task's lm-eval description, ``demo_next_passage.yaml``.

    A row, of ``per_document`` at most of one text, shows a stretch and four, of which one follows it; chance is 25%.
    """
    draw = random.Random(seed)
    span = _CONTEXT_CHARACTERS + _CHOICE_CHARACTERS
    passages = []
    for text in documents:
        for _ in range(min(per_document, len(text) // (2 * span))):
            passage = text[(start := draw.randrange(len(text) - span)) : start + span]
            passages.append((passage[:_CONTEXT_CHARACTERS], passage[_CONTEXT_CHARACTERS:]))
    rows = []
    for number, (context, following) in enumerate(passages):
        others = [passage[1] for other, passage in enumerate(passages) if other != number and passage[1] != following]
        choices = [following, *draw.sample(others, _CHOICES - 1)]
        draw.shuffle(choices)
        rows.append({"context": context, "choices": choices, "gold": choices.index(following)})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copyfile(_FILES / f"{TASK}.yaml", folder / f"{TASK}.yaml")


def train_tokenizer(path: Path, lines: Iterable[str], vocab_size: int) -> None:
    """Write a ``tokenizer.model`` of ``vocab_size`` pieces with LLaMA's choices: BPE, with bytes for what is unknown,
    digits and spaces kept. Up to 40,000 of the lines are used; too little text for the pieces is a ``UserError``.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            allow_whitespace_only_pieces=True,
            input_sentence_size=_MOST_LINES,
            shuffle_input_sentence=True,
            minloglevel=2,
        )
    except RuntimeError as error:
        problem = f"the text makes no tokenizer of {vocab_size:,} pieces, give more text"
        raise UserError(f"{problem} ({' '.join(str(error).split())})") from error
    path.write_bytes(model.getvalue())
