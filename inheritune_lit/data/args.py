"""Arguments of ``inheritune prepare``."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import MOST_SEED, CommandArgs, check_numbers


@dataclass(frozen=True)
class ReadingArgs(CommandArgs):
    """How source files are read as documents."""

    _: KW_ONLY
    text_field: str = "text"
    """Name of the text in a row; dots lead into nested fields."""
    txt_documents: Literal["file", "line"] = "file"
    """Whether a document is a .txt file or a line of it."""
    domain: str | None = None
    """One domain's name for all files."""
    domain_field: str | None = None
    """Field of a row that names its domain, such as meta.redpajama_set_name."""
    max_document_bytes: int = 1 << 27
    """Longer rows are left out and counted; so is text over 8 MB that cannot be encoded in parts: all such with a
    tokenizer.json, with a tokenizer.model only what has no spaces."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "max_document_bytes", least=1)
        if self.domain is not None and self.domain_field is not None:
            raise UserError("--domain and --domain_field both name the domain; give one of them")


@dataclass(frozen=True)
class PrepareArgs(ReadingArgs):
    """Turn text into packed tokens. The same command again continues a stopped run, and adds files that are new."""

    source: str | None = None
    """Folder or file of .jsonl, .json, .txt (also .gz, .zst, .xz, .bz2) or .parquet, one domain per folder or file
    name; or a data set of the hub, hf://datasets/org/name[@revision][/folder]."""
    tokenizer_dir: Path | None = None
    """Folder with the reference's tokenizer, such as a slice."""
    out_dir: Path | None = None
    """Folder of the packed data."""
    _: KW_ONLY
    val_fraction: float = 0.01
    """Share of the documents kept for validation, chosen by their hash."""
    end_of_document: bool = True
    """Write the tokenizer's EOS token after each document."""
    parse_special_tokens: bool = False
    """Give a text that spells a special token, such as <|endoftext|>, that token."""
    drop_duplicates: bool = False
    """Keep one of the documents with the same token ids; 40 bytes of memory per document."""
    max_tokens: int | None = None
    """Take a random subset of the documents with this many tokens; all when not given."""
    mixture: dict[str, float] | None = None
    """Parts of the subset by domain, such as '{"cc": 67, "c4": 15}', where cc stands for cc_2019-30 too; in
    proportion to the corpus when not given."""
    seed: int = 1337
    """Seed of the subset."""
    num_workers: int | None = None
    """Processes; the cores of this machine when not given."""
    cluster: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers do the work; they need to see the same
    files. Needs inheritune-lit[cluster]."""
    verify: Path | None = None
    """Check this packed folder against its manifest and do nothing else."""
    dry_run: bool = False
    """Print the plan and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("source", "tokenizer_dir", "out_dir") if self.verify is None else ():
            if getattr(self, name) is None:
                raise UserError(f"--{name} is required; see `inheritune prepare --help`")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"--val_fraction is {self.val_fraction}; give a number between 0 and 1, such as 0.01")
        check_numbers(self, "seed", least=0, most=MOST_SEED)
        check_numbers(self, "max_tokens", "num_workers", least=1)
        if self.num_workers is not None and self.cluster is not None:
            raise UserError("--num_workers counts processes of this machine, --cluster has its own; give one of them")
        if self.mixture is None:
            return
        if self.max_tokens is None:
            raise UserError("--mixture divides the tokens of a subset; give --max_tokens too")
        if self.domain_field is not None:
            raise UserError("--mixture needs domains known before the rows are read; leave out --domain_field")
        if not all(part >= 0 for part in self.mixture.values()) or not sum(self.mixture.values()) > 0:
            raise UserError(f"--mixture {self.mixture} needs parts that are not negative and not all zero")

    def content_settings(self) -> dict[str, Any]:
        """Returns what decides, beside the sources and the tokenizer, what the packed data holds, for its manifest."""
        names = "val_fraction end_of_document text_field txt_documents domain domain_field parse_special_tokens "
        names += "drop_duplicates max_document_bytes" + (" max_tokens mixture seed" if self.max_tokens else "")
        return {name: getattr(self, name) for name in names.split()}
