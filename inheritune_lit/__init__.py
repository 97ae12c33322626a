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
    from inheritune_lit.checkpoint.folder import FINAL
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
        TeachArgs,
        TrainArgs,
        TrainingArgs,
        at_depth,
    )
    from inheritune_lit.train.args import Precision as Precision
    from inheritune_lit.train.devices import build_fabric, default_precision, machine_name, peak_flops_of
    from inheritune_lit.train.gpus import ASSUMED_MFU, Gpu, find_gpus, peak_flops
    from inheritune_lit.train.memory import StepMemory, largest_micro_batch, step_memory
    from inheritune_lit.train.metrics import METRICS, read_metrics, read_validations
    from inheritune_lit.train.optim import OPTIMIZER
    from inheritune_lit.train.plan import ResourceEstimate, RunPlan, plan_run
    from inheritune_lit.train.plan import block_size_of as sample_length
    from inheritune_lit.train.pretrain import pretrain
    from inheritune_lit.train.run_folder import RunRecord, RunResult, data_settings, read_run, training_settings
    from inheritune_lit.train.teach import TeachResult, teach

try:
    __version__ = version("inheritune-lit")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_MODULES = {
    "ASSUMED_MFU": "train.gpus",
    "FINAL": "checkpoint.folder",
    "METRICS": "train.metrics",
    "OPTIMIZER": "train.optim",
    "AnalyzeOptions": "analysis.args",
    "DistillArgs": "train.args",
    "EvalArgs": "train.args",
    "ExportArgs": "checkpoint.args",
    "Gpu": "train.gpus",
    "MixtureArgs": "train.args",
    "OptimizerArgs": "train.args",
    "Precision": "train.args",
    "PrepareArgs": "data.args",
    "PretrainArgs": "train.args",
    "ResourceEstimate": "train.plan",
    "RunPlan": "train.plan",
    "RunRecord": "train.run_folder",
    "RunResult": "train.run_folder",
    "SliceArgs": "inherit.args",
    "SpeedArgs": "train.args",
    "StepMemory": "train.memory",
    "TeachArgs": "train.args",
    "TeachResult": "train.teach",
    "TrainArgs": "train.args",
    "TrainingArgs": "train.args",
    "UserError": "errors",
    "analyze": "planning.study:study",
    "at_depth": "train.args",
    "build_fabric": "train.devices",
    "data_settings": "train.run_folder",
    "default_precision": "train.devices",
    "evaluate": "evaluation.harness",
    "export": "checkpoint.export",
    "find_gpus": "train.gpus",
    "iter_documents": "data.sources",
    "largest_micro_batch": "train.memory",
    "load_model": "model.load",
    "machine_name": "train.devices",
    "make_report": "report.report",
    "peak_flops": "train.gpus",
    "peak_flops_of": "train.devices",
    "plan": "planning.plan",
    "plan_run": "train.plan",
    "prepare": "data.prepare",
    "pretrain": "train.pretrain",
    "read_metrics": "train.metrics",
    "read_run": "train.run_folder",
    "read_validations": "train.metrics",
    "sample_length": "train.plan:block_size_of",
    "slice_model": "inherit.slice",
    "step_memory": "train.memory",
    "teach": "train.teach",
    "training_settings": "train.run_folder",
}

__all__ = [
    "ASSUMED_MFU",
    "FINAL",
    "METRICS",
    "OPTIMIZER",
    "AnalyzeOptions",
    "DistillArgs",
    "EvalArgs",
    "ExportArgs",
    "Gpu",
    "MixtureArgs",
    "OptimizerArgs",
    "PrepareArgs",
    "PretrainArgs",
    "ResourceEstimate",
    "RunPlan",
    "RunRecord",
    "RunResult",
    "SliceArgs",
    "SpeedArgs",
    "StepMemory",
    "TeachArgs",
    "TeachResult",
    "TrainArgs",
    "TrainingArgs",
    "UserError",
    "analyze",
    "at_depth",
    "build_fabric",
    "data_settings",
    "default_precision",
    "evaluate",
    "export",
    "find_gpus",
    "iter_documents",
    "largest_micro_batch",
    "load_model",
    "machine_name",
    "make_report",
    "peak_flops",
    "peak_flops_of",
    "plan",
    "plan_run",
    "prepare",
    "pretrain",
    "read_metrics",
    "read_run",
    "read_validations",
    "sample_length",
    "slice_model",
    "step_memory",
    "teach",
    "training_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _MODULES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute or name)
