"""``inheritune pretrain``: continue the training of a checkpoint."""

import hashlib
import json
import logging
from dataclasses import asdict, replace
from typing import Any

import torch

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.folder import FINAL, MODEL_CONFIG, WEIGHTS
from inheritune_lit.data.packed import PackedDataset, check_fits_model
from inheritune_lit.data.sampler import make_mixture
from inheritune_lit.io.folders import check_space, explain_full_disk, own_folder
from inheritune_lit.io.manifest import read_manifest, sha256_file
from inheritune_lit.io.reading import read_yaml
from inheritune_lit.model.devices import device_count, on_first_rank, one_fate
from inheritune_lit.model.load import load_model
from inheritune_lit.train import run_folder, setup
from inheritune_lit.train.args import PretrainArgs
from inheritune_lit.train.distillation import prepare_distillation
from inheritune_lit.train.loop import Trainer
from inheritune_lit.train.metrics import MetricsLog
from inheritune_lit.train.plan import ResourceEstimate, block_size_of, plan_run
from inheritune_lit.train.run_folder import RunResult
from inheritune_lit.train.saving import AVERAGED, Saver, drop_state, is_whole
from inheritune_lit.train.trainable import TrainedModel

logger = logging.getLogger(__name__)


def pretrain(args: PretrainArgs) -> RunResult:
    """Train a litgpt checkpoint on packed data; the same call continues a run that was stopped or killed.

    The run folder holds ``metrics.csv``, ``state.pth`` while the run lasts, and at its end ``final/``, a litgpt
    checkpoint.

    Bad input, a run with other settings in ``out_dir``, or a bad step is a ``UserError``. Ctrl-C saves first; so does
    SIGTERM, which returns a result without ``final``.
    """
    run = _Run(args)
    if args.dry_run or is_whole(args.out_dir):  # perhaps where nothing can be written
        run.find()
        if args.dry_run:
            return RunResult(run.plan)
        if run.finished:
            return run.finished
    run_folder.check_run_folder(args.out_dir, run.settings)  # before anything is made in a folder of something else
    budget = args.speed.activation_budget
    switches = setup.training_switches(run.fabric.device, run.precision, args.deterministic, budget)
    with on_first_rank(run.fabric, own_folder(args.out_dir)), one_fate(run.fabric), switches:
        try:
            return run.train()
        except torch.OutOfMemoryError as error:
            raise run.estimate.out_of_memory() from error


