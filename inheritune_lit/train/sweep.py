"""One recipe for many depths: ``{n}`` in its paths."""

from pathlib import Path

from inheritune_lit.errors import UserError


def at_depth(paths: dict[str, Path], n: int | None) -> dict[str, Path]:
    """Put a depth in the place of ``{n}``.

    Args:
        paths: by the name of their argument.
        n: the depth, None where none was given.

    Raises:
        UserError: a depth without a place for it, a place without a depth, or one below 1.
    """
    open_places = [name for name, path in paths.items() if "{n}" in str(path)]
    if n is None and open_places:
        raise UserError(f"--{open_places[0]} {paths[open_places[0]]} is for several depths; give one, such as --n 13")
    if n is not None and (n < 1 or not open_places):
        raise UserError(f"--n {n} needs {{n}} in --{' or --'.join(paths)}, and to be at least 1")
    return {name: Path(str(path).replace("{n}", str(n))) for name, path in paths.items()}
