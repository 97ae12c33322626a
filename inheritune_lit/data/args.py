"""What decides, beside the sources and the tokenizer, what packed data holds."""

from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import CommandArgs


@dataclass(frozen=True)
class PrepareOptions:
    """Options of ``inheritune prepare`` that are part of its result.

    Args:
        val_fraction: share of documents for validation, in (0, 1); which ones is fixed by their text.
        end_of_document: write the EOS token after each document.
        text_field: name of the text in a row, with dots for nested fields.
        txt_documents: whether a document is a ``.txt`` file or one of its lines.
        domain: one domain's name for all files, instead of their folders' or their own.
        domain_field: field of a row that names its domain, with dots for nested fields.
        parse_special_tokens: give a text that spells a special token that token.
        drop_duplicates: keep only the first of the documents with the same token ids.
        max_document_bytes: longer rows are left out and counted.
        max_tokens: tokens of a random subset of the documents; all when None.
        mixture: parts of that subset by domain, or by the beginning of domains' names before an underscore; in
            proportion to the corpus when None.
        seed: seed of the subset.
    """

    val_fraction: float = 0.01
    end_of_document: bool = True
    text_field: str = "text"
    txt_documents: Literal["file", "line"] = "file"
    domain: str | None = None
    domain_field: str | None = None
    parse_special_tokens: bool = False
    drop_duplicates: bool = False
    max_document_bytes: int = 1 << 27
    max_tokens: int | None = None
    mixture: dict[str, float] | None = None
    seed: int = 1337

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"--val_fraction is {self.val_fraction}; give a number between 0 and 1, such as 0.01")
        if self.max_document_bytes < 1:
            raise UserError(f"--max_document_bytes is {self.max_document_bytes}; give a positive number")
        if self.domain is not None and self.domain_field is not None:
            raise UserError("--domain and --domain_field both name the domain; give one of them")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"--max_tokens is {self.max_tokens}; give a positive number")
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"--seed is {self.seed}; give a number from 0 to 2^64 - 1")
        if self.mixture is not None:
            self._check_mixture(self.mixture)

    def _check_mixture(self, mixture: dict[str, float]) -> None:
        if self.max_tokens is None:
            raise UserError("--mixture divides the tokens of a subset; give --max_tokens too")
        if self.domain_field is not None:
            raise UserError("--mixture needs domains known before the rows are read; leave out --domain_field")
        wrong = {name: part for name, part in mixture.items() if not part >= 0}
        if wrong or not sum(mixture.values()) > 0:
            raise UserError(f"--mixture {mixture} needs parts that are not negative and not all zero")

    def record(self) -> dict[str, Any]:
        """The options for the manifest; what has no effect is left out."""
        record = asdict(self)
        if self.max_tokens is None:
            for name in ("max_tokens", "mixture", "seed"):
                del record[name]
        return record


def differing_option(recorded: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first option whose value differs, as ``name was 1, is 2``; None where all agree."""
    for name in sorted({*recorded, *now}):
        if recorded.get(name) != now.get(name):
            return f"--{name} was {recorded.get(name)}, now it is {now.get(name)}"
    return None


@dataclass(frozen=True)
class PrepareArgs(CommandArgs):
    """Turn text into packed tokens. The same command again continues a stopped run, and adds files that are new."""

    source: str | None = None
    """Folder or file of .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt, a domain each folder or file name; or a
    data set of the hub, hf://datasets/org/name[@revision][/folder]."""
    tokenizer_dir: Path | None = None
    """Folder with the reference's tokenizer, such as a slice."""
    out_dir: Path | None = None
    """Folder of the packed data."""
    _: KW_ONLY
    val_fraction: float = 0.01
    """Share of the documents kept for validation, chosen by their hash."""
    end_of_document: bool = True
    """Write the tokenizer's EOS token after each document."""
    text_field: str = "text"
    """Name of the text in a row; dots lead into nested fields."""
    txt_documents: Literal["file", "line"] = "file"
    """Whether a document is a .txt file or a line of it."""
    domain: str | None = None
    """One domain's name for all files."""
    domain_field: str | None = None
    """Field of a row that names its domain, such as meta.redpajama_set_name."""
    parse_special_tokens: bool = False
    """Give a text that spells a special token, such as <|endoftext|>, that token."""
    drop_duplicates: bool = False
    """Keep one of the documents with the same token ids; 40 bytes of memory a document."""
    max_document_bytes: int = 1 << 27
    """Longer rows are left out and counted; so is text over 8 MB that cannot be encoded in parts: all such with a
    tokenizer.json, with a tokenizer.model only what has no spaces."""
    max_tokens: int | None = None
    """Take a random subset of the documents with this many tokens; all when not given."""
    mixture: dict[str, float] | None = None
    """Parts of the subset by domain, such as '{"cc": 67, "c4": 15}', where cc stands for cc_2019-30 too; in
    proportion to the corpus when not given."""
    seed: int = 1337
    """Seed of the subset."""
    num_workers: int | None = None
    """Processes; the cores of this machine when not given."""
    node_rank: int | None = None
    """Which share of the work to do, counted from 0; as srun or torchrun say when not given."""
    num_nodes: int | None = None
    """Number of shares. The same command with --num_nodes 1 then checks and joins them."""
    verify: Path | None = None
    """Check this packed folder against its manifest and do nothing else."""
    dry_run: bool = False
    """Print the plan and stop."""