class _Run:
    """A run. Making one checks all that can be checked before anything is spent."""

    def __init__(self, args: PretrainArgs) -> None:
        args = replace(args, eval=args.eval.continued(args.out_dir))
        self.args, train, start = args, args.train, args.initial_checkpoint_dir
        read_manifest(start)  # a damaged one is told before the training, not after it
        config = load_config(start)
        check_fits_model(args.data, start, config.padded_vocab_size)
        block_size = block_size_of(train, config)
        self.train_data, self.val_data = (
            PackedDataset(args.data, split, block_size, args.documents) for split in ("train", "val")
        )
        self.mixture = make_mixture(self.train_data.domains, args.mixture.weights)
        # Before processes are started, or each of them would say what is wrong.
        train.accumulation(device_count(args.devices, args.num_nodes) * args.num_nodes)
        TrainedModel(config, False, train.trainable).count(trained=True)
        self.precision = precision = args.precision or setup.default_precision()
        self.distillation = teacher = prepare_distillation(args, self.train_data, config, precision)
        self.fabric = setup.build_fabric(args.devices, args.num_nodes, args.strategy, precision)
        self.is_first, world, device = self.fabric.global_rank == 0, self.fabric.world_size, self.fabric.device
        setup.check_machine(args, device)
        self.gpt = load_model(start, dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32)
        self.model = model = TrainedModel.of(self.gpt, train.trainable)
        numbers = (len(self.val_data), world, setup.peak_flops_of(device))
        teacher_flops = teacher.flops_per_token if teacher else 0.0
        self.plan = plan = plan_run(model, train, args.eval, self.mixture, *numbers, teacher_flops)
        flops = plan.tokens * plan.flops_per_token
        self.kernels = setup.choose_kernels(config, args.speed, device, train.z_loss, flops, teacher is not None)
        # Hashed as it is read, however it is written down.
        shape = read_yaml(start / MODEL_CONFIG, "a model configuration", "make the checkpoint again")
        held = teacher.memory if teacher else 0
        self.estimate = ResourceEstimate(model, plan, args, precision, self.kernels, device, world, held)
        self.settings = {
            "initial_checkpoint_dir": str(start),
            "initial_weights_sha256": sha256_file(start / WEIGHTS),
            "initial_config": hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest(),
            "total_steps": plan.total_steps,
            **run_folder.training_settings(train, args.eval, args.optimizer, args.speed),
            "precision": precision,
            "device": device.type,
            "seed": args.seed,
            **({"distill": teacher.settings} if teacher else {}),
            **run_folder.data_settings(args.data, args.documents, self.mixture),
        }
        self.finished: RunResult | None = None
        self.changes: list[dict[str, Any]] = []

    def find(self) -> None:
        """Look for what the folder holds of the run, and say what the run does and costs."""
        self.finished, self.changes = run_folder.find_run(self.args.out_dir, self.settings, self.args.allow_data_change)
        if self.is_first:
            logger.info(self._plan_text())

    def _plan_text(self) -> str:
        plan, train, mixture = self.plan, self.args.train, self.mixture
        samples, positions = plan.total_steps * train.global_batch_size, plan.total_steps * plan.tokens_per_step
        lines = [f"train {self.gpt.config.name}: {plan.parameters:,} parameters, {self.estimate.memory}"]
        if train.trainable:
            lines.append(str(self.model))
        if self.distillation:
            lines.append(f"learns from {self.distillation.name}")
        steps = f"{plan.total_steps:,} steps of {plan.tokens_per_step:,} tokens = {positions:,} tokens"
        if plan.tokens < positions:
            steps += f", {1 - plan.tokens / positions:.1%} of them padding, leaves about {plan.tokens:,} tokens"
        if plan.budget != plan.tokens:
            steps += f" ({plan.budget:,} asked for: whole steps only)"
        if mixture.draws is None:
            steps += f", {samples / mixture.samples:.2f} epochs of {mixture.samples:,} samples"
        width = max(map(len, mixture.domains))
        lines += [
            steps,
            *(
                f"  {domain:<{width}} {float(mixture.share(domain)):7.2%} of the samples, "
                f"{mixture.epochs(domain, samples):.2f} epochs of {size.samples:,}"
                for domain, size in mixture.domains.items()
                if mixture.draws
            ),
            f"{plan.accumulation} micro-batches of {train.micro_batch_size} x {plan.block_size} per step, "
            f"{plan.val_blocks:,} samples per validation",
            f"{plan.flops_text()}, on {setup.machine_name(self.fabric)}, {self.precision}",
        ]
        if self.train_data.left_over:
            lines.append(self.train_data.left_over)
        if self.changes:
            sample, different = self.changes[-1]["sample"], "; ".join(self.changes[-1]["different"])
            lines.append(f"data changed at sample {sample:,}, before: {different}")
        return "\n      ".join(lines)

    def train(self) -> RunResult:
        """Train the run, whose folder no other process writes."""
        args, plan, fabric, is_first, out_dir = self.args, self.plan, self.fabric, self.is_first, self.args.out_dir
        self.find()  # what is there now
        if self.finished:
            if is_first:
                drop_state(out_dir)  # still there when the run was killed right after its end
            return self.finished
        needed = sum(self.estimate.memory.kept_on_disk(args.train))
        check_space(out_dir, needed, "the state and the checkpoints", "a smaller --train.keep_last")
        fabric.barrier()
        if is_first:
            self.estimate.warn()
            with explain_full_disk(out_dir):
                run_folder.begin_run(out_dir, self.settings, self.changes, plan.flops_per_token)
        fabric.barrier()
        teacher = self.distillation
        state = setup.set_up(fabric, self.gpt, args, plan.block_size, self.precision, self.kernels, teacher)
        domains = [name for name, size in self.val_data.domains.items() if size.samples]
        log = MetricsLog(out_dir, args.logger_name, domains) if is_first else None
        sampler, saver = run_folder.run_sampler(self.settings, self.changes), Saver(fabric, state, args)
        data = (self.train_data, sampler, self.val_data)
        trainer = Trainer(fabric, state, plan, args, *data, saver, log, teacher.logits if teacher else None)
        with setup.stop_requests((lambda: trainer.doing) if is_first else None) as stop:
            validation = trainer.fit(stop)
            skipped = trainer.guard.skipped
            if validation is None:
                return RunResult(plan, None, trainer.step, trainer.tokens, stopped=True, skipped=skipped)
            held_out = {f"val_{name}": value for name, value in asdict(validation).items()}
            record = {"steps": trainer.step, "tokens": trainer.tokens, "run": read_manifest(out_dir)}
            if args.train.average_last > 1:
                earlier = saver.kept(trainer.step)[1 - args.train.average_last :]
                averaged = [path.name for path in earlier] + [FINAL]
                saver.save_weights(AVERAGED, record | {"averaged": averaged}, earlier)
            saver.save_weights(FINAL, record | held_out)
            if is_first:
                drop_state(out_dir)
        numbers = (trainer.step, trainer.tokens, validation.loss, validation.stderr)
        return RunResult(plan, out_dir / FINAL, *numbers, validation.domains, skipped=skipped)
