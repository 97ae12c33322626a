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
    from inheritune_lit.checkpoint.config import Config, GPT2Config, save_lit_config
    from inheritune_lit.checkpoint.export import export
    from inheritune_lit.checkpoint.folder import FINAL, WEIGHTS, is_litgpt_folder
    from inheritune_lit.checkpoint.tensors import count_parameters, tensor_shapes
    from inheritune_lit.checkpoint.weights import Weights
    from inheritune_lit.data.args import PrepareArgs
    from inheritune_lit.data.compatibility import check_fits_model
    from inheritune_lit.data.documents import is_validation
    from inheritune_lit.data.mixture import make_mixture
    from inheritune_lit.data.packed import PackedDataset, load_packed_manifest
    from inheritune_lit.data.prepare import prepare
    from inheritune_lit.data.sources import iter_documents
    from inheritune_lit.errors import UserError
    from inheritune_lit.evaluation.against_reference import Comparison, HeldOutEvaluator, Z, reference_identity
    from inheritune_lit.evaluation.against_reference import compare as compare_losses
    from inheritune_lit.evaluation.args import EvaluateArgs
    from inheritune_lit.evaluation.harness import EvaluationResult, evaluate
    from inheritune_lit.evaluation.held_out import BlockLosses, mean_loss
    from inheritune_lit.inherit.args import SliceArgs
    from inheritune_lit.inherit.grown import attn_scale_of, check_start, layers_of, slice_options, write_grown
    from inheritune_lit.inherit.layers import layers_text, parse_layers
    from inheritune_lit.inherit.load import build_reference
    from inheritune_lit.inherit.plan import student_config
    from inheritune_lit.inherit.reference import ReferenceModel, reference_from_table
    from inheritune_lit.inherit.resolve import ResolvedReference
    from inheritune_lit.inherit.resolve import resolve as resolve_reference
    from inheritune_lit.inherit.slice import slice_model
    from inheritune_lit.model.devices import USABLE as USABLE_GPU_MEMORY
    from inheritune_lit.model.flops import LONGEST_BLOCK, flops_per_token
    from inheritune_lit.model.load import load_model
    from inheritune_lit.parsing import read_recipe
    from inheritune_lit.planning.advise import analyze
    from inheritune_lit.planning.args import InitArgs, PlanArgs
    from inheritune_lit.planning.plan import plan
    from inheritune_lit.planning.recipe import init_recipe
    from inheritune_lit.report.args import ReportArgs
    from inheritune_lit.report.report import make_report
    from inheritune_lit.studies.ablate import ablate
    from inheritune_lit.studies.args import AblateArgs, DemoArgs, GrowArgs, ReproduceArgs
    from inheritune_lit.studies.demo import run_demo
    from inheritune_lit.studies.grow import grow
    from inheritune_lit.studies.replication import reproduce
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
    "AblateArgs": "studies.args",
    "AdviceArgs": "analysis.args",
    "Analysis": "analysis.result",
    "AnalysisResult": "analysis.analyze",
    "AnalyzeArgs": "analysis.args",
    "BlockLosses": "evaluation.held_out",
    "Comparison": "evaluation.against_reference",
    "Config": "checkpoint.config",
    "DemoArgs": "studies.args",
    "DistillArgs": "train.args",
    "EvalArgs": "train.args",
    "ExportArgs": "checkpoint.args",
    "FINAL": "checkpoint.folder",
    "GPT2Config": "checkpoint.config",
    "Gpu": "train.gpus",
    "GrowArgs": "studies.args",
    "HeldOutEvaluator": "evaluation.against_reference:HeldOutEvaluator",
    "InitArgs": "planning.args",
    "LONGEST_BLOCK": "model.flops",
    "METRICS": "train.metrics",
    "MeasuredSteps": "train.timing",
    "MixtureArgs": "train.args",
    "OPTIMIZER": "train.optim",
    "OptimizerArgs": "train.args",
    "PackedDataset": "data.packed",
    "PlanArgs": "planning.args",
    "PrepareArgs": "data.args",
    "PretrainArgs": "train.args",
    "ReferenceModel": "inherit.reference",
    "ReportArgs": "report.args",
    "ReproduceArgs": "studies.args",
    "ResolvedReference": "inherit.resolve",
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
    "WEIGHTS": "checkpoint.folder",
    "Weights": "checkpoint.weights",
    "Z": "evaluation.against_reference",
    "ablate": "studies.ablate",
    "analyze": "planning.advise",
    "analyze_model": "analysis.analyze",
    "at_depth": "train.args",
    "attn_scale_of": "inherit.grown",
    "build_fabric": "train.devices",
    "build_reference": "inherit.load",
    "check_fits_model": "data.compatibility",
    "check_start": "inherit.grown",
    "compare_losses": "evaluation.against_reference:compare",
    "count_parameters": "checkpoint.tensors",
    "data_settings": "train.run_folder",
    "default_precision": "train.devices",
    "EvaluateArgs": "evaluation.args",
    "EvaluationResult": "evaluation.harness",
    "evaluate": "evaluation.harness",
    "export": "checkpoint.export",
    "find_gpus": "train.gpus",
    "flops_per_token": "model.flops",
    "grow": "studies.grow",
    "init_recipe": "planning.recipe",
    "is_litgpt_folder": "checkpoint.folder",
    "is_validation": "data.documents",
    "iter_documents": "data.sources",
    "largest_micro_batch": "train.memory",
    "layers_of": "inherit.grown",
    "layers_text": "inherit.layers",
    "load_analysis": "analysis.result",
    "load_model": "model.load",
    "load_packed_manifest": "data.packed",
    "machine_name": "train.devices",
    "make_mixture": "data.mixture",
    "make_report": "report.report",
    "mean_loss": "evaluation.held_out",
    "measure_steps": "train.timing",
    "parse_layers": "inherit.layers",
    "peak_flops": "train.gpus",
    "peak_flops_of": "train.devices",
    "plan": "planning.plan",
    "plan_run": "train.plan",
    "prepare": "data.prepare",
    "pretrain": "train.pretrain",
    "read_metrics": "train.metrics",
    "read_recipe": "parsing",
    "read_run": "train.run_folder",
    "read_validations": "train.metrics",
    "reference_from_table": "inherit.reference",
    "reference_identity": "evaluation.against_reference",
    "reproduce": "studies.replication",
    "resolve_reference": "inherit.resolve:resolve",
    "run_demo": "studies.demo",
    "sample_length": "train.plan:block_size_of",
    "save_lit_config": "checkpoint.config",
    "slice_model": "inherit.slice",
    "slice_options": "inherit.grown",
    "step_memory": "train.memory",
    "student_config": "inherit.plan",
    "teach": "train.teach",
    "tensor_shapes": "checkpoint.tensors",
    "training_settings": "train.run_folder",
    "write_grown": "inherit.grown",
}

