"""One contender of the training benchmarks in a process of its own:

    python benchmarks/contenders.py NAME FOLDER [--micro_batch_size 4]

FOLDER holds spec.json, tokens.npy (steps, samples, T + 1), checkpoint/ (litgpt) and hf/ (the same weights). The result
goes to FOLDER/NAME.json: seconds and loss of each optimizer step, peak memory, and what ran.
"""

import argparse
import json
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import own_anonymous_bytes

Result = dict[str, Any]


class Clock:
    """Times optimizer steps and remembers their losses; on a GPU with its events."""

    def __init__(self, warm_up: int) -> None:
        self._cuda, self._warm_up = torch.cuda.is_available(), warm_up
        self._seconds: list[float] = []
        self.losses: list[float] = []
        self._peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self) -> None:
        if self._cuda:
            self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._events[0].record()
        self._began = time.perf_counter()

    def stop(self, loss: float) -> None:
        if self._cuda:
            self._events[1].record()
            torch.cuda.synchronize()
            self._seconds.append(self._events[0].elapsed_time(self._events[1]) / 1e3)
        else:
            self._seconds.append(time.perf_counter() - self._began)
        self.losses.append(loss)

    def result(self) -> Result:
        peak = torch.cuda.max_memory_allocated() if self._cuda else self._peak
        return {
            "step_seconds": [round(seconds, 4) for seconds in self._seconds[self._warm_up :]],
            "warm_up_seconds": round(sum(self._seconds[: self._warm_up]), 2),
            "losses": [round(loss, 5) for loss in self.losses],
            "peak_memory_mb": round(peak / 1e6, 1),
            **({"reserved_memory_mb": round(torch.cuda.max_memory_reserved() / 1e6, 1)} if self._cuda else {}),
        }

    def _watch(self) -> None:
        while not self._cuda:
            self._peak = max(self._peak, own_anonymous_bytes())
            time.sleep(0.02)


class TokenArray:
    """The benchmark's tokens where the trainer looks for packed data and its sampler."""

    seed = 0

    def __init__(self, tokens_NT1: np.ndarray) -> None:
        self._tokens_NT1 = tokens_NT1

    def blocks(self, samples: range) -> range:
        """The samples in their order."""
        return samples

    def targets(self, blocks: range) -> np.ndarray:
        """How many each sample has."""
        return np.full(len(blocks), self._tokens_NT1.shape[1] - 1)

    def batch(self, blocks: range) -> np.ndarray:
        """Tokens, (B, T + 1)."""
        return self._tokens_NT1[blocks.start : blocks.stop]


def ours(
    folder: Path,
    spec: dict[str, Any],
    tokens_SNT1: np.ndarray,
    precision: str,
    speed: dict[str, Any],
    optimizer: str = "adamw",
    attention: str | None = None,
) -> Result:
    """The training step of ``inheritune pretrain``, with the plan's prediction of its memory.

    ``attention`` is "flash" or "cudnn" where the kernel is not to be the one that training chooses.
    """
    from inheritune_lit.model.attention import attention_kernel
    from inheritune_lit.model.load import load_model
    from inheritune_lit.train.args import OptimizerArgs, SpeedArgs, TrainArgs, TrainingArgs
    from inheritune_lit.train.loop import Trainer
    from inheritune_lit.train.plan import ResourceEstimate
    from inheritune_lit.train.setup import build_fabric, check_machine, choose_kernels, set_up, training_switches

    clock = Clock(spec["warm_up"])
    steps, samples, T = len(tokens_SNT1), tokens_SNT1.shape[1], tokens_SNT1.shape[2] - 1
    train = TrainArgs(
        global_batch_size=samples,
        micro_batch_size=spec["micro_batch_size"],
        schedule="constant",
        lr_warmup_steps=0,
        max_loss_jump=None,
    )
    adamw, chosen = OptimizerArgs(name=optimizer, lr=spec["lr"]), SpeedArgs(**speed)
    args = TrainingArgs(train=train, optimizer=adamw, speed=chosen)
    fabric = build_fabric(1, 1, "auto", precision)
    check_machine(args, fabric.device)
    gpt = load_model(folder / "checkpoint", dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32)
    kernels = choose_kernels(gpt.config, chosen, fabric.device, 0.0, spec["flops"])
    plan = _plan(gpt.config, spec, steps, samples, T)
    state = set_up(fabric, gpt, args, T, precision, kernels)
    if attention:
        _swap_kernel(gpt, attention)
    data = TokenArray(tokens_SNT1.reshape(-1, T + 1))
    trainer = Trainer(fabric, state, plan, args, data, data, data, None, None)
    gpt.train()
    with training_switches(fabric.device, precision, args.deterministic, chosen.activation_budget):
        for step in range(steps):
            trainer.step = step
            clock.start()
            clock.stop(trainer.train_step()[0])
        result = clock.result() | {"loss_kernel": kernels.loss} | _kernels(trainer.train_step)
    # What follows is not to cost what was measured.
    try:
        predicted = ResourceEstimate(gpt.config, plan, args, precision, kernels, fabric.device).memory
        result["predicted_memory_mb"] = round(predicted.total / 1e6, 1)
        result["predicted_parts_mb"] = {name: round(count / 1e6, 1) for name, count in asdict(predicted).items()}
        dtype = torch.float32 if precision == "32-true" else torch.bfloat16
        result["attention"] = attention or attention_kernel(gpt, T, fabric.device, dtype)
    except Exception:
        result["prediction_failed"] = traceback.format_exc()
    return result


