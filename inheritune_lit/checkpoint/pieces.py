"""A tensor as parts of other tensors: the one vocabulary in which key tables, slices and exports are written."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Piece:
    """Rows of a stored tensor, with every column or the first few.

    Attributes:
        name: the stored tensor.
        start, stop: rows, counted after transposing.
        columns: number of leading columns kept; None keeps all.
        transpose: the stored tensor is (columns, rows), as in GPT-2's Conv1D.
        stack: the stored tensor is this many matrices; rows are counted through them.
    """

    name: str
    start: int
    stop: int
    columns: int | None = None
    transpose: bool = False
    stack: int | None = None

    @property
    def rows(self) -> int:
        return self.stop - self.start


def select_rows(pieces: list[Piece], ranges: list[tuple[int, int]]) -> list[Piece]:
    """Row ranges of the tensor that ``pieces`` make when stacked, as pieces."""
    selected = []
    for start, stop in ranges:
        position = 0
        for piece in pieces:
            low, high = max(start, position), min(stop, position + piece.rows)
            if low < high:
                shift = piece.start - position
                selected.append(replace(piece, start=low + shift, stop=high + shift))
            position += piece.rows
    return selected


def select_columns(pieces: list[Piece], columns: int) -> list[Piece]:
    """The first ``columns`` columns of every piece."""
    return [replace(piece, columns=columns) for piece in pieces]


def merge(pieces: list[Piece]) -> list[Piece]:
    """Join neighbours that continue each other, so that a plain copy is one piece."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last and piece.start == last.stop and replace(piece, start=last.start) == replace(last, stop=piece.stop):
            merged[-1] = replace(last, stop=piece.stop)
        else:
            merged.append(piece)
    return merged


def read_piece(stored: torch.Tensor, piece: Piece, chunk_bytes: int = CHUNK_BYTES) -> Iterator[torch.Tensor]:
    """The piece's values as contiguous tensors of at most about ``chunk_bytes`` bytes, top to bottom."""
    view = stored.mT if piece.transpose else stored.flatten(0, 1) if piece.stack else stored
    view = view[piece.start : piece.stop]
    if piece.columns is not None:
        view = view[:, : piece.columns]
    row_bytes = max(1, view[:1].numel() * view.element_size())
    step = max(1, chunk_bytes // row_bytes)
    for row in range(0, view.shape[0], step):
        yield view[row : row + step].contiguous()


def describe(pieces: list[Piece], full_shape: dict[str, tuple[int, ...]]) -> str:
    """Pieces for people: ``a + b[0:64,128:192]``; rows only where not the whole tensor is taken.

    Args:
        pieces: what to describe.
        full_shape: shape of the stored tensors.
    """
    words: list[str] = []
    index = 0
    while index < len(pieces):
        piece = pieces[index]
        run = [piece]
        while index + len(run) < len(pieces) and pieces[index + len(run)].name == piece.name:
            run.append(pieces[index + len(run)])
        index += len(run)
        shape = full_shape[piece.name][::-1] if piece.transpose else full_shape[piece.name]
        whole = len(run) == 1 and (piece.start, piece.stop) == (0, shape[0] * (shape[1] if piece.stack else 1))
        rows = "" if whole else ",".join(f"{part.start}:{part.stop}" for part in run)
        columns = f"; columns 0:{piece.columns}" if piece.columns not in (None, *shape[1:]) else ""
        inside = f"{rows or ':'}{columns}" if rows or columns else ""
        words.append(f"{piece.name}{'.T' if piece.transpose else ''}{f'[{inside}]' if inside else ''}")
    return " + ".join(words)
