"""What is wrong with a command line, in words for users: jsonargparse 4.41's messages, and what it does not check."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from inheritune_lit.errors import UserError, suggest
from inheritune_lit.io.arguments import kinds_of

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping such as {a: 1}",
    list: "one or more values",
}
_OTHERS_FLAGS = {
    "batch_size": "max_batch_tokens train.global_batch_size",
    "block_size": "train.max_seq_length max_seq_length seq_length",
    "checkpoint model model_args model_name model_name_or_path pretrained": (
        "ref initial_checkpoint_dir checkpoint_dir teacher"
    ),
    "data_path dataset input": "data source",
    "gpus num_gpus": "devices gpu",
    "learning_rate": "optimizer.lr",
    "n_layer n_layers num_hidden_layers num_layers": "n",
    "num_train_epochs": "train.epochs",
    "output_dir output_path": "out_dir",
    "per_device_train_batch_size": "train.micro_batch_size",
    "tokenizer tokenizer_path": "tokenizer_dir",
    "warmup_steps": "train.lr_warmup_steps",
}
"""Flags of litgpt, lm-eval and transformers, and what they are called here; the first that a command has."""
_ADVICE = {
    "resume resume_from_checkpoint": "the same command again continues a stopped run",
    "criteria": "ways of choosing layers are compared by `inheritune ablate`",
    "healing": "ways of choosing layers are compared by `inheritune ablate`, with --train, --eval and --optimizer",
}
_OTHERS_COMMANDS = {
    "convert convert_from_litgpt": "`inheritune export FOLDER --out_dir HF_FOLDER` writes a Hugging Face folder",
    "convert_to_litgpt": "`inheritune slice REF --n N` reads Hugging Face folders as they are",
    "distill": "`inheritune pretrain --distill.teacher REF` trains with a teacher",
    "download": "`inheritune slice REF --n N` downloads what it needs; `litgpt download REF` downloads all of a model",
    "evaluate": "`inheritune eval FOLDER` scores checkpoints",
    "chat finetune finetune_lora generate serve": "`litgpt {word} FOLDER` works on the folders of this program",
    "prune": "`inheritune slice REF --n N` keeps the first N layers",
    "train": "`inheritune pretrain` trains a checkpoint",
}


def unknown_command(word: str | None, commands: Iterable[str]) -> str:
    """Say that there is no such command, or none at all, and what to do instead."""
    if word is None:
        return f"no command; give one of {', '.join(commands)}"
    instead = _look_up(_OTHERS_COMMANDS, word).format(word=word) or _one_of(word, list(commands))
    return f"there is no command {word!r}; {instead}"


def check_choices(words: list[str], flags: Mapping[str, Any]) -> None:
    """Check ``--flag=value`` words of flags that take one of a few: jsonargparse 4.41 cannot tell its users which.

    Raises:
        UserError: another word.
    """
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        choices = choices_of(flags.get(name))
        if equals and choices and value not in (*choices, "null"):
            raise UserError(f"--{name} is {value!r}; {_one_of(value, choices)}")


def format_error(message: str, flags: Mapping[str, Any]) -> str:
    """jsonargparse's message as one line that says what is wrong, the value seen, and what to give."""
    if key := re.match(r'Parser key "([^"]+)":', message):
        return _wrong_value(key[1], message, flags)
    if key := re.search(r'Key "(?:[a-z]+\.)?([^"]+)" is required', message):
        return f"--{key[1]} is missing"
    if key := re.search(r"Group '([^']+)' does not accept nested key '([^']+)'", message):
        return _unknown_flag(f"{key[1]}.{key[2]}", flags)
    if key := re.search(r"Key '([^']+)' is not expected|does not accept nested key '([^']+)'", message):
        return _unknown_flag(key[1] or key[2], flags)
    if key := re.match(r"Unrecognized arguments: -*([^\s=]+)", message):
        return _unknown_flag(key[1], flags)
    if key := re.match(r"argument (--[^:/]+)\S*: expected one argument", message):
        return f"{key[1]} needs a value"
    return " ".join(message.split())


def _wrong_value(key: str, message: str, flags: Mapping[str, Any]) -> str:
    value = re.search(r"(?:Given|Got) value: (.*?)(?:\n|$)", message)
    wanted = [_wanted(kind) for kind in kinds_of(flags.get(key)) if kind is not type(None)]
    seen = f" is {value[1].strip()!r}" if value else " has a wrong value"
    return f"--{key}{seen}; give {' or '.join(wanted)}" if wanted else " ".join(message.split())


def _wanted(kind: Any) -> str:
    if words := choices_of(kind):
        return f"one of {', '.join(words)}"
    return _WORDS.get(get_origin(kind) or kind, "what its help says")


def _unknown_flag(name: str, flags: Mapping[str, Any]) -> str:
    advice = _look_up(_ADVICE, name.partition(".")[0])
    if name in ("node_rank", "num_nodes") and "cluster" in flags:
        advice = "several machines share the work with --cluster ADDRESS, a Dask scheduler"
    # The same name inside a group, such as --optimizer.lr for --lr.
    inside = (flag for flag in flags if flag.endswith(f".{name}"))
    ours = next((flag for flag in (*_look_up(_OTHERS_FLAGS, name).split(), *inside) if flag in flags), None)
    near = f"did you mean --{ours}?" if ours else suggest(f"--{name}", [f"--{flag}" for flag in flags], cutoff=0.7)
    return "; ".join(filter(None, [f"there is no flag --{name}", advice or near]))


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that a flag takes; none where it takes something else."""
    parts = [part for part in kinds_of(kind) if part is not type(None)]
    if any(get_origin(part) is not Literal for part in parts):
        return ()
    return tuple(str(word) for part in parts for word in get_args(part))


def _look_up(table: Mapping[str, str], word: str) -> str:
    return next((meant for words, meant in table.items() if word in words.split()), "")


def _one_of(word: str, known: Sequence[str]) -> str:
    return " ".join(filter(None, [suggest(word, known), f"give one of {', '.join(known)}"]))
