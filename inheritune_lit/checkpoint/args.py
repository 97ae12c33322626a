"""Arguments of ``inheritune export``. Free of torch, so that help and errors are instant."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from inheritune_lit.io.arguments import CommandArgs, check_numbers


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
        check_numbers(self, "max_shard_bytes", least=1)