__all__ = [
    "ASSUMED_MFU",
    "FINAL",
    "LONGEST_BLOCK",
    "METRICS",
    "OPTIMIZER",
    "USABLE_GPU_MEMORY",
    "WEIGHTS",
    "AblateArgs",
    "AdviceArgs",
    "Analysis",
    "AnalysisResult",
    "AnalyzeArgs",
    "BlockLosses",
    "Comparison",
    "Config",
    "DemoArgs",
    "DistillArgs",
    "EvalArgs",
    "EvaluateArgs",
    "EvaluationResult",
    "ExportArgs",
    "GPT2Config",
    "Gpu",
    "GrowArgs",
    "HeldOutEvaluator",
    "InitArgs",
    "MeasuredSteps",
    "MixtureArgs",
    "OptimizerArgs",
    "PackedDataset",
    "PlanArgs",
    "PrepareArgs",
    "PretrainArgs",
    "ReferenceModel",
    "ReportArgs",
    "ReproduceArgs",
    "ResolvedReference",
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
    "Weights",
    "Z",
    "ablate",
    "analyze",
    "analyze_model",
    "at_depth",
    "attn_scale_of",
    "build_fabric",
    "build_reference",
    "check_fits_model",
    "check_start",
    "compare_losses",
    "count_parameters",
    "data_settings",
    "default_precision",
    "evaluate",
    "export",
    "find_gpus",
    "flops_per_token",
    "grow",
    "init_recipe",
    "is_litgpt_folder",
    "is_validation",
    "iter_documents",
    "largest_micro_batch",
    "layers_of",
    "layers_text",
    "load_analysis",
    "load_model",
    "load_packed_manifest",
    "machine_name",
    "make_mixture",
    "make_report",
    "mean_loss",
    "measure_steps",
    "parse_layers",
    "peak_flops",
    "peak_flops_of",
    "plan",
    "plan_run",
    "prepare",
    "pretrain",
    "read_metrics",
    "read_recipe",
    "read_run",
    "read_validations",
    "reference_from_table",
    "reference_identity",
    "reproduce",
    "resolve_reference",
    "run_demo",
    "sample_length",
    "save_lit_config",
    "slice_model",
    "slice_options",
    "step_memory",
    "student_config",
    "teach",
    "tensor_shapes",
    "training_settings",
    "write_grown",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _MODULES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute or name)
