"""``inheritune pretrain``: continue the training of a checkpoint."""

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.folder import FINAL, WEIGHTS
from inheritune_lit.data.mixture import make_mixture
from inheritune_lit.data.packed import PackedDataset, check_fits_model
from inheritune_lit.io.manifest import read_manifest, sha256_file
from inheritune_lit.model.devices import device_count
from inheritune_lit.train.args import PretrainArgs
from inheritune_lit.train.devices import build_fabric, default_precision, machine_name, peak_flops_of, stop_requests
from inheritune_lit.train.distillation import prepare_distillation
from inheritune_lit.train.loop import Trainer
from inheritune_lit.train.metrics import MetricsLog
from inheritune_lit.train.optim import OPTIMIZER, load_optimizer, save_optimizer
from inheritune_lit.train.plan import ResourceEstimate, block_size_of, plan_run, plan_text
from inheritune_lit.train.run_folder import (
    RunResult,
    begin_run,
    data_changes,
    data_settings,
    find_run,
    run_sampler,
    training_settings,
)
from inheritune_lit.train.saving import Saver, drop_state
from inheritune_lit.train.setup import check_machine, choose_kernels, prepare_model, set_up

logger = logging.getLogger(__name__)


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
    run = _Run(args, initial_optimizer)
    run.log_plan()
    if args.dry_run:
        return RunResult(run.plan)
    if run.finished:
        if run.is_first:
            drop_state(args.out_dir)  # still there when the run was killed right after its end
        return run.finished
    run.begin()
    return run.train(run.set_up(), keep_optimizer)


class _Run:
    """A run from its arguments to its result. Making one checks all that can be checked before anything is spent."""

    def __init__(self, args: PretrainArgs, initial_optimizer: Path | None) -> None:
        self.args, self.initial_optimizer = args, initial_optimizer
        config = load_config(args.initial_checkpoint_dir)
        check_fits_model(args.data, args.initial_checkpoint_dir, config.padded_vocab_size)
        block_size = block_size_of(args.train, config)
        self.train_data, self.val_data = (
            PackedDataset(args.data, split, block_size, args.documents) for split in ("train", "val")
        )
        self.mixture = make_mixture(self.train_data.domains, args.mixture.weights)
        # Before processes are started, or each of them would say what is wrong.
        args.train.accumulation(device_count(args.devices, args.num_nodes) * args.num_nodes)
        self.precision = args.precision or default_precision()
        self.distillation = prepare_distillation(args, self.train_data, config, self.precision)
        self.fabric = build_fabric(args.devices, args.num_nodes, args.strategy, self.precision)
        self.is_first, self.sharded = self.fabric.global_rank == 0, args.strategy in ("fsdp", "hybrid")
        device = self.fabric.device
        check_machine(args.optimizer, args.speed, device, args.logger_name)
        self.gpt = prepare_model(args.initial_checkpoint_dir, self.precision, args.speed, block_size)
        self.plan = plan_run(
            config,
            args.train,
            args.eval,
            self.mixture,
            len(self.val_data),
            sum(parameter.numel() for parameter in self.gpt.parameters()),
            devices=self.fabric.world_size,
            peak_flops=peak_flops_of(device),
            teacher_flops=self.distillation.flops_per_token if self.distillation else 0.0,
        )
        flops = self.plan.tokens * self.plan.flops_per_token
        self.kernels = choose_kernels(
            config, args.speed, device, args.train.z_loss, flops, self.distillation is not None
        )
        self.estimate = ResourceEstimate.of(
            config,
            self.plan,
            args,
            self.precision,
            self.kernels,
            device,
            shards=self.fabric.world_size if self.sharded else 1,
            teacher=self.distillation.memory(args.train.micro_batch_size) if self.distillation else 0,
        )
        self.settings = {
            "initial_checkpoint_dir": str(args.initial_checkpoint_dir),
            "initial_weights_sha256": sha256_file(args.initial_checkpoint_dir / WEIGHTS),
            **training_settings(args.train, args.eval, args.optimizer, args.speed),
            "precision": self.precision,
            "device": device.type,
            "seed": args.seed,
            **({"distill": self.distillation.settings} if self.distillation else {}),
            **({"initial_optimizer_sha256": sha256_file(initial_optimizer)} if initial_optimizer else {}),
            **data_settings(args.data, args.documents, self.mixture),
        }
        self.finished = find_run(args.out_dir, self.settings)
        self.changes = data_changes(
            args.out_dir, self.settings, self.plan.total_steps, self.finished is not None, args.allow_data_change
        )

    def log_plan(self) -> None:
        """Say what the run will do and cost."""
        if self.is_first:
            learns_from = self.distillation.name if self.distillation else None
            machine = f"{machine_name(self.fabric)}, {self.precision}"
            name, memory = self.gpt.config.name, self.estimate.memory
            logger.info(
                plan_text(self.plan, name, self.args.train, self.mixture, self.changes, machine, memory, learns_from)
            )

    def begin(self) -> None:
        """Make the run's folder, or record in it that the data is another from here on.

        Raises:
            UserError: the disk is too small.
        """
        self.estimate.check_disk(self.args.out_dir)
        self.fabric.barrier()
        if self.is_first:
            self.estimate.warn()
            begin_run(self.args.out_dir, self.settings, self.changes)
        self.fabric.barrier()

    def set_up(self) -> Trainer:
        """Move the model to its device, and bring together what trains it."""
        args, first, learns_from = self.args, self.is_first, self.distillation
        state = set_up(
            self.fabric,
            self.gpt,
            args.optimizer,
            args.speed,
            self.precision,
            self.kernels,
            args.train.z_loss,
            learns_from,
        )
        if self.initial_optimizer:
            load_optimizer(self.initial_optimizer, self.gpt, state.optimizer)
        domains = [name for name, size in self.val_data.domains.items() if size.samples]
        return Trainer(
            self.fabric,
            state,
            self.plan,
            args,
            self.train_data,
            run_sampler(self.settings, self.changes),
            self.val_data,
            Saver(self.fabric, state, self.sharded, args.out_dir, args.initial_checkpoint_dir, args.train),
            MetricsLog(args.out_dir, args.logger_name, args.out_dir.name, domains) if first else None,
            learns_from.logits if learns_from else None,
        )

    def train(self, trainer: Trainer, keep_optimizer: bool) -> RunResult:
        """Train to the end, or until somebody stops it, and write what came out."""
        out_dir = self.args.out_dir
        with stop_requests(trainer.doing if self.is_first else None) as stop:
            try:
                validation = trainer.fit(stop)
            except torch.OutOfMemoryError as error:
                raise self.estimate.out_of_memory() from error
            if validation is None:
                return RunResult(self.plan, None, trainer.step, trainer.tokens, stopped=True)
            record = {
                "steps": trainer.step,
                "tokens": trainer.tokens,
                "val_loss": validation.loss,
                "val_stderr": validation.stderr,
                "val_blocks": validation.blocks,
                "val_domains": {name: asdict(held_out) for name, held_out in validation.domains.items()},
                "run": read_manifest(out_dir),
            }
            if keep_optimizer and self.is_first:
                save_optimizer(out_dir / OPTIMIZER, self.gpt, trainer.state.optimizer)
            trainer.saver.save_weights(FINAL, record)
            if self.is_first:
                drop_state(out_dir)
        numbers = (trainer.step, trainer.tokens, validation.loss, validation.stderr)
        return RunResult(self.plan, out_dir / FINAL, *numbers, validation.domains)
