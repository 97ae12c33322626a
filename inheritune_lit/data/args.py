"""What decides, beside the sources and the tokenizer, what packed data holds."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from inheritune_lit.errors import UserError


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
