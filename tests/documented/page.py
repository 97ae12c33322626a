"""Commands of the documents, made small enough to run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALLER = {  # what is added to the documented commands so that they end
    "prepare": "--val_fraction 0.1 --num_workers 1",
    "pretrain": "--train.max_seq_length 16 --train.global_batch_size 64 --train.micro_batch_size 16 --train.epochs 1 "
    "--train.lr_warmup_steps 1 --eval.max_iters 1 --precision 32-true",
    "eval": "--data_dir rows --limit 4",
}


def bash_lines(text: str) -> list[str]:
    """Lines of code in ```bash blocks, continued lines joined and comments cut off."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition(" # ")[0] for line in lines if line and not line.startswith("#")]
