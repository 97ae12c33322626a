"""Inheritune on litgpt: small base language models out of large pretrained ones (arXiv 2404.08634).

Each command is a function: ``from inheritune_lit import SliceArgs, slice_model``. They are imported when first asked
for, so that ``import inheritune_lit`` costs nothing.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inheritune_lit.analysis.analyze import AnalysisResult, analyze_model
    from inheritune_lit.analysis.args import AdviceArgs, AnalyzeArgs
    from inheritune_lit.analysis.result import Analysis, load_analysis
    from inheritune_lit.checkpoint.args import ExportArgs
    from inheritune_lit.checkpoint.config import Config
    from inheritune_lit.checkpoint.export import export
    from inheritune_lit.checkpoint.folder import FINAL, is_litgpt_folder
    from inheritune_lit.checkpoint.tensors import count_parameters, tensor_shapes
    from inheritune_lit.data.args import PrepareArgs
    from inheritune_lit.data.packed import load_packed_manifest
    from inheritune_lit.data.prepare import prepare
    from inheritune_lit.data.sources import iter_documents
    from inheritune_lit.errors import UserError
    from inheritune_lit.evaluation.harness import evaluate
    from inheritune_lit.inherit.args import SliceArgs
    from inheritune_lit.inherit.plan import student_config
    from inheritune_lit.inherit.reference import ReferenceModel, reference_from_table
    from inheritune_lit.inherit.resolve import resolve as resolve_reference
    from inheritune_lit.inherit.slice import slice_model
    from inheritune_lit.model.devices import USABLE as USABLE_GPU_MEMORY
    from inheritune_lit.model.flops import LONGEST_BLOCK, flops_per_token
    from inheritune_lit.model.load import load_model
    from inheritune_lit.planning.advise import analyze
    from inheritune_lit.planning.args import InitArgs, PlanArgs
    from inheritune_lit.planning.plan import plan
    from inheritune_lit.planning.recipe import init_recipe
    from inheritune_lit.report.report import make_report
    from inheritune_lit.train.args import (
        DistillArgs,
        EvalArgs,
        MixtureArgs,
        OptimizerArgs,
        Precision,
        PretrainArgs,
        SpeedArgs,
        TeachArgs,
        TrainArgs,
        TrainingArgs,
        at_depth,
    )
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
    from inheritune_lit.train.timing import MeasuredSteps, measure_steps

try:
    __version__ = version("inheritune-lit")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_MODULES = {
    "ASSUMED_MFU": "train.gpus",
    "AdviceArgs": "analysis.args",
    "Analysis": "analysis.result",
    "AnalysisResult": "analysis.analyze",
    "AnalyzeArgs": "analysis.args",
    "Config": "checkpoint.config",
    "DistillArgs": "train.args",
    "EvalArgs": "train.args",
    "ExportArgs": "checkpoint.args",
    "FINAL": "checkpoint.folder",
    "Gpu": "train.gpus",
    "InitArgs": "planning.args",
    "LONGEST_BLOCK": "model.flops",
    "METRICS": "train.metrics",
    "MeasuredSteps": "train.timing",
    "MixtureArgs": "train.args",
    "OPTIMIZER": "train.optim",
    "OptimizerArgs": "train.args",
    "PlanArgs": "planning.args",
    "Precision": "train.args",
    "PrepareArgs": "data.args",
    "PretrainArgs": "train.args",
    "ReferenceModel": "inherit.reference",
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
    "USABLE_GPU_MEMORY": "model.devices:USABLE",
    "UserError": "errors",
    "analyze": "planning.advise",
    "analyze_model": "analysis.analyze",
    "at_depth": "train.args",
    "build_fabric": "train.devices",
    "count_parameters": "checkpoint.tensors",
    "data_settings": "train.run_folder",
    "default_precision": "train.devices",
    "evaluate": "evaluation.harness",
    "export": "checkpoint.export",
    "find_gpus": "train.gpus",
    "flops_per_token": "model.flops",
    "init_recipe": "planning.recipe",
    "is_litgpt_folder": "checkpoint.folder",
    "iter_documents": "data.sources",
    "largest_micro_batch": "train.memory",
    "load_analysis": "analysis.result",
    "load_model": "model.load",
    "load_packed_manifest": "data.packed",
    "machine_name": "train.devices",
    "make_report": "report.report",
    "measure_steps": "train.timing",
    "peak_flops": "train.gpus",
    "peak_flops_of": "train.devices",
    "plan": "planning.plan",
    "plan_run": "train.plan",
    "prepare": "data.prepare",
    "pretrain": "train.pretrain",
    "read_metrics": "train.metrics",
    "read_run": "train.run_folder",
    "read_validations": "train.metrics",
    "reference_from_table": "inherit.reference",
    "resolve_reference": "inherit.resolve:resolve",
    "sample_length": "train.plan:block_size_of",
    "slice_model": "inherit.slice",
    "step_memory": "train.memory",
    "student_config": "inherit.plan",
    "teach": "train.teach",
    "tensor_shapes": "checkpoint.tensors",
    "training_settings": "train.run_folder",
}

__all__ = [
    "ASSUMED_MFU",
    "FINAL",
    "LONGEST_BLOCK",
    "METRICS",
    "OPTIMIZER",
    "USABLE_GPU_MEMORY",
    "AdviceArgs",
    "Analysis",
    "AnalysisResult",
    "AnalyzeArgs",
    "Config",
    "DistillArgs",
    "EvalArgs",
    "ExportArgs",
    "Gpu",
    "InitArgs",
    "MeasuredSteps",
    "MixtureArgs",
    "OptimizerArgs",
    "PlanArgs",
    "Precision",
    "PrepareArgs",
    "PretrainArgs",
    "ReferenceModel",
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
    "analyze_model",
    "at_depth",
    "build_fabric",
    "count_parameters",
    "data_settings",
    "default_precision",
    "evaluate",
    "export",
    "find_gpus",
    "flops_per_token",
    "init_recipe",
    "is_litgpt_folder",
    "iter_documents",
    "largest_micro_batch",
    "load_analysis",
    "load_model",
    "load_packed_manifest",
    "machine_name",
    "make_report",
    "measure_steps",
    "peak_flops",
    "peak_flops_of",
    "plan",
    "plan_run",
    "prepare",
    "pretrain",
    "read_metrics",
    "read_run",
    "read_validations",
    "reference_from_table",
    "resolve_reference",
    "sample_length",
    "slice_model",
    "step_memory",
    "student_config",
    "teach",
    "tensor_shapes",
    "training_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _MODULES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute or name)