def _plan(config: Any, spec: dict[str, Any], steps: int, samples: int, T: int) -> Any:
    from inheritune_lit.checkpoint.tensors import count_parameters, tensor_shapes
    from inheritune_lit.train.plan import RunPlan

    return RunPlan(
        total_steps=steps,
        budget=0,
        tokens=0,
        accumulation=samples // spec["micro_batch_size"],
        block_size=T,
        tokens_per_step=samples * T,
        val_blocks=0,
        parameters=count_parameters(tensor_shapes(config, tied=False)),
        flops_per_token=spec["flops_per_token"],
        peak_flops=None,
    )


def predicted_bytes(config: Any, spec: dict[str, Any], samples: int, T: int, device: torch.device) -> int:
    """What ``inheritune pretrain`` predicts for a step in bf16-mixed, which needs more than bf16-true."""
    from inheritune_lit.train.args import SpeedArgs, TrainArgs, TrainingArgs
    from inheritune_lit.train.plan import ResourceEstimate
    from inheritune_lit.train.setup import choose_kernels

    train = TrainArgs(global_batch_size=samples, micro_batch_size=spec["micro_batch_size"])
    kernels = choose_kernels(config, SpeedArgs(), device, 0.0, spec["flops"])
    plan = _plan(config, spec, 1, samples, T)
    return ResourceEstimate(config, plan, TrainingArgs(train=train), "bf16-mixed", kernels, device).memory.total


