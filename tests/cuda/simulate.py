"""One optimizer step of the real trainer, of a model at its full size, on a GPU that is not there.

    python tests/cuda/simulate.py --ref openllama-3b --n 13 --micro 4 --precision bf16-mixed
    python tests/cuda/simulate.py --ref smollm2-135m --speed.compile false --speed.activation_checkpointing true

Weights are not needed, nor is a network for most references of `inheritune references`. Eager it takes seconds,
compiled up to minutes. Two steps are done; what is seen of the second, in which nothing is compiled or made for the
first time, goes to stdout as JSON:

model        reference, layers, parameters, samples and tokens per micro-batch, precision
kernels      what ``choose_kernels`` chose: loss, compiled
devices      where parameters, gradients and optimizer state are, and of which types
live_gb      on the GPU between two steps
peak_gb      most at once on the GPU during the step; peak_at: in which line of the package, or in the backward pass
peak_parts   the largest groups of tensors of this step that are alive then, in GB by type, shape, operation and place
phases       what is live after each micro-batch's forward and backward pass, and the peak until then
predicted    what ``step_memory`` says, by part; ratio: its total over peak_gb
attention    attention kernels by number of calls; compiled code calls them too
waits        where the host waits for the GPU, by number
operations   on the GPU, by number: all, and the most frequent; compiled kernels are not among them
compiled     graphs; Triton kernels and matrix products in each; launches of Triton kernels per step; GB that each
             graph reads and writes by Inductor's count; logits_fp32: buffers of fp32 with tokens x vocabulary
             elements in the generated code; codes: the folder of the generated code, with --keep FOLDER
flops        per token: counted, with --flops (attention as if it were not causal), and as ``plan`` says

It shows neither numbers nor speed, autotuning, fragmentation, or workspaces of cuBLAS.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from fake_cuda import GPUS, fake_cuda
from fake_inductor import Compiled, fake_inductor
from full_size import Training, model_of
from gpu_watch import Recording, Watch
from jsonargparse import ArgumentParser

from inheritune_lit.train.args import OptimizerArgs, SpeedArgs, TrainArgs, TrainingArgs

Report = dict[str, Any]


def parser() -> ArgumentParser:
    """The command line."""
    parsed = ArgumentParser(description=__doc__)
    parsed.add_argument("--ref", default="openllama-3b", help="name of a reference")
    parsed.add_argument("--n", type=int, default=None, help="its first layers; all by default")
    parsed.add_argument("--micro", type=int, default=4, help="samples per micro-batch")
    parsed.add_argument("--accumulation", type=int, default=2, help="micro-batches per step")
    parsed.add_argument("--block", type=int, default=2048, help="tokens per sample")
    parsed.add_argument("--precision", default="bf16-mixed", choices=["bf16-mixed", "bf16-true", "32-true"])
    parsed.add_argument("--z_loss", type=float, default=0.0)
    parsed.add_argument("--gpu", default="h100", choices=GPUS.keys())
    parsed.add_argument("--flops", type=bool, default=False, help="count FLOPs as well; eager only")
    parsed.add_argument("--keep", type=Path, default=None, help="folder for the generated code")
    parsed.add_class_arguments(SpeedArgs, "speed")
    parsed.add_class_arguments(OptimizerArgs, "optimizer")
    return parsed


def simulate(
    ref: str,
    n: int | None,
    micro: int,
    precision: Any,
    speed: SpeedArgs = SpeedArgs(),
    optimizer: OptimizerArgs = OptimizerArgs(),
    accumulation: int = 2,
    block: int = 2048,
    z_loss: float = 0.0,
    gpu: str = "h100",
    flops: bool = False,
    keep: Path | None = None,
) -> Report:
    """What this file prints, for the arguments of its command line; once per process."""
    began = time.perf_counter()
    model = model_of(ref, n)
    block = min(block, model.config.block_size)
    train = TrainArgs(
        global_batch_size=micro * accumulation,
        micro_batch_size=micro,
        z_loss=z_loss,
        max_loss_jump=None,
    )
    args = TrainingArgs(train=train, speed=speed, optimizer=optimizer)
    with fake_cuda(GPUS[gpu], real_host=False) as seen, fake_inductor() as compiled:
        training = Training.of(model, block, args, precision)
        training.step()
        seen.clear()
        compiled.launches = 0
        live = seen.memory.live
        phases: list[Report] = []
        _note_phases(training, seen, phases)
        with seen.memory.recorded() as recording, _flop_counter(flops) as counted:
            training.step()
        devices = _devices(training)
    tokens = train.global_batch_size * block
    report: Report = {
        "model": {"title": model.title, "parameters": model.parameters, "micro": micro, "block": block},
        "precision": precision,
        "kernels": vars(training.kernels),
        "devices": devices,
        "live_gb": _gb(live),
        **_peak(recording),
        "phases": phases,
        "predicted": _prediction(training, recording),
        "attention": dict(seen.attention),
        "waits": dict(seen.waits),
        "operations": {"all": seen.operations.total(), **dict(seen.operations.most_common(8))},
        "flops": {"planned": training.trainer.plan.flops_per_token},
    }
    if counted is not None:
        report["flops"]["counted"] = counted.get_total_flops() / tokens
    if training.kernels.compiled:
        report["compiled"] = _compiled(compiled, micro * block * model.config.padded_vocab_size, keep)
    return {**report, "seconds": round(time.perf_counter() - began, 1)}


def _gb(count: int) -> float:
    return round(count / 1e9, 3)


def _note_phases(training: Training, seen: Watch, phases: list[Report]) -> None:
    """Note live memory after forward and backward passes of the steps to come."""
    fabric = training.trainer.fabric
    backward = fabric.backward

    def noted(*args: Any, **kwargs: Any) -> None:
        phases.append({"after": "forward", "live_gb": _gb(seen.memory.live), "peak_gb": _gb(seen.memory.peak)})
        backward(*args, **kwargs)
        phases.append({"after": "backward", "live_gb": _gb(seen.memory.live), "peak_gb": _gb(seen.memory.peak)})

    fabric.backward = noted


def _flop_counter(wanted: bool) -> Any:
    if not wanted:
        return contextlib.nullcontext()
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


def _devices(training: Training) -> dict[str, list[str]]:
    """Kinds of the tensors of model and optimizer, by device and type."""
    gpt, optimizer = training.trainer.state.gpt, training.trainer.state.optimizer
    kinds: dict[str, set[str]] = {"parameters": set(), "buffers": set(), "optimizer": set()}
    for parameter in gpt.parameters():
        kinds["parameters"].add(f"{parameter.device} {parameter.dtype}")
    for buffer in gpt.buffers():
        kinds["buffers"].add(f"{buffer.device} {buffer.dtype}")
    for leaf in torch.utils._pytree.tree_leaves(optimizer.state_dict()):
        if isinstance(leaf, torch.Tensor):
            kinds["optimizer"].add(f"{leaf.device} {leaf.dtype}")
    return {name: sorted(found) for name, found in kinds.items()}


def _peak(recording: Recording) -> Report:
    peak, where, parts = recording.at_peak()
    largest = {name: _gb(size) for name, size in parts.most_common(25)}
    return {"peak_gb": _gb(peak), "peak_at": where, "peak_parts": largest}


def _prediction(training: Training, recording: Recording) -> Report:
    memory = training.predicted
    parts = {name: _gb(size) for name, size in vars(memory).items()}
    return {**parts, "total": _gb(memory.total), "ratio": round(memory.total / recording.at_peak()[0], 4)}


def _compiled(compiled: Compiled, logits: int, keep: Path | None) -> Report:
    report = {
        "graphs": len(compiled.codes),
        "triton_kernels": compiled.triton_kernels(),
        "matrix_products": compiled.matrix_products(),
        "launches": compiled.launches,
        "graph_gb": [_gb(count) for count in compiled.bytes],
        "logits_fp32": compiled.buffers("float32", logits),
    }
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        for number, code in enumerate(compiled.codes):
            (keep / f"graph{number}.py").write_text(code)
        report["codes"] = str(keep)
    return report


def main(arguments: list[str] | None = None) -> None:
    """Print the report of the command line."""
    parsed = parser()
    given = parsed.instantiate_classes(parsed.parse_args(arguments))
    print(json.dumps(simulate(**vars(given)), indent=1))


if __name__ == "__main__":
    main()
