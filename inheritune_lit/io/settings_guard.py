"""Settings that a folder records against those asked for now: compared and refused in one voice."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant
from inheritune_lit.io.manifest import read_manifest


def check_folder(
    folder: Path,
    kind: str,
    settings: dict[str, Any],
    free: tuple[str, ...] = (),
    remedy: str = "use the old value or give another --out_dir",
) -> dict[str, Any] | None:
    """The manifest of a folder that was started with the same settings, None where nothing was started.

    A folder that holds something else, or was started with other settings, is a ``UserError``. ``settings`` are all
    that change the outcome, of JSON types; ``free`` names those that may differ, such as "data" or "eval.interval".
    """
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        check_vacant(folder)
        return None
    if manifest.get("kind") != kind:
        raise UserError(f"{folder} holds a {manifest.get('kind')}, not a {kind}; give another --out_dir")
    check_settings(f"{folder} was started", manifest.get("settings", {}), settings, remedy, free)
    return manifest


def check_settings(
    subject: str,
    recorded: Mapping[str, Any],
    wanted: Mapping[str, Any],
    remedy: str = "give another --out_dir",
    free: tuple[str, ...] = (),
) -> None:
    """Check that recorded settings are the wanted ones, but for those in ``free``.

    One that differs is a ``UserError``: "runs/a was made with seed 1, not 2; give another --out_dir", where the subject
    is "runs/a was made".
    """
    for name, old, new in differences(recorded, wanted):
        if not any(f"{name}.".startswith(f"{each}.") for each in free):
            raise UserError(f"{subject} with {name} {old!r}, not {new!r}; {remedy}")


def differences(recorded: Any, wanted: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Names of the settings that differ, such as ``optimizer.lr``, with both values; what is not there is None."""
    if isinstance(recorded, Mapping) and isinstance(wanted, Mapping):
        for key in sorted(recorded.keys() | wanted.keys()):
            yield from differences(recorded.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif recorded != wanted:
        yield name, recorded, wanted
