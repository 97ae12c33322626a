"""The ``inheritune`` command, assembled from one typed function a subcommand; they import what is heavy inside."""

import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import CLI, ArgumentParser, set_parsing_settings

from inheritune_lit import __version__
from inheritune_lit.arguments import check_choices, check_groups, spell_out
from inheritune_lit.commands.analysis import analyze_command
from inheritune_lit.commands.data import prepare_command
from inheritune_lit.commands.demo import demo_command
from inheritune_lit.commands.evaluation import evaluate_command
from inheritune_lit.commands.growing import grow_command
from inheritune_lit.commands.planning import init_command, list_recipes_command, plan_command
from inheritune_lit.commands.replicating import reproduce_command
from inheritune_lit.commands.reporting import report_command
from inheritune_lit.commands.slicing import export_command, list_references_command, slice_command
from inheritune_lit.commands.teaching import teach_command
from inheritune_lit.commands.training import pretrain_command
from inheritune_lit.errors import UserError
from inheritune_lit.examples import examples_of
from inheritune_lit.parser_errors import reword
from inheritune_lit.resources import find_recipes

COMMANDS: dict[str, Callable[..., Any]] = {
    "init": init_command,
    "references": list_references_command,
    "recipes": list_recipes_command,
    "plan": plan_command,
    "slice": slice_command,
    "export": export_command,
    "prepare": prepare_command,
    "teach": teach_command,
    "pretrain": pretrain_command,
    "grow": grow_command,
    "eval": evaluate_command,
    "analyze": analyze_command,
    "reproduce": reproduce_command,
    "report": report_command,
    "demo": demo_command,
}


class _Parser(ArgumentParser):
    """Bad arguments are one line on stderr and exit code 2; help ends with examples."""

    def format_help(self) -> str:
        self.prog = self.prog.replace(" [options]", "")
        return super().format_help() + examples_of(self.prog.split()[-1])

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # Some of a subcommand's errors are raised by the parser above it, and name it.
        named = re.search(r"(?:Key \"|Subcommand ')([a-z]+)|\[options\] ([a-z]+)", f"{message} {self.prog}")
        command = named and (named[1] or named[2])
        told = reword(message, command, COMMANDS)
        raise UserError(f"{told}; see `inheritune {f'{command} ' if command else ''}--help`")


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: command line without the program's name; ``sys.argv`` when None.

    Returns:
        Exit code: 0 for success, 2 for bad input, 130 for Ctrl-C.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    args = spell_out(sys.argv[1:] if args is None else args, COMMANDS)
    try:
        args = find_recipes(args)
        check_groups(args, COMMANDS)
        check_choices(args, COMMANDS)
        CLI(COMMANDS, args=args, as_positional=False, parser_class=_Parser, prog="inheritune", version=__version__)
    except UserError as error:
        print(f"inheritune: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("inheritune: interrupted", file=sys.stderr)
        return 130
    return 0
