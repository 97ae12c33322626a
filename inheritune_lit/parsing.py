"""From a command line to the arguments of a command: everyday spellings, recipes, jsonargparse 4.41, and its errors."""

import inspect
import re
from argparse import Action
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, set_loader, set_parsing_settings

from inheritune_lit import __version__
from inheritune_lit.errors import UserError, suggest
from inheritune_lit.examples import examples_of
from inheritune_lit.io.arguments import CommandArgs, first_argument, flags_of, is_list, kinds_of
from inheritune_lit.io.reading import parse_yaml, read_yaml
from inheritune_lit.io.tables import own_table
from inheritune_lit.resources import find_recipes

Commands = Mapping[str, type[CommandArgs]]
_BUDGETS = ("train.max_tokens", "train.max_steps", "train.epochs")


def parse(argv: list[str], commands: Commands) -> tuple[str, CommandArgs]:
    """Parse a command line to a command and its checked arguments, or end with help; bad ones are a ``UserError``."""
    command = next((word for word in argv if word in commands), None)
    if command is None:
        word = next((word for word in argv if not word.startswith("-")), None)
        if argv and word is None:
            _program(commands).parse_args(argv)
        raise UserError(f"{unknown_command(word, commands)}; see `inheritune --help`")
    place, kind = argv.index(command), commands[command]
    before, after = argv[:place], argv[place + 1 :]
    words = find_recipes(before + after)
    if after and after[0] in commands and not Path(after[0]).exists():
        raise UserError(f"two commands, {command} and {after[0]}; give one; see `inheritune --help`")
    words = normalize_argv(words, kind, command)
    if not {"-h", "--help"} & set(words):
        check_choices(words, flags_of(kind))
    return command, kind(**_values(words, kind, command))


def read_recipe(path: Path, kind: type[CommandArgs], command: str) -> dict[str, Any]:
    """A recipe's fields by name, as far as it has them, groups as dataclasses; another file is a ``UserError``."""
    (name,) = find_recipes(["--config", str(path)])[1:]
    given = read_yaml(Path(name), "a recipe")
    required = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    missing = {name for name in required if name not in given}
    try:
        values = _values([*(f"--{name}=_" for name in missing), f"--config={name}"], kind, command)
    except UserError as error:
        raise UserError(f"{path} is not a recipe of `inheritune {command}`: {error}") from error
    return {name: value for name, value in values.items() if name not in missing}


def normalize_argv(argv: list[str], kind: type[CommandArgs], command: str = "") -> list[str]:
    """Rewrite everyday spellings into what jsonargparse understands.

    Hyphens in flags become underscores, aliases their flag; a word without a flag goes to the first argument;
    ``--flag`` becomes ``--flag=true``, ``--many A B`` becomes ``--many=[] --many+=A --many+=B``. Recipes come first, so
    that every flag wins over them, and a budget wins over a recipe's budget in another unit. A word too many is a
    ``UserError``.
    """
    flags = flags_of(kind)
    aliases = {**({"config": "recipe"} if "recipe" in flags else {"recipe": "config"}), **kind.aliases}
    recipes, words, left = list[str](), list[str](), list(argv)
    first, named = first_argument(kind), False
    while left:
        word = left.pop(0)
        if word.startswith("-") and not word.startswith("--"):
            words.append(word)
            continue
        if not word.startswith("--"):
            if first is None or named:
                raise UserError(f"unexpected argument {word!r}; see `inheritune {command} --help`")
            left.insert(0, word)
            word = f"--{first}"
        name, equals, value = word[2:].partition("=")
        name, plus = name.rstrip("+").replace("-", "_"), "+" * name.endswith("+")
        name = aliases.get(name, name) if aliases.get(name, name) in {*flags, "config"} else name
        values = [] if name == "help" else list(takewhile(lambda word: not word.startswith("--"), left))
        named = named or name == first
        wanted = flags.get(name)
        if equals or not values:
            spelled = f"--{name}{plus}{equals}{value}" if equals or wanted is not bool else f"--{name}=true"
        elif is_list(wanted) and not plus and not values[0].startswith("["):
            if not any(word.startswith((f"--{name}=", f"--{name}+=")) for word in words):
                words.append(f"--{name}=[]")  # in the place of a recipe's and of the default
            words += [f"--{name}+={left.pop(0)}" for _ in values]
            continue
        elif wanted is bool and not named and values[0].lower() not in ("true", "false", "yes", "no"):
            spelled = f"--{name}=true"  # what follows is the first argument
        else:
            spelled = f"--{name}{plus}={left.pop(0)}"
        (recipes if name == "config" else words).append(spelled)
    if given := {name for name in _BUDGETS if any(word.startswith(f"--{name}=") for word in words)}:
        words += [f"--{name}=null" for name in _BUDGETS if name in flags and name not in given]
    return [*recipes, *words]


