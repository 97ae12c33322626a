"""Corpora on disk: which files belong to which domain, and the documents in them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inheritune_lit.errors import UserError

_MAX_BROKEN_SHARE = 0.01


@dataclass
class ReadReport:
    """What was met while reading one domain.

    Attributes:
        rows: lines that are not blank.
        bytes_read: bytes of the lines read so far.
        empty: documents whose text is empty, only white space, or gives no token; they are left out.
        broken: lines that are no UTF-8, no JSON object, or lack a string ``text``; they are left out.
        first_broken: file, line number and fault of the first of them.
    """

    rows: int = 0
    bytes_read: int = 0
    empty: int = 0
    broken: int = 0
    first_broken: str = ""


def find_domains(source: Path) -> dict[str, Path]:
    """Domains of a corpus in RedPajama-Data-1T-Sample's layout: ``<domain>_sample.jsonl`` or ``<domain>.jsonl``.

    Args:
        source: a folder of such files, or one of them.

    Returns:
        File of each domain, by name.

    Raises:
        UserError: there is no such file, or two share a domain's name or have none.
    """
    if source.is_file():
        files = [source]
    elif source.is_dir():
        files = sorted(source.glob("*.jsonl"))
    else:
        raise UserError(f"no corpus at {source}; give a folder of <domain>.jsonl files or one such file")
    if not files:
        raise UserError(f"no .jsonl file in {source}; give a folder of <domain>.jsonl files, one row a document")
    domains: dict[str, Path] = {}
    for file in files:
        name = file.name.removesuffix(".jsonl").removesuffix("_sample")
        if not name:
            raise UserError(f"{file} names no domain; rename it to <domain>.jsonl")
        if name in domains:
            raise UserError(f"{file} and {domains[name]} are both domain {name!r}; rename or remove one")
        domains[name] = file
    return domains


def read_documents(file: Path, report: ReadReport) -> Iterator[str]:
    """Texts of a jsonl file, one at a time; ``report`` is brought up to date on the way.

    Raises:
        UserError: the file cannot be read, or more than 1% of its lines are broken.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                report.bytes_read += len(line)
                if not line.strip():
                    continue
                report.rows += 1
                text = _text_of(line, f"{file}:{number}", report)
                if text is None:
                    continue
                if text.strip():
                    yield text
                else:
                    report.empty += 1
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if report.broken > _MAX_BROKEN_SHARE * report.rows:
        raise UserError(
            f"{report.broken} of {report.rows} rows of {file} are broken, first {report.first_broken}; "
            f"mend the file (up to {_MAX_BROKEN_SHARE:.0%} are tolerated)"
        )


def _text_of(line: bytes, place: str, report: ReadReport) -> str | None:
    """The text of one row, or None after noting why there is none."""
    try:
        row = json.loads(line.decode("utf-8"))
        text = row.get("text") if isinstance(row, dict) else None
        fault = None if isinstance(text, str) else 'no string field "text"'
        # JSON may spell half a surrogate pair, which no UTF-8 text and no tokenizer can hold.
        if fault is None:
            text.encode("utf-8")
    except UnicodeError as error:
        fault = f"no UTF-8 ({error.reason})"
    except (ValueError, RecursionError) as error:  # the latter for brackets nested too deeply
        fault = f"no JSON ({error})"
    if fault is None:
        return text
    report.broken += 1
    report.first_broken = report.first_broken or f"{place}: {fault}"
    return None
