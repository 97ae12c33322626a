"""One contender of the training benchmarks in a process of its own: `python benchmarks/contenders.py NAME FOLDER`.

FOLDER holds spec.json, tokens.npy (steps, samples, T + 1), checkpoint/ (litgpt) and hf/ (the same weights). The result
goes to FOLDER/NAME.json: seconds and loss of each optimizer step, peak memory, and what ran.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
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

    def samples(self, samples: range) -> range:
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
) -> Result:
    """The training step of ``inheritune pretrain``."""
    from inheritune_lit.model.load import load_model
    from inheritune_lit.train.args import OptimizerArgs, SpeedArgs, TrainArgs, TrainingArgs
    from inheritune_lit.train.loop import Trainer
    from inheritune_lit.train.plan import RunPlan
    from inheritune_lit.train.setup import build_fabric, choose_kernels, set_up

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
    fabric = build_fabric(1, 1, "auto", precision)
    gpt = load_model(folder / "checkpoint", dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32)
    kernels = choose_kernels(gpt.config, chosen, fabric.device, 0.0, spec["flops"])
    args = TrainingArgs(train=train, optimizer=adamw, speed=chosen)
    state = set_up(fabric, gpt, args, T, precision, kernels)
    accumulation = samples // spec["micro_batch_size"]
    plan = RunPlan(steps, 0, 0, accumulation, T, samples * T, 0, 0, spec["flops_per_token"], None)
    data = TokenArray(tokens_SNT1.reshape(-1, T + 1))
    trainer = Trainer(fabric, state, plan, args, data, data, data, None, None)
    gpt.train()
    for step in range(steps):
        trainer.step = step
        clock.start()
        clock.stop(trainer.train_step()[0])
    return clock.result() | {"kernels": _kernels(trainer.train_step) if torch.cuda.is_available() else None}


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
    for tokens_NT1 in tokens_SNT1:
        clock.start()
        total = torch.zeros((), device=fabric.device)
        for start in range(0, samples, size):
            tokens_BT1 = fabric.to_device(torch.from_numpy(tokens_NT1[start : start + size]))
            loss = chunked_cross_entropy(model(tokens_BT1[:, :-1].contiguous()), tokens_BT1[:, 1:].contiguous())
            fabric.backward(loss / accumulation)
            total += loss.detach()
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.stop(total.item() / accumulation)
    return clock.result()


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
            return {"input_ids": tokens_NT1[index, :-1], "labels": tokens_NT1[index, 1:]}

    class InOrder(hf.Trainer):
        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], **kwargs: Any) -> Any:
            # The labels are shifted already; without this the last of them would be lost.
            return super().compute_loss(model, {**inputs, "shift_labels": inputs["labels"]}, **kwargs)

    class Timer(hf.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                clock.stop(float(logs["loss"]))

    arguments = hf.TrainingArguments(
        output_dir=str(folder / "trainer"),
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
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    InOrder(model=model, args=arguments, train_dataset=Rows(), callbacks=[Timer()]).train()
    return clock.result()


def _kernels(step: Callable[[], Any]) -> list[dict[str, Any]]:
    """The GPU kernels that took the most time in one more step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)[:12]
    return [{"kernel": event.key[:80], "ms": round(event.self_device_time_total / 1e3, 1)} for event in events]


CONTENDERS: dict[str, Callable[[Path, dict[str, Any], np.ndarray], Result]] = {
    "ours-fp32": lambda *a: ours(*a, "32-true", {}),
    "ours-fp32-eager": lambda *a: ours(*a, "32-true", {"compile": False}),
    "ours-fp32-eager-plain-loss": lambda *a: ours(*a, "32-true", {"compile": False, "loss_kernel": "plain"}),
    "ours-bf16-mixed": lambda *a: ours(*a, "bf16-mixed", {}),
    "ours-bf16-mixed-eager": lambda *a: ours(*a, "bf16-mixed", {"compile": False}),
    "ours-bf16-true": lambda *a: ours(*a, "bf16-true", {}),
    "ours-fp8": lambda *a: ours(*a, "bf16-mixed", {"fp8": True}),
    "ours-24gb": lambda *a: ours(*a, "bf16-true", {"activation_checkpointing": True}, "adamw8bit"),
    "litgpt-fp32": lambda *a: litgpt(*a, "32-true", compiled=True),
    "litgpt-fp32-eager": lambda *a: litgpt(*a, "32-true", compiled=False),
    "litgpt-bf16-mixed": lambda *a: litgpt(*a, "bf16-mixed", compiled=True),
    "litgpt-bf16-true": lambda *a: litgpt(*a, "bf16-true", compiled=True),
    "transformers-fp32": lambda *a: transformers(*a, bf16=False, compiled=False),
    "transformers-fp32-compiled": lambda *a: transformers(*a, bf16=False, compiled=True),
    "transformers-bf16-compiled": lambda *a: transformers(*a, bf16=True, compiled=True),
    "transformers-bf16-liger": lambda *a: transformers(*a, bf16=True, compiled=True, liger=True),
}


def main(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    spec = json.loads((folder / "spec.json").read_text())
    result = CONTENDERS[name](folder, spec, np.load(folder / "tokens.npy"))
    (folder / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