def _values(words: list[str], kind: type[CommandArgs], command: str) -> dict[str, Any]:
    """The values of a command's fields: jsonargparse 4.41 takes anything for a group of flags, null for any flag."""
    parser = _parser_of(command, kind)
    groups = [name for name, of in get_type_hints(kind).items() if is_dataclass(of)]
    for path in (Path(word.removeprefix("--config=")) for word in words if word.startswith("--config=")):
        content = read_yaml(path, "a recipe") if path.is_file() else {}
        for name in groups:
            if not isinstance(content.get(name, {}), dict):
                raise UserError(f"{name} in {path} is {content[name]!r}; give flags, a line each below `{name}:`")
    given = parser.parse_args(words)
    for name, of in flags_of(kind).items():
        if given.get(name, "") is None and type(None) not in kinds_of(of):
            raise UserError(f"--{name} is null; give {_wanted(of)}; see `inheritune {command} --help`")
    parsed = parser.instantiate_classes(given)
    return {field.name: getattr(parsed, field.name) for field in fields(kind)}


def _load_value(text: str) -> Any:
    """A value of the command line, or all those of a recipe; braces without values, such as {n}, are text."""
    value = parse_yaml(text, Path("the value"))
    return text if isinstance(value, dict) and not any(each is not None for each in value.values()) else value


class _Formatter(DefaultHelpFormatter):
    """Shows the words that a flag takes as they are: jsonargparse 4.41 makes "nf4" of "bnb.nf4"."""

    def _get_type_str(self, action: Action) -> str | None:
        words = choices_of(getattr(action, "_typehint", None))
        return f"one of {', '.join(words)}" if words else super()._get_type_str(action)


class _Parser(ArgumentParser):
    """Bad arguments are a ``UserError``; help ends with examples."""

    command = "inheritune"
    kind: type[CommandArgs] | None = None

    def format_help(self) -> str:
        return super().format_help() + examples_of(self.command)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        flags = flags_of(self.kind) if self.kind else {}
        command = f"{self.command} " if self.kind else ""
        raise UserError(f"{format_error(message, flags)}; see `inheritune {command}--help`")


def _new_parser(command: str, kind: type[CommandArgs]) -> _Parser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("yaml", _load_value, (UserError,))
    first = first_argument(kind)
    usage = " ".join(filter(None, [f"inheritune {command}", first and first.upper(), "[--FLAG VALUE ...]"]))
    program, description = f"inheritune {command}", inspect.getdoc(kind)
    parser = _Parser(prog=program, usage=usage, description=description, formatter_class=_Formatter)
    parser.command, parser.kind = command, kind
    parser.add_argument("--config", action=ActionConfigFile, help="A recipe: a YAML file of flags.")
    parser.add_class_arguments(kind, as_group=False)
    inherited = [param for of in kind.__mro__[:-1] for param in docstring_parser.parse_from_object(of).params]
    help_of = {param.arg_name: param.description for param in inherited}
    for action in parser._actions:  # jsonargparse reads the attribute docstrings of the class itself only
        action.help = help_of.get(action.dest, action.help)
    return parser


_parser_of: Callable[..., _Parser] = cache(_new_parser)
"""The parser of a command, which takes longer to make than to use; one within ``_program`` is changed by that."""


