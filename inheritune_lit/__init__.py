"""Inheritune on litgpt: small base language models out of large pretrained ones (arXiv 2404.08634).

Each command is a function: ``from inheritune_lit import SliceArgs, slice_model``. They are imported when first asked
for, so that ``import inheritune_lit`` costs nothing.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inheritune_lit.analysis.args import AnalyzeOptions
    from inheritune_lit.checkpoint.args import ExportArgs
    from inheritune_lit.checkpoint.export import export
    from inheritune_lit.data.args import PrepareArgs
    from inheritune_lit.data.prepare import prepare
    from inheritune_lit.data.sources import iter_documents
    from inheritune_lit.errors import UserError
    from inheritune_lit.evaluation.harness import evaluate
    from inheritune_lit.inherit.args import SliceArgs
    from inheritune_lit.inherit.slice import slice_model
    from inheritune_lit.model.load import load_model
    from inheritune_lit.planning.plan import plan
    from inheritune_lit.planning.study import study as analyze
    from inheritune_lit.report.report import make_report
    from inheritune_lit.train.args import (
        DistillArgs,
        EvalArgs,
        MixtureArgs,
        OptimizerArgs,
        PretrainArgs,
        SpeedArgs,
        TrainArgs,
    )
    from inheritune_lit.train.pretrain import pretrain
    from inheritune_lit.train.run_record import RunRecord, read_run
    from inheritune_lit.train.teach import teach

try:
    __version__ = version("inheritune-lit")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_MODULES = {
    "AnalyzeOptions": "analysis.args",
    "DistillArgs": "train.args",
    "EvalArgs": "train.args",
    "ExportArgs": "checkpoint.args",
    "MixtureArgs": "train.args",
    "OptimizerArgs": "train.args",
    "PrepareArgs": "data.args",
    "PretrainArgs": "train.args",
    "RunRecord": "train.run_record",
    "SliceArgs": "inherit.args",
    "SpeedArgs": "train.args",
    "TeachArgs": "train.args",
    "TrainArgs": "train.args",
    "UserError": "errors",
    "analyze": "planning.study:study",
    "evaluate": "evaluation.harness",
    "export": "checkpoint.export",
    "iter_documents": "data.sources",
    "load_model": "model.load",
    "make_report": "report.report",
    "plan": "planning.plan",
    "prepare": "data.prepare",
    "pretrain": "train.pretrain",
    "read_run": "train.run_record",
    "slice_model": "inherit.slice",
    "teach": "train.teach",
}

__all__ = [
    "AnalyzeOptions",
    "DistillArgs",
    "EvalArgs",
    "ExportArgs",
    "MixtureArgs",
    "OptimizerArgs",
    "PrepareArgs",
    "PretrainArgs",
    "RunRecord",
    "SliceArgs",
    "SpeedArgs",
    "TeachArgs",
    "TrainArgs",
    "UserError",
    "analyze",
    "evaluate",
    "export",
    "iter_documents",
    "load_model",
    "make_report",
    "plan",
    "prepare",
    "pretrain",
    "read_run",
    "slice_model",
    "teach",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _MODULES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute or name)
