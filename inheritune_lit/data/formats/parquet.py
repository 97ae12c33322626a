"""Documents in the rows of parquet files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.data.formats.report import BrokenRow, ReadReport, string_field
from inheritune_lit.errors import UserError, first_line

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

_BATCH_ROWS = 256


def read_parquet(
    path: Path, start: int, stop: int | None, args: ReadingArgs, report: ReadReport
) -> Iterator[tuple[str, str | None]]:
    """Texts and domains (None where the rows don't name them) of row groups ``start`` to ``stop``.

    Args:
        path: the file.
        start: first row group.
        stop: row group after the last; None for all.
        args: names of fields, and the longest row.
        report: brought up to date on the way.

    Raises:
        UserError: the file cannot be read, or lacks a column.
    """
    fields = [name for name in (args.text_field, args.domain_field) if name]
    with _open(path) as file:
        columns = [_column(file, path, name) for name in fields]
        sizes = row_group_bytes(file)
        number = sum(file.metadata.row_group(group).num_rows for group in range(start))
        for group in range(start, len(sizes) if stop is None else stop):
            rows_in_group, before, first = file.metadata.row_group(group).num_rows, report.bytes_read, number
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                for row in _rows(batch):
                    number += 1
                    report.rows += 1
                    report.bytes_read = before + sizes[group] * (number - first) // rows_in_group
                    try:
                        if isinstance(row, UnicodeError):
                            raise BrokenRow(f"no UTF-8 ({row.reason})")
                        text = string_field(row, args.text_field)
                        domain = string_field(row, args.domain_field) if args.domain_field else None
                    except BrokenRow as fault:
                        report.note_broken(number, 0, str(fault))
                        continue
                    if len(text) > args.max_document_bytes:
                        report.too_long += 1
                        continue
                    yield text, domain


def parquet_groups(path: Path) -> list[int]:
    """Stored bytes of each row group of a file.

    Raises:
        UserError: the file cannot be read.
    """
    with _open(path) as file:
        return row_group_bytes(file)


def row_group_bytes(file: "ParquetFile") -> list[int]:
    """Stored bytes of each row group."""
    return [
        sum(group.column(column).total_compressed_size for column in range(group.num_columns))
        for group in map(file.metadata.row_group, range(file.metadata.num_row_groups))
    ]


@contextmanager
def _open(path: Path) -> Iterator["ParquetFile"]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        reason = first_line(error)
        raise UserError(f"{path} cannot be read as parquet ({reason}); fetch it again") from error


def _rows(batch: "RecordBatch") -> Iterator[dict | UnicodeDecodeError]:
    """The rows of a batch, or why one of them is no text: parquet does not force strings to be UTF-8."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # find out which
    for number in range(batch.num_rows):
        try:
            yield batch.slice(number, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield error


def _column(file: "ParquetFile", path: Path, name: str) -> str:
    """A top-level or nested column's name, checked."""
    import pyarrow as pa

    columns = {column.path: column for column in map(file.schema.column, range(len(file.schema)))}
    schema = file.schema_arrow
    first = name.split(".")[0]
    if name not in columns and name not in schema.names:
        have = ", ".join(schema.names)
        raise UserError(f"{path} has no column {name!r}, only {have}; name the one to use with --text_field")
    kind = schema.field(first).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if name in schema.names and not any(test(values) for test in (pa.types.is_string, pa.types.is_large_string)):
        raise UserError(f"column {name!r} of {path} holds {kind}, no text; name another with --text_field")
    return name