def _swap_kernel(gpt: Any, name: str) -> None:
    """Compute attention by one kernel and no other; an error where it does not apply."""
    from torch.nn.attention import SDPBackend

    from inheritune_lit.model.attention import fuse_attention

    fuse_attention(gpt, [{"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[name]])


def litgpt(folder: Path, spec: dict[str, Any], tokens_SNT1: np.ndarray, precision: str, compiled: bool) -> Result:
    """litgpt's own loop, ``litgpt.pretrain.fit`` (0.5.13), without its data loader, logs and validation."""
    from lightning.fabric import Fabric
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer

    clock = Clock(spec["warm_up"])
    fabric = Fabric(devices=1, precision=precision)
    with fabric.init_module(empty_init=True):
        model = GPT(Config.from_file(folder / "checkpoint" / "model_config.yaml"))
    T = tokens_SNT1.shape[2] - 1
    model.max_seq_length = T
    model = fabric.setup(torch.compile(model) if compiled else model)
    adamw = {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": spec["lr"], "weight_decay": 0.1, "betas": [0.9, 0.95]},
    }
    optimizer = instantiate_torch_optimizer(adamw, model.parameters(), fused=fabric.device.type == "cuda")
    optimizer = fabric.setup_optimizers(optimizer)
    fabric.load_raw(folder / "checkpoint" / "lit_model.pth", model)
    size, samples = spec["micro_batch_size"], tokens_SNT1.shape[1]
    accumulation = samples // size

    def train_step(tokens_NT1: np.ndarray) -> float:
        total = torch.zeros((), device=fabric.device)
        for start in range(0, samples, size):
            tokens_BT1 = fabric.to_device(torch.from_numpy(tokens_NT1[start : start + size]))
            loss = chunked_cross_entropy(model(tokens_BT1[:, :-1].contiguous()), tokens_BT1[:, 1:].contiguous())
            fabric.backward(loss / accumulation)
            total += loss.detach()
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total.item() / accumulation

    for tokens_NT1 in tokens_SNT1:
        clock.start()
        clock.stop(train_step(tokens_NT1))
    return clock.result() | _kernels(lambda: train_step(tokens_SNT1[-1]))


def transformers(
    folder: Path, spec: dict[str, Any], tokens_SNT1: np.ndarray, bf16: bool, compiled: bool, liger: bool = False
) -> Result:
    """transformers' Trainer."""
    import transformers as hf

    clock = Clock(spec["warm_up"])
    model = hf.AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32, attn_implementation="sdpa")
    tokens_NT1 = torch.from_numpy(tokens_SNT1.reshape(-1, tokens_SNT1.shape[2]))

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(tokens_NT1)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            # Without shift_labels the labels would be shifted once more, and the last of them lost.
            targets_T = tokens_NT1[index, 1:]
            return {"input_ids": tokens_NT1[index, :-1], "labels": targets_T, "shift_labels": targets_T}

    class InOrder(hf.Trainer):
        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Timer(hf.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                clock.stop(float(logs["loss"]))

    made = tempfile.TemporaryDirectory()  # the Trainer wants one, and leaves nothing in it
    arguments = hf.TrainingArguments(
        output_dir=made.name,
        per_device_train_batch_size=spec["micro_batch_size"],
        gradient_accumulation_steps=tokens_SNT1.shape[1] // spec["micro_batch_size"],
        max_steps=len(tokens_SNT1),
        learning_rate=spec["lr"],
        lr_scheduler_type="constant",
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=bf16,
        torch_compile=compiled,
        use_liger_kernel=liger,
        remove_unused_columns=False,  # shift_labels is not a named argument of the model
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    InOrder(model=model, args=arguments, train_dataset=Rows(), callbacks=[Timer()]).train()
    return clock.result()


_ATTENTION = ("flash", "fmha", "cudnn", "sdpa", "attention", "attn")  # parts of the names of attention's kernels


def _kernels(step: Callable[[], Any]) -> Result:
    """Milliseconds of the GPU kernels of one more step: those that take longest, and attention's."""
    if not torch.cuda.is_available():
        return {}
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            step()
            torch.cuda.synchronize()
    except RuntimeError as error:  # such as no right to the GPU's counters; the steps were measured all the same
        return {"kernels_failed": str(error)}
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
    rows = [(event.key[:120], round(event.self_device_time_total / 1e3, 1), event.count) for event in events]
    attention = [row for row in rows if any(part in row[0].lower() for part in _ATTENTION) and "triton" not in row[0]]
    names = ("kernel", "ms", "launches")
    return {
        "kernels": [dict(zip(names, row, strict=True)) for row in rows[:20]],
        "attention_kernels": [dict(zip(names, row, strict=True)) for row in attention],
        "kernel_ms": round(sum(row[1] for row in rows), 1),
    }


CONTENDERS: dict[str, Callable[[Path, dict[str, Any], np.ndarray], Result]] = {
    "ours-fp32": lambda *a: ours(*a, "32-true", {}),
    "ours-fp32-eager": lambda *a: ours(*a, "32-true", {"compile": False}),
    "ours-fp32-eager-plain-loss": lambda *a: ours(*a, "32-true", {"compile": False, "loss_kernel": "plain"}),
    "ours-bf16-mixed": lambda *a: ours(*a, "bf16-mixed", {}),
    "ours-bf16-mixed-eager": lambda *a: ours(*a, "bf16-mixed", {"compile": False}),
    "ours-bf16-true": lambda *a: ours(*a, "bf16-true", {}),
    "ours-bf16-mixed-flash": lambda *a: ours(*a, "bf16-mixed", {}, attention="flash"),
    "ours-bf16-mixed-cudnn": lambda *a: ours(*a, "bf16-mixed", {}, attention="cudnn"),
    "ours-fp8": lambda *a: ours(*a, "bf16-mixed", {"fp8": True}),
    "ours-8bit": lambda *a: ours(*a, "bf16-true", {"activation_checkpointing": True}, "adamw8bit"),
    "litgpt-fp32": lambda *a: litgpt(*a, "32-true", compiled=True),
    "litgpt-fp32-eager": lambda *a: litgpt(*a, "32-true", compiled=False),
    "litgpt-bf16-mixed": lambda *a: litgpt(*a, "bf16-mixed", compiled=True),
    "litgpt-bf16-true": lambda *a: litgpt(*a, "bf16-true", compiled=True),
    "transformers-fp32": lambda *a: transformers(*a, bf16=False, compiled=False),
    "transformers-fp32-compiled": lambda *a: transformers(*a, bf16=False, compiled=True),
    "transformers-bf16-compiled": lambda *a: transformers(*a, bf16=True, compiled=True),
    "transformers-bf16-liger": lambda *a: transformers(*a, bf16=True, compiled=True, liger=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(CONTENDERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--micro_batch_size", type=int, help="instead of spec.json's")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    folder, spec = arguments.folder, json.loads((arguments.folder / "spec.json").read_text())
    size = spec["micro_batch_size"] = arguments.micro_batch_size or spec["micro_batch_size"]
    result = CONTENDERS[arguments.name](folder, spec, np.load(folder / "tokens.npy"))
    (folder / f"{arguments.name}.json").write_text(json.dumps({**result, "micro_batch_size": size}))


if __name__ == "__main__":
    main()
