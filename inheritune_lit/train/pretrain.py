"""``inheritune pretrain``: continue the training of a checkpoint."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.folder import WEIGHTS
from inheritune_lit.data.compatibility import check_fits
from inheritune_lit.data.mixture import make_mixture
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.io.manifest import read_manifest, sha256_file
from inheritune_lit.model.devices import device_count
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, PretrainArgs, SpeedArgs, TrainArgs
from inheritune_lit.train.devices import build_fabric, default_precision, stop_requests
from inheritune_lit.train.distillation import prepare_distillation
from inheritune_lit.train.gpus import peak_flops
from inheritune_lit.train.loop import Trainer
from inheritune_lit.train.metrics import MetricsLog, NoLog
from inheritune_lit.train.optim import OPTIMIZER, load_optimizer, save_optimizer
from inheritune_lit.train.plan import ResourceEstimate, block_size_of, plan_run, plan_text
from inheritune_lit.train.run_folder import (
    FINAL,
    RunResult,
    begin_run,
    data_changes,
    data_settings,
    find_run,
    run_sampler,
)
from inheritune_lit.train.saving import Saver, drop_state
from inheritune_lit.train.setup import check_machine, choose_kernels, prepare_model, set_up

# These say how often to look, what to keep and how to share the work, not what to compute: they may change when a run
# is continued.
_FREE_SETTINGS = (
    "log_interval",
    "save_interval",
    "max_time",
    "keep_last",
    "keep_best",
    "async_save",
    "bad_step",
    "max_loss_jump",
    "micro_batch_size",
)


def pretrain(args: PretrainArgs, *, initial_optimizer: Path | None = None, keep_optimizer: bool = False) -> RunResult:
    """Train a litgpt checkpoint on packed data; the same call continues a run that was stopped or killed.

    The run folder holds ``metrics.csv``, ``state.pth`` while the run lasts, and at its end ``final/``, a litgpt
    checkpoint.

    Args:
        args: what to train, on what, and how.
        initial_optimizer: state that parameters of the same names begin with; fresh when None.
        keep_optimizer: leave the optimizer's state in the run folder, for the ``initial_optimizer`` of another run.

    Raises:
        UserError: bad input, a run with other settings in ``out_dir``, or a bad step.
        KeyboardInterrupt: after saving, when stopped with Ctrl-C. SIGTERM saves and returns a result without ``final``.
    """
    train, eval, optimizer, speed, distill = args.train, args.eval, args.optimizer, args.speed, args.distill
    initial_checkpoint_dir, data, out_dir, documents = (
        args.initial_checkpoint_dir,
        args.data,
        args.out_dir,
        args.documents,
    )
    config = load_config(initial_checkpoint_dir)
    check_fits(data, initial_checkpoint_dir)
    block_size = block_size_of(train, config)
    train_data, val_data = (PackedDataset(data, split, block_size, documents) for split in ("train", "val"))
    domains = make_mixture(train_data.domains, args.mixture.weights)
    # Before processes are started, or each of them would say what is wrong.
    train.accumulation(device_count(args.devices, args.num_nodes) * args.num_nodes)
    precision = args.precision or default_precision()
    distillation = prepare_distillation(distill, data, train_data, documents, config, precision)
    fabric = build_fabric(args.devices, args.num_nodes, args.strategy, precision)
    check_machine(optimizer, speed, fabric.device, args.logger_name)
    gpt = prepare_model(initial_checkpoint_dir, precision, speed, block_size)
    parameters = sum(parameter.numel() for parameter in gpt.parameters())
    peak = peak_flops(torch.cuda.get_device_name(fabric.device)) if fabric.device.type == "cuda" else None
    plan = plan_run(
        config,
        train,
        eval,
        domains,
        len(val_data),
        parameters,
        devices=fabric.world_size,
        peak_flops=peak,
        teacher_flops=distillation.flops_per_token if distillation else 0.0,
    )
    kernels = choose_kernels(
        config, speed, fabric.device, train.z_loss, plan.tokens * plan.flops_per_token, distillation is not None
    )
    sharded = args.strategy in ("fsdp", "hybrid")
    shards = fabric.world_size if sharded else 1
    teacher = distillation.memory(train.micro_batch_size) if distillation else 0
    room = ResourceEstimate.of(
        config, parameters, block_size, precision, train, speed, optimizer, kernels, fabric.device, shards, teacher
    )
    settings = {
        "initial_checkpoint_dir": str(initial_checkpoint_dir),
        "initial_weights_sha256": sha256_file(initial_checkpoint_dir / WEIGHTS),
        **training_settings(train, eval, optimizer, speed),
        "precision": precision,
        "device": fabric.device.type,
        "seed": args.seed,
        **({"distill": distillation.settings} if distillation else {}),
        **data_settings(data, documents, domains),
    }
    if initial_optimizer:
        settings["initial_optimizer_sha256"] = sha256_file(initial_optimizer)
    finished = find_run(out_dir, settings)
    changes = data_changes(out_dir, settings, plan.total_steps, finished is not None, args.allow_data_change)
    if fabric.global_rank == 0:
        name = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else "CPU"
        machine = f"{fabric.world_size} x {name}" if fabric.world_size > 1 else name
        learns_from = distillation.name if distillation else None
        text = plan_text(
            plan, config.name, train, domains, changes, f"{machine}, {precision}", room.memory, learns_from
        )
        print(text, file=sys.stderr, flush=True)
    if args.dry_run:
        return RunResult(plan)
    if finished:
        if fabric.global_rank == 0:
            drop_state(out_dir)  # still there when the run was killed right after its end
        return finished
    room.check_disk(out_dir)
    fabric.barrier()
    if fabric.global_rank == 0:
        room.warn()
        begin_run(out_dir, settings, changes)
    fabric.barrier()
    state = set_up(fabric, gpt, optimizer, speed, precision, kernels, train.z_loss, distillation)
    if initial_optimizer:
        load_optimizer(initial_optimizer, gpt, state.optimizer)
    saver = Saver(fabric, gpt, state.optimizer, sharded, out_dir, initial_checkpoint_dir, train)
    sampler = run_sampler(settings, changes)
    names = [name for name, size in val_data.domains.items() if size.blocks]
    log = MetricsLog(out_dir, args.logger_name, out_dir.name, names) if fabric.global_rank == 0 else NoLog()
    stored = distillation.logits if distillation else None
    trainer = Trainer(fabric, state, plan, train, eval, optimizer, train_data, sampler, val_data, saver, log, stored)
    with stop_requests() as stop:
        try:
            validation = trainer.fit(stop)
        except torch.OutOfMemoryError as error:
            raise room.out_of_memory() from error
        if validation is None:
            return RunResult(plan, None, trainer.step, trainer.tokens)
        record = {
            "steps": trainer.step,
            "tokens": trainer.tokens,
            "val_loss": validation.loss,
            "val_stderr": validation.stderr,
            "val_blocks": validation.blocks,
            "val_domains": {name: asdict(held_out) for name, held_out in validation.domains.items()},
            "run": read_manifest(out_dir),
        }
        if keep_optimizer and fabric.global_rank == 0:
            save_optimizer(out_dir / OPTIMIZER, gpt, state.optimizer)
        saver.save_final(out_dir / FINAL, record)
        if fabric.global_rank == 0:
            drop_state(out_dir)
    return RunResult(
        plan,
        out_dir / FINAL,
        trainer.step,
        trainer.tokens,
        validation.loss,
        validation.stderr,
        validation.domains,
    )


def training_settings(train: TrainArgs, eval: EvalArgs, optimizer: OptimizerArgs, speed: SpeedArgs) -> dict[str, Any]:
    """All arguments that change the outcome: a run is continued only where every value is the same."""
    return {
        "train": {name: value for name, value in asdict(train).items() if name not in _FREE_SETTINGS},
        "eval": {"interval": eval.interval, "samples": eval.max_iters and eval.max_iters * train.micro_batch_size},
        "optimizer": asdict(optimizer),
        "fp8": speed.fp8,
    }
