"""A small ``inheritune pretrain`` as a command line."""

from pathlib import Path


def pretrain_command(checkpoint: Path, packed: Path, out_dir: Path, **changes: object) -> list[str]:
    """Arguments of a run of 30 steps; ``train__max_steps=7`` changes one, None leaves it out."""
    flags: dict[str, object] = {
        "initial_checkpoint_dir": checkpoint,
        "data": packed,
        "out_dir": out_dir,
        "train.max_steps": 30,
        "train.global_batch_size": 4,
        "train.micro_batch_size": 2,
        "train.max_seq_length": 16,
        "train.lr_warmup_steps": 5,
        "train.min_lr": 1e-4,
        "train.log_interval": 5,
        "train.save_interval": 10,
        "eval.interval": 10,
        "eval.max_iters": 4,
        "optimizer.lr": 3e-3,
        "precision": "32-true",
    }
    flags |= {name.replace("__", "."): value for name, value in changes.items()}
    return [
        "pretrain",
        *(part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))),
    ]
