"""Arguments of ``inheritune export``. Free of torch, so that help and errors are instant."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import CommandArgs


@dataclass(frozen=True)
class ExportArgs(CommandArgs):
    """Write a checkpoint as a Hugging Face folder."""

    checkpoint_dir: Path
    """Litgpt checkpoint, such as a slice or the ``final/`` of a run."""
    out_dir: Path
    """The new folder."""
    _: KW_ONLY
    max_shard_bytes: int = 5_000_000_000
    """Largest safetensors file in bytes; a larger tensor has a file of its own."""
    licence: str | None = None
    """Licence for the model card, such as apache-2.0; the named reference's when not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_shard_bytes < 1:
            raise UserError(f"--max_shard_bytes {self.max_shard_bytes} is below 1; give bytes, such as 5000000000")
