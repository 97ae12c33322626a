"""From a command line to the arguments of a command: everyday spellings, recipes, and jsonargparse."""

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from inheritune_lit import __version__
from inheritune_lit.errors import UserError
from inheritune_lit.examples import examples_of
from inheritune_lit.io.arguments import CommandArgs, first_argument, flags_of, is_list
from inheritune_lit.parser_errors import check_choices, format_error, unknown_command
from inheritune_lit.resources import find_recipes

Commands = Mapping[str, type[CommandArgs]]
_BUDGETS = ("train.max_tokens", "train.max_steps", "train.epochs")


def parse(argv: list[str], commands: Commands) -> tuple[str, CommandArgs]:
    """Parse a command line (without the program's name) to the command's name and its arguments, checked.

    Raises:
        UserError: bad arguments; the message ends with the help to look at.
        SystemExit: after ``--help`` or ``--version``.
    """
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
    """Read the arguments of a command from a recipe, a YAML file of flags.

    Returns:
        The values of the fields by name, required ones that it lacks left out; groups of flags, such as ``train``, as
        their dataclasses.

    Raises:
        UserError: the file is missing, or does not hold flags of this command.
    """
    (name,) = find_recipes(["--config", str(path)])[1:]
    given = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
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
    ``--flag`` becomes ``--flag=true``, ``--many A B`` becomes ``--many+=A --many+=B``. Recipes come first, so that
    every flag wins over them, and a budget wins over a recipe's budget in another unit.

    Raises:
        UserError: a word too many.
    """
    flags = flags_of(kind)
    aliases = {**({"config": "recipe"} if "recipe" in flags else {"recipe": "config"}), **kind.aliases}
    first = first_argument(kind)
    recipes: list[str] = []
    words: list[str] = []
    left = list(argv)
    named = False
    while left:
        word = left.pop(0)
        values = [] if word in ("-h", "--help") else list(takewhile(lambda word: not word.startswith("--"), left))
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name, plus = name.rstrip("+").replace("-", "_"), "+" * name.endswith("+")
            name = aliases.get(name, name) if aliases.get(name, name) in {*flags, "config"} else name
        elif word.startswith("-"):
            words.append(word)
            continue
        elif first is None or named:
            raise UserError(f"unexpected argument {word!r}; see `inheritune {command} --help`")
        else:
            name, equals, value, plus, values = first, "", "", "", [word, *values]
            left.insert(0, word)
        named = named or name == first
        wanted = flags.get(name)
        if equals or not values:
            spelled = f"--{name}{plus}{equals}{value}" if equals or wanted is not bool else f"--{name}=true"
        elif is_list(wanted) and not plus and not values[0].startswith("["):
            words += [f"--{name}+={left.pop(0)}" for _ in values]
            continue
        elif wanted is bool and not named and values[0].lower() not in ("true", "false", "yes", "no"):
            spelled = f"--{name}=true"  # what follows is the first argument
        else:
            spelled = f"--{name}{plus}={left.pop(0)}"
        (recipes if name == "config" else words).append(spelled)
    return [*recipes, *words, *_other_budgets(words, flags)]


def _other_budgets(words: list[str], flags: Mapping[str, Any]) -> list[str]:
    """Where one budget is given as a flag, the others of a recipe or of the defaults count no more."""
    given = [name for name in _BUDGETS if any(word.startswith(f"--{name}=") for word in words)]
    return [f"--{name}=null" for name in _BUDGETS if name in flags and name not in given] if given else []


def _values(words: list[str], kind: type[CommandArgs], command: str) -> dict[str, Any]:
    """The values of a command's fields.

    jsonargparse 4.41 takes anything for a group of flags, such as ``train``: recipes are checked for them first.
    """
    parser = _Parser.of(command, kind)
    groups = [name for name, of in get_type_hints(kind).items() if is_dataclass(of)]
    for path in (Path(word.removeprefix("--config=")) for word in words if word.startswith("--config=")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name in groups:
            if not isinstance(content.get(name, {}), dict):
                raise UserError(f"{name} in {path} is {content[name]!r}; give flags, a line each below `{name}:`")
    parsed = parser.instantiate_classes(parser.parse_args(words))
    return {field.name: getattr(parsed, field.name) for field in fields(kind)}


class _Parser(ArgumentParser):
    """Bad arguments are a ``UserError``; help ends with examples."""

    command = "inheritune"
    kind: type[CommandArgs] | None = None

    @classmethod
    def of(cls, command: str, kind: type[CommandArgs]) -> "_Parser":
        """The parser of one command."""
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        first = first_argument(kind)
        usage = " ".join(filter(None, [f"inheritune {command}", first and first.upper(), "[--FLAG VALUE ...]"]))
        parser = cls(prog=f"inheritune {command}", usage=usage, description=inspect.getdoc(kind))
        parser.command, parser.kind = command, kind
        parser.add_argument("--config", action=ActionConfigFile, help="A recipe: a YAML file of flags.")
        parser.add_class_arguments(kind, as_group=False)
        inherited = [param for of in kind.__mro__[:-1] for param in docstring_parser.parse_from_object(of).params]
        help_of = {param.arg_name: param.description for param in inherited}
        for action in parser._actions:
            # jsonargparse reads the attribute docstrings of the class itself only.
            if action.dest in help_of:
                action.help = help_of[action.dest]
        return parser

    def format_help(self) -> str:
        return super().format_help() + examples_of(self.command)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        flags = flags_of(self.kind) if self.kind else {}
        command = f"{self.command} " if self.kind else ""
        raise UserError(f"{format_error(message, flags)}; see `inheritune {command}--help`")


def _program(commands: Commands) -> _Parser:
    """The parser of the whole program, for its help and for shells that complete its words."""
    parser = _Parser(
        prog="inheritune", version=__version__, description="Small base language models out of large ones."
    )
    subcommands = parser.add_subcommands(metavar="COMMAND")
    for name, kind in commands.items():
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        subcommands.add_subcommand(name, _Parser.of(name, kind), help=summary)
    return parser
