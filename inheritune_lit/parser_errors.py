"""What is wrong with a command line, in words for users: jsonargparse 4.41's messages, and what it does not check."""

import difflib
import re
from collections.abc import Iterable, Mapping
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
    "checkpoint": ("initial_checkpoint_dir", "checkpoint_dir", "ref"),
    "data_path": ("data", "source"),
    "dataset": ("data", "source"),
    "gpus": ("devices", "gpu"),
    "input": ("source", "data"),
    "learning_rate": ("optimizer.lr",),
    "model": ("ref", "initial_checkpoint_dir", "checkpoint_dir", "teacher"),
    "model_args": ("checkpoint_dir",),
    "model_name": ("ref", "initial_checkpoint_dir", "checkpoint_dir"),
    "model_name_or_path": ("ref", "initial_checkpoint_dir", "checkpoint_dir"),
    "n_layer": ("n",),
    "n_layers": ("n",),
    "num_hidden_layers": ("n",),
    "num_layers": ("n",),
    "num_gpus": ("devices",),
    "num_train_epochs": ("train.epochs",),
    "output_dir": ("out_dir",),
    "output_path": ("out_dir",),
    "per_device_train_batch_size": ("train.micro_batch_size",),
    "pretrained": ("checkpoint_dir", "ref"),
    "block_size": ("train.max_seq_length", "max_seq_length", "seq_length"),
    "batch_size": ("max_batch_tokens", "train.global_batch_size"),
    "tokenizer": ("tokenizer_dir",),
    "tokenizer_path": ("tokenizer_dir",),
    "warmup_steps": ("train.lr_warmup_steps",),
}
"""Flags of litgpt, lm-eval and transformers, and what they are called here; the first that a command has."""
_ADVICE = {
    "resume": "the same command again continues a stopped run",
    "resume_from_checkpoint": "the same command again continues a stopped run",
    "criteria": "ways of choosing layers are compared by `inheritune ablate`",
    "healing": "ways of choosing layers are compared by `inheritune ablate`, with --train, --eval and --optimizer",
    "node_rank": "several machines share the work with --cluster ADDRESS, a Dask scheduler",
}
_ADVICE_BY_COMMAND = {("prepare", "num_nodes"): _ADVICE["node_rank"]}
_OTHERS_COMMANDS = {
    "chat": "`litgpt chat FOLDER` works on the folders of this program",
    "convert": "`inheritune export FOLDER --out_dir HF_FOLDER` writes a Hugging Face folder",
    "convert_from_litgpt": "`inheritune export FOLDER --out_dir HF_FOLDER` writes a Hugging Face folder",
    "convert_to_litgpt": "`inheritune slice REF --n N` reads Hugging Face folders as they are",
    "distill": "`inheritune pretrain --distill.teacher REF` trains with a teacher",
    "download": "`inheritune slice REF --n N` downloads what it needs; `litgpt download REF` downloads all of a model",
    "evaluate": "`inheritune eval FOLDER` scores checkpoints",
    "finetune": "`litgpt finetune FOLDER` works on the folders of this program",
    "finetune_lora": "`litgpt finetune_lora FOLDER` works on the folders of this program",
    "generate": "`litgpt generate FOLDER` works on the folders of this program",
    "prune": "`inheritune slice REF --n N` keeps the first N layers",
    "serve": "`litgpt serve FOLDER` works on the folders of this program",
    "train": "`inheritune pretrain` trains a checkpoint",
}


def unknown_command(word: str | None, commands: Iterable[str]) -> str:
    """Say that there is no such command, or none at all, and what to do instead."""
    known = list(commands)
    if word is None:
        return f"no command; give one of {', '.join(known)}"
    if word in _OTHERS_COMMANDS:
        return f"there is no command {word!r}; {_OTHERS_COMMANDS[word]}"
    return f"there is no command {word!r}; {_and(suggest(word, known))}give one of {', '.join(known)}"


def check_choices(words: list[str], flags: Mapping[str, Any]) -> None:
    """Check flags that take one of a few words: jsonargparse 4.41 cannot tell its users which.

    Args:
        words: a command's flags, each as ``--flag=value``.
        flags: names and types of the command's flags.

    Raises:
        UserError: another word.
    """
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        choices = _choices(flags.get(name))
        if equals and choices and value not in (*choices, "null"):
            raise UserError(f"--{name} is {value!r}; {_and(suggest(value, choices))}give one of {', '.join(choices)}")


def format_error(message: str, command: str, flags: Mapping[str, Any]) -> str:
    """One line that says what is wrong, the value seen, and what to give.

    Args:
        message: jsonargparse's, perhaps of several lines.
        command: the command that was named.
        flags: names and types of its flags.
    """
    if key := re.match(r'Parser key "([^"]+)":', message):
        return _wrong_value(key[1], message, flags)
    if key := re.search(r'Key "(?:[a-z]+\.)?([^"]+)" is required', message):
        return f"--{key[1]} is missing"
    if key := re.search(r"Group '([^']+)' does not accept nested key '([^']+)'", message):
        return _unknown_flag(f"{key[1]}.{key[2]}", command, flags)
    if key := re.search(r"Key '([^']+)' is not expected|does not accept nested key '([^']+)'", message):
        return _unknown_flag(key[1] or key[2], command, flags)
    if key := re.match(r"Unrecognized arguments: (\S+)", message):
        return _unknown_flag(key[1].partition("=")[0].removeprefix("--"), command, flags)
    if key := re.match(r"argument (--[^:/]+)\S*: expected one argument", message):
        return f"{key[1]} needs a value"
    return " ".join(message.split())


def _wrong_value(key: str, message: str, flags: Mapping[str, Any]) -> str:
    value = re.search(r"(?:Given|Got) value: (.*?)(?:\n|$)", message)
    wanted = [_wanted(kind) for kind in kinds_of(flags.get(key)) if kind is not type(None)]
    seen = f" is {value[1].strip()!r}" if value else " has a wrong value"
    return f"--{key}{seen}; give {' or '.join(wanted)}" if wanted else " ".join(message.split())


def _wanted(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return _WORDS.get(get_origin(kind) or kind, "what its help says")


def _unknown_flag(name: str, command: str, flags: Mapping[str, Any]) -> str:
    first = name.partition(".")[0]
    if advice := _ADVICE_BY_COMMAND.get((command, name)) or _ADVICE.get(first):
        return f"there is no flag --{name}; {advice}"
    # The same name inside a group, such as --optimizer.lr for --lr.
    inside = [flag for flag in flags if flag.endswith(f".{name}")]
    near = [*(flag for flag in _OTHERS_FLAGS.get(name, ()) if flag in flags), *inside]
    near = near or difflib.get_close_matches(name, flags, n=1)
    return f"there is no flag --{name}" + (f"; did you mean --{near[0]}?" if near else "")


def _choices(kind: Any) -> tuple[str, ...]:
    """The words that a flag takes; none where it takes something else."""
    parts = [part for part in kinds_of(kind) if part is not type(None)]
    if any(get_origin(part) is not Literal for part in parts):
        return ()
    return tuple(str(word) for part in parts for word in get_args(part))


def _and(hint: str) -> str:
    """A hint in front of what follows it."""
    return f"{hint} " if hint else ""
