"""Parquet files of a corpus, a few rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune_lit.errors import UserError, first_line
from inheritune_lit.io.reading import open_regular

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_BATCH_ROWS, _BATCH_BYTES = 16, 1 << 26
_MAX_EXPANSION, _HARMLESS_BYTES = 200, 1 << 28


@contextmanager
def open_parquet(path: Path) -> Iterator["ParquetFile"]:
    """Opens a parquet file; whatever cannot be read in it, also inside the block, is a ``UserError``."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        open_regular(path).close()
        with ParquetFile(path, buffer_size=1 << 20) as file:  # else a whole column of a row group is read at once
            yield file
    except (ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        raise UserError(f"{path} cannot be read as parquet ({first_line(error)}); fetch it again") from error


def row_group_bytes(file: "ParquetFile") -> list[int]:
    """Returns the stored bytes of each row group."""
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    return [sum(group.column(n).total_compressed_size for n in range(group.num_columns)) for group in groups]


def group_rows(
    file: "ParquetFile", path: Path, group: int, columns: list[str] | None
) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """Yields the rows of a row group, or why one of them is not text: parquet does not force strings to be UTF-8.

    A row group that expands to far more than it stores is a ``UserError``.
    """
    record = file.metadata.row_group(group)
    chunks = [record.column(number) for number in range(record.num_columns)]
    expanded = sum(chunk.total_uncompressed_size for chunk in chunks)
    if expanded > max(_HARMLESS_BYTES, _MAX_EXPANSION * sum(chunk.total_compressed_size for chunk in chunks)):
        raise UserError(f"row group {group} of {path} expands to {expanded:,} bytes; write it with smaller row groups")
    fitting = _BATCH_BYTES * record.num_rows // max(1, expanded)
    for batch in file.iter_batches(max(1, min(_BATCH_ROWS, fitting)), row_groups=[group], columns=columns):
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error


def text_column(file: "ParquetFile", path: Path, name: str) -> str:
    """Returns the name of a top-level or nested column, checked."""
    import pyarrow as pa

    schema = file.schema_arrow
    if name in schema.names:
        kind = schema.field(name).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(
            is_text(values) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        ):
            raise UserError(f"column {name!r} of {path} holds {kind}, not text; name another with --text_field")
    elif name not in {file.schema.column(number).path for number in range(len(file.schema))}:
        have = ", ".join(schema.names)
        raise UserError(f"{path} has no column {name!r}, only {have}; name the one to use with --text_field")
    return name
