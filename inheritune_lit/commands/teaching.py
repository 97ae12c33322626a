"""``inheritune teach``."""

from pathlib import Path
from typing import Literal


def teach_command(
    teacher: str,
    data: Path,
    out_dir: Path,
    max_seq_length: int,
    documents: Literal["packed", "separate"] = "packed",
    top_k: int = 50,
    temperature: float = 1.0,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 4,
    dry_run: bool = False,
) -> None:
    """Write a teacher's predictions on packed data, for ``inheritune pretrain --distill.teacher_logits``.

    The same command again continues a killed one.

    Args:
        teacher: the teacher: a checkpoint folder, or what --ref of ``inheritune slice`` takes.
        data: packed data from ``inheritune prepare``.
        out_dir: the new folder.
        max_seq_length: tokens a sample, as the student will be trained.
        documents: as the student will be trained.
        top_k: how many of the likeliest tokens to keep at each position; 4 bytes each, so 50 take 200 bytes a token.
        temperature: what the student's --distill.temperature will be.
        dtype: of log-probabilities.
        batch_size: samples a forward pass.
        dry_run: print the plan and stop.
    """
    given = dict(locals())
    from inheritune_lit.train.args import TeachArgs
    from inheritune_lit.train.teach import teach

    teach(TeachArgs(**given))
