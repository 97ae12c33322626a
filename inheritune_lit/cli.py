"""The ``inheritune`` command: argument dataclasses, and library functions that are imported once these are checked."""

import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib import import_module

from inheritune_lit.analysis.args import AnalyzeArgs, SearchArgs
from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.errors import UserError, printable
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.io.arguments import CommandArgs
from inheritune_lit.io.machine import explain_machine, open_streams, prepare_cuda
from inheritune_lit.parsing import parse
from inheritune_lit.planning.args import InitArgs, PlanArgs
from inheritune_lit.report.args import ReportArgs
from inheritune_lit.studies.args import AblateArgs, DemoArgs, GrowArgs, ReproduceArgs
from inheritune_lit.train.args import PretrainArgs, TeachArgs


@dataclass(frozen=True)
class RecipesArgs(CommandArgs):
    """List the recipes that come with the program, as --config takes them, with the command each is for."""


@dataclass(frozen=True)
class ReferencesArgs(CommandArgs):
    """List the named references: layers, width, parameters, size on disk, licence."""


COMMANDS: dict[str, tuple[type[CommandArgs], str]] = {  # arguments, and the function whose result is printed
    "init": (InitArgs, "planning.recipe:init_recipe"),
    "references": (ReferencesArgs, "references:reference_table"),
    "recipes": (RecipesArgs, "resources:recipe_table"),
    "plan": (PlanArgs, "planning.plan:plan"),
    "search": (SearchArgs, "analysis.search:search_layers"),
    "slice": (SliceArgs, "inherit.slice:slice_model"),
    "export": (ExportArgs, "checkpoint.export:export"),
    "prepare": (PrepareArgs, "data.prepare:prepare"),
    "teach": (TeachArgs, "train.teach:teach"),
    "pretrain": (PretrainArgs, "train.pretrain:pretrain"),
    "grow": (GrowArgs, "studies.grow:grow"),
    "eval": (EvaluateArgs, "evaluation.harness:evaluate"),
    "analyze": (AnalyzeArgs, "analysis.analyze:analyze_model"),
    "ablate": (AblateArgs, "studies.ablate:ablate"),
    "reproduce": (ReproduceArgs, "studies.replication:reproduce"),
    "report": (ReportArgs, "report.report:make_report"),
    "demo": (DemoArgs, "studies.demo:run_demo"),
}
SMALLER = {"teach": "--batch_size", "grow": "--train.micro_batch_size", "plan": "--micro_batch_size"}
SMALLER |= {"eval": "--max_batch_tokens", "analyze": "--seq_length or --num_sequences"}
SMALLER["search"] = SMALLER["analyze"]
"""What to make smaller where memory runs out, but for training, which tells how small."""


def main(args: list[str] | None = None) -> int:
    """Run one command, from a command line without the program's name; ``sys.argv`` when None.

    Returns 0 for success, 2 for bad input or a machine that lacks something, 130 for Ctrl-C, 141 for a closed pipe.
    """
    open_streams()
    prepare_cuda()
    _show_log()
    command = ""
    try:
        os.getcwd()  # torch ends the process where the current folder is gone
        kinds = {name: kind for name, (kind, _) in COMMANDS.items()}
        command, arguments = parse(sys.argv[1:] if args is None else args, kinds)
        module, _, name = COMMANDS[command][1].partition(":")
        function = getattr(import_module(f"inheritune_lit.{module}"), name)
        text = str(function(arguments) if fields(arguments) else function())
        torch = sys.modules.get("torch")  # of several processes that share a run, the first prints
        if text and not (torch and torch.distributed.is_initialized() and torch.distributed.get_rank()):
            print(printable(text, keep="\n\t"))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("inheritune: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more as it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        smaller = [f"a smaller {SMALLER[command]}"] if command in SMALLER else []
        if (message := str(error) if isinstance(error, UserError) else explain_machine(error, *smaller)) is None:
            raise
        print(f"inheritune: error: {UserError(message)}", file=sys.stderr)
        return 2
    return 0


class _StderrHandler(logging.Handler):
    """Writes records as bare lines, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with suppress(OSError):  # whoever read them has gone; the work goes on
            tqdm.write(printable(self.format(record), keep="\n\t"), file=sys.stderr)


def _show_log() -> None:
    """Show what the library logs; of what it is built on, only what a user can act on."""
    ours = logging.getLogger("inheritune_lit")
    if not any(isinstance(handler, _StderrHandler) for handler in ours.handlers):
        ours.addHandler(_StderrHandler())
    ours.setLevel(logging.INFO)
    for name in ("lightning", "lightning.fabric", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
