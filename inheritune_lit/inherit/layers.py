"""Which layers to take: the syntax of ``--layers``."""

import re

from inheritune_lit.errors import UserError

SYNTAX = "first:n, last:n, middle:n, alternate, last, start:stop:step, or a list such as 0,3,5-9; join with +"


def parse_layers(text: str, depth: int) -> list[int]:
    """Turn a layer selection into layer numbers of the reference, counted from 0, in the student's order.

    ``first:n``, ``last:n`` (``last`` is one layer), ``middle:n``, ``alternate`` (0, 2, 4, ...), ``a:b`` and ``a:b:c``
    as in Python, ``5-9`` with both ends, single numbers; terms are joined by ``,`` or ``+``. After a ``+`` a bare
    ``last`` that the terms before already end with adds nothing. Layers may repeat and go backwards.

    Args:
        text: the selection.
        depth: number of layers of the reference.

    Raises:
        UserError: not of this form, or layers the reference does not have.
    """
    layers: list[int] = []
    for term in re.split(r"[,+]", text.replace(" ", "")):
        chosen = _parse_term(term, text, depth)
        layers += [layer for layer in chosen if not (term == "last" and layers and layers[-1] == layer)]
    if not layers:
        raise UserError(f"--layers {text} selects no layer of the reference's {depth}; use {SYNTAX}")
    return layers


def layers_text(layers: list[int]) -> str:
    """Layers as ``--layers`` takes them, such as 0-3,7."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and parts[-1][-1] == layer - 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _parse_term(term: str, text: str, depth: int) -> list[int]:
    if match := re.fullmatch(r"(first|last|middle):(\d+)", term):
        count = int(match[2])
        if not 1 <= count <= depth:
            raise UserError(f"--layers {text} asks for {count} layers; the reference has {depth}, give 1 to {depth}")
        start = {"first": 0, "last": depth - count, "middle": (depth - count) // 2}[match[1]]
        return list(range(start, start + count))
    if term == "last":
        return [depth - 1]
    if term == "alternate":
        return list(range(0, depth, 2))
    if match := re.fullmatch(r"(\d+)(?:-(\d+))?", term):
        start, stop = int(match[1]), int(match[2] or match[1])
        if stop < start:
            raise UserError(f"--layers {text}: {term} runs backwards; write {stop}-{start}")
        _check_range(max(start, stop), text, depth)
        return list(range(start, stop + 1))
    if match := re.fullmatch(r"(\d*):(\d*)(?::([1-9]\d*))?", term):
        begin, end, step = (int(part) if part else None for part in match.groups())
        if (end or 0) > depth or (begin or 0) >= depth:
            _check_range(max((end or 0) - 1, begin or 0), text, depth)
        return list(range(depth))[begin:end:step]
    raise UserError(f"--layers {text}: {term or 'an empty term'} is not understood; use {SYNTAX}")


def _check_range(layer: int, text: str, depth: int) -> None:
    if layer >= depth:
        raise UserError(f"--layers {text} names layer {layer}; the reference has layers 0 to {depth - 1}")
