"""``inheritune pretrain``: continue the training of a checkpoint."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric

from inheritune_lit.checkpoint.folder import WEIGHTS
from inheritune_lit.checkpoint.manifest import sha256_file
from inheritune_lit.data.fits import check_fits
from inheritune_lit.data.mixture import make_mixture
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.model.load import load_config, load_model
from inheritune_lit.train.args import EvalArgs, MixtureArgs, OptimizerArgs, TrainArgs
from inheritune_lit.train.data_change import data_changes, data_settings, run_sampler
from inheritune_lit.train.loop import Trainer
from inheritune_lit.train.optim import build_optimizer
from inheritune_lit.train.plan import block_size_of, plan_run
from inheritune_lit.train.plan_text import plan_text
from inheritune_lit.train.run_folder import RunResult, begin_run, find_run, write_final
from inheritune_lit.train.signals import stop_requests
from inheritune_lit.train.state import drop_state

# These say how often to look, not what to compute: they may change when a run is continued.
_FREE_SETTINGS = ("log_interval", "save_interval")


def pretrain(
    initial_checkpoint_dir: Path,
    data: Path,
    out_dir: Path,
    *,
    train: TrainArgs,
    eval: EvalArgs,
    optimizer: OptimizerArgs,
    mixture: MixtureArgs = MixtureArgs(),
    documents: Literal["packed", "separate"] = "packed",
    allow_data_change: bool = False,
    precision: str | None = None,
    seed: int = 1337,
    logger_name: str = "csv",
    dry_run: bool = False,
) -> RunResult | None:
    """Train a litgpt checkpoint on packed data; the same call continues a run that was stopped or killed.

    The run folder holds ``metrics.csv``, ``state.pth`` while the run lasts, and at its end ``final/``, a litgpt
    checkpoint. Parameters are fp32 throughout; ``bf16-mixed`` computes in bf16.

    Args:
        initial_checkpoint_dir: litgpt checkpoint to start from.
        data: packed data made with that checkpoint's tokenizer.
        out_dir: run folder.
        train, eval, optimizer, mixture: settings.
        documents: "packed" cuts text into samples wherever they end; "separate" keeps each sample within one document.
        allow_data_change: continue a run although its data, mixture or ``documents`` is another than before.
        precision: "32-true" or "bf16-mixed"; by default the first on CPU, the second on a GPU.
        seed: seed of the data order.
        logger_name: "csv", or "tensorboard" for events beside the CSV file.
        dry_run: print the plan and stop.

    Returns:
        What came out; None for a dry run.

    Raises:
        UserError: bad input, a run with other settings in ``out_dir``, or a loss that is not finite.
        KeyboardInterrupt: after saving, when stopped with Ctrl-C. SIGTERM saves and returns a result without ``final``.
    """
    config = load_config(initial_checkpoint_dir)
    check_fits(data, initial_checkpoint_dir)
    block_size = block_size_of(train, config)
    train_data, val_data = (PackedDataset(data, split, block_size, documents) for split in ("train", "val"))
    domains = make_mixture(train_data.domains, mixture.weights)
    if not 0 <= seed < 2**64:
        raise UserError(f"--seed is {seed}; give a number from 0 to 2**64 - 1")
    model = load_model(initial_checkpoint_dir, dtype=torch.float32)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    plan = plan_run(config, train, eval, optimizer, domains, len(val_data), parameters)
    fabric = Fabric(accelerator="auto", devices=1, precision=precision or default_precision())
    settings = _settings(initial_checkpoint_dir, train, eval, optimizer, fabric, seed)
    settings |= data_settings(data, documents, domains)
    finished = find_run(out_dir, settings)
    changes = data_changes(out_dir, settings, plan.total_steps, finished is not None, allow_data_change)
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else "CPU"
    text = plan_text(plan, config.name, train, domains, changes, f"{device}, {fabric._precision.precision}")
    print(text, file=sys.stderr, flush=True)
    if dry_run:
        return None
    if finished:
        drop_state(out_dir)  # still there when the run was killed right after its end
        print(f"{out_dir} is finished: {finished.steps} steps, held-out loss {finished.val_loss:.4f}")
        return finished
    begin_run(out_dir, settings, changes)
    model.max_seq_length = block_size
    trained = fabric.setup(model)
    adamw = fabric.setup_optimizers(build_optimizer(model, optimizer))
    sampler = run_sampler(settings, changes)
    trainer = Trainer(fabric, trained, adamw, plan, train, eval, optimizer, train_data, sampler, val_data, out_dir)
    with stop_requests() as stop:
        steps, validation = trainer.fit(stop, tensorboard=logger_name == "tensorboard")
        if validation is None:
            return RunResult(None, steps, trainer.tokens, None, None)
        result = write_final(out_dir, initial_checkpoint_dir, model, steps, trainer.tokens, validation)
        drop_state(out_dir)
    print(f"held-out loss {validation.loss:.4f} ± {validation.stderr:.4f}; wrote {result.final}")
    if len(validation.domains) > 1:
        for name, held_out in validation.domains.items():
            print(f"  {name}: {held_out.loss:.4f} ± {held_out.stderr:.4f} over {held_out.tokens:,} tokens")
    return result


def default_precision() -> str:
    """bf16-mixed where a GPU computes it natively, 32-true elsewhere."""
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def _settings(
    initial_checkpoint_dir: Path,
    train: TrainArgs,
    eval: EvalArgs,
    optimizer: OptimizerArgs,
    fabric: Fabric,
    seed: int,
) -> dict[str, Any]:
    """All that changes the outcome, data aside: a run is continued only where every value is the same."""
    return {
        "initial_checkpoint_dir": str(initial_checkpoint_dir),
        "initial_weights_sha256": sha256_file(initial_checkpoint_dir / WEIGHTS),
        "train": {name: value for name, value in asdict(train).items() if name not in _FREE_SETTINGS},
        "eval": asdict(eval),
        "optimizer": asdict(optimizer),
        "precision": str(fabric._precision.precision),
        "device": fabric.device.type,
        "seed": seed,
    }
