# What the package exports, and from where: for type checkers, and for __init__.py when a name is asked for.

from inheritune_lit.analysis.analyze import AnalysisResult, analyze_model
from inheritune_lit.analysis.args import AnalyzeArgs, SearchArgs
from inheritune_lit.analysis.result import Analysis, load_analysis
from inheritune_lit.analysis.search import search_layers
from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.config import Config, GPT2Config, save_lit_config
from inheritune_lit.checkpoint.export import export
from inheritune_lit.checkpoint.folder import FINAL, WEIGHTS, is_litgpt_folder
from inheritune_lit.checkpoint.tensors import count_parameters, tensor_shapes
from inheritune_lit.checkpoint.weights import Weights
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.formats import is_validation
from inheritune_lit.data.manifest import load_packed_manifest
from inheritune_lit.data.packed import PackedDataset, check_fits_model
from inheritune_lit.data.prepare import prepare
from inheritune_lit.data.sampler import make_mixture
from inheritune_lit.data.sources import iter_documents
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.evaluation.cells import CheckpointScores
from inheritune_lit.evaluation.harness import EvaluationResult, evaluate
from inheritune_lit.evaluation.held_out import (
    BlockLosses,
    Comparison,
    HeldOutEvaluator,
    Z,
    mean_loss,
    reference_identity,
)
from inheritune_lit.evaluation.held_out import compare as compare_losses
from inheritune_lit.inherit.args import SliceArgs, layers_text, parse_layers, spread_layers
from inheritune_lit.inherit.grown import attn_scale_of, check_start, layers_of, slice_options, write_grown
from inheritune_lit.inherit.load import build_reference
from inheritune_lit.inherit.plan import student_config
from inheritune_lit.inherit.reference import ReferenceModel, ResolvedReference, describe_shape, reference_from_table
from inheritune_lit.inherit.reference import resolve as resolve_reference
from inheritune_lit.inherit.searched import Search, layers_for, load_search, search_record
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.devices import USABLE as USABLE_GPU_MEMORY
from inheritune_lit.model.devices import on_first_rank
from inheritune_lit.model.flops import LONGEST_BLOCK, flops_per_token
from inheritune_lit.model.load import load_model
from inheritune_lit.parsing import read_recipe
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
from inheritune_lit.train.distillation import stored_bytes, teacher_bytes
from inheritune_lit.train.gpus import ASSUMED_MFU, Gpu, find_gpus, peak_flops
from inheritune_lit.train.metrics import METRICS, read_metrics
from inheritune_lit.train.plan import (
    MeasuredSteps,
    ResourceEstimate,
    RunPlan,
    StepMemory,
    flops_of_validation,
    largest_micro_batch,
    measure_steps,
    plan_run,
    step_memory,
    teacher_flops,
)
from inheritune_lit.train.plan import block_size_of as sample_length
from inheritune_lit.train.pretrain import pretrain
from inheritune_lit.train.run_folder import RunRecord, RunResult, data_settings, read_run, training_settings
from inheritune_lit.train.setup import (
    build_fabric,
    check_machine,
    default_precision,
    machine_name,
    peak_flops_of,
    stop_requests,
)
from inheritune_lit.train.teach import TeachResult, teach
from inheritune_lit.train.trainable import TrainedModel

__version__: str

__all__ = ["UserError", "read_recipe"]
__all__ += ["Analysis", "AnalysisResult", "AnalyzeArgs", "analyze_model", "load_analysis"]
__all__ += ["SearchArgs", "search_layers"]
__all__ += ["FINAL", "WEIGHTS", "Config", "ExportArgs", "GPT2Config", "Weights", "count_parameters", "export"]
__all__ += ["is_litgpt_folder", "save_lit_config", "tensor_shapes"]
__all__ += ["PackedDataset", "PrepareArgs", "check_fits_model", "is_validation", "iter_documents"]
__all__ += ["load_packed_manifest", "make_mixture", "prepare"]
__all__ += ["BlockLosses", "CheckpointScores", "Comparison", "EvaluateArgs", "EvaluationResult", "HeldOutEvaluator"]
__all__ += ["Z", "compare_losses", "evaluate", "mean_loss", "reference_identity"]
__all__ += ["ReferenceModel", "ResolvedReference", "SliceArgs", "attn_scale_of", "build_reference", "check_start"]
__all__ += ["layers_of", "layers_text", "parse_layers", "reference_from_table", "resolve_reference", "slice_model"]
__all__ += ["describe_shape", "slice_options", "spread_layers", "student_config", "write_grown"]
__all__ += ["Search", "layers_for", "load_search", "search_record"]
__all__ += ["LONGEST_BLOCK", "USABLE_GPU_MEMORY", "flops_per_token", "load_model", "on_first_rank"]
__all__ += ["InitArgs", "PlanArgs", "init_recipe", "plan"]
__all__ += ["ReportArgs", "make_report"]
__all__ += ["AblateArgs", "DemoArgs", "GrowArgs", "ReproduceArgs", "ablate", "grow", "reproduce", "run_demo"]
__all__ += ["ASSUMED_MFU", "METRICS", "DistillArgs", "EvalArgs", "Gpu", "MeasuredSteps", "MixtureArgs"]
__all__ += ["OptimizerArgs", "PretrainArgs", "ResourceEstimate", "RunPlan", "RunRecord", "RunResult", "SpeedArgs"]
__all__ += ["StepMemory", "TeachArgs", "TeachResult", "TrainArgs", "TrainingArgs", "at_depth", "build_fabric"]
__all__ += ["check_machine", "data_settings", "default_precision", "find_gpus", "largest_micro_batch", "machine_name"]
__all__ += ["measure_steps", "peak_flops", "peak_flops_of", "plan_run", "pretrain", "read_metrics", "read_run"]
__all__ += ["sample_length", "step_memory", "stop_requests", "teach", "training_settings"]
__all__ += ["TrainedModel", "flops_of_validation", "stored_bytes", "teacher_bytes", "teacher_flops"]