def _program(commands: Commands) -> _Parser:
    """The parser of the whole program, for its help and for shells that complete its words."""
    description = "Small base language models out of large ones."
    parser = _Parser(prog="inheritune", version=__version__, description=description)
    subcommands = parser.add_subcommands(metavar="COMMAND")
    for name, kind in commands.items():
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        subcommands.add_subcommand(name, _new_parser(name, kind), help=summary)
    return parser


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping such as {a: 1}",
    list: "one or more values",
}
_MEANT: dict[str, dict[str, str]] = {"flag": {}, "advice": {}, "command": {}}
for _row in own_table(__file__):
    _MEANT[_row["kind"]] |= dict.fromkeys(_row["words"].split(), _row["meant"])
"""What users of litgpt, lm-eval, transformers and earlier versions mean by a word: our flags, of which a command has
one, advice in place of a flag, or advice in place of a command."""


def unknown_command(word: str | None, commands: Iterable[str]) -> str:
    """Say that there is no such command, or none at all, and what to do instead."""
    if word is None:
        return f"no command; give one of {', '.join(commands)}"
    instead = _MEANT["command"].get(word, "").format(word=word) or _one_of(word, list(commands))
    return f"there is no command {word!r}; {instead}"


def check_choices(words: list[str], flags: Mapping[str, Any]) -> None:
    """Refuse other words than the few that a flag takes, as ``--flag=value``: jsonargparse 4.41 does not say which."""
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        choices = choices_of(flags.get(name))
        if equals and choices and value not in (*choices, "null"):
            raise UserError(f"--{name} is {value!r}; {_one_of(value, choices)}")


_UNKNOWN_KEY = (
    r"(?:Group '([^']+)' )?does not accept nested key '([^']+)'|Key '([^']+)' is not expected"
    r"|^Unrecognized arguments: -*([^\s=]+)"
)


def format_error(message: str, flags: Mapping[str, Any]) -> str:
    """jsonargparse's message as one line that says what is wrong, the value seen, and what to give."""
    if (key := re.match(r'Parser key "([^"]+)":', message)) and key[1] in flags:
        value = re.search(r"(?:Given|Got) value: (.*?)(?:\n|$)", message)
        seen = f"is {value[1].strip()!r}" if value else "has a wrong value"
        return f"--{key[1]} {seen}; give {_wanted(flags[key[1]])}"
    if key := re.search(r'Key "(?:[a-z]+\.)?([^"]+)" is required', message):
        return f"--{key[1]} is missing"
    if key := re.search(_UNKNOWN_KEY, message):
        return _unknown_flag(".".join(filter(None, key.groups())), flags)
    if key := re.match(r"argument (--[^:/]+)\S*: expected one argument", message):
        return f"{key[1]} needs a value"
    return " ".join(message.split())


def _wanted(kind: Any) -> str:
    words = {part: choices_of(part) for part in kinds_of(kind) if part is not type(None)}
    return " or ".join(
        f"one of {', '.join(choices)}" if choices else _WORDS.get(get_origin(part) or part, "what its help says")
        for part, choices in words.items()
    )


def _unknown_flag(name: str, flags: Mapping[str, Any]) -> str:
    advice = _MEANT["advice"].get(name.partition(".")[0])
    if name in ("node_rank", "num_nodes") and "cluster" in flags:
        advice = "several machines share the work with --cluster ADDRESS, a Dask scheduler"
    # The same name inside a group, such as --optimizer.lr for --lr.
    inside = (flag for flag in flags if flag.endswith(f".{name}"))
    ours = next((flag for flag in (*_MEANT["flag"].get(name, "").split(), *inside) if flag in flags), None)
    near = f"did you mean --{ours}?" if ours else suggest(f"--{name}", [f"--{flag}" for flag in flags], cutoff=0.7)
    return "; ".join(filter(None, [f"there is no flag --{name}", advice or near]))


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that a flag takes; none where it takes something else."""
    parts = [part for part in kinds_of(kind) if part is not type(None)]
    if any(get_origin(part) is not Literal for part in parts):
        return ()
    return tuple(str(word) for part in parts for word in get_args(part))


def _one_of(word: str, known: Sequence[str]) -> str:
    return " ".join(filter(None, [suggest(word, known), f"give one of {', '.join(known)}"]))
