"""Python on a machine that lacks packages: they are installed from a folder of wheels into a folder of their own.

    python benchmarks/bare.py wheels -m pytest -m gpu tests/gpu

runs Python with what follows. Nothing is fetched, nothing of the machine is changed, and a package that the machine has
is left as it is. ``gpu_wheels.py`` makes the folder.
"""

import hashlib
import os
import re
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it, "liger-kernel" for "Liger_Kernel" (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(wheels: Path, installed: set[str]) -> list[Path]:
    """The wheels of a folder whose distributions are not among the ``installed``, by name."""
    return [wheel for wheel in sorted(wheels.glob("*.whl")) if normal(wheel.name.split("-")[0]) not in installed]


def packages_folder(wheels: Path) -> Path:
    """Where a folder of wheels is installed: another place for other wheels, or another Python."""
    what = " ".join([sys.version, *sorted(wheel.name for wheel in wheels.glob("*.whl"))])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "inheritune-lit" / f"packages-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def install(wheels: Path | None) -> dict[str, str]:
    """Install what is missing from a folder of wheels, once; the environment for Python with them.

    Without a folder of wheels only the project itself is put on the path. An empty folder of wheels, or one of another
    Python or platform, is a ``SystemExit`` with pip's words.
    """
    if wheels:
        if not any(wheels.glob("*.whl")):
            raise SystemExit(f"{wheels} holds no wheels; make it with benchmarks/gpu_wheels.py {wheels}")
        packages = packages_folder(wheels)
        here = [*distributions(), *distributions(path=[str(packages)])]
        lacking = missing(wheels, {normal(found) for each in here if (found := _name(each))})
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        command += ["--disable-pip-version-check", "--root-user-action=ignore", "--target", str(packages)]
        if lacking and subprocess.run([*command, *map(str, lacking)]).returncode:
            raise SystemExit(f"pip could not install {', '.join(wheel.name for wheel in lacking)}; its reason is above")
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = dict.fromkeys([str(ROOT), *([str(packages_folder(wheels))] if wheels else []), *filter(None, before)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def restart(wheels: Path | None) -> None:
    """Start this program again with the packages of a folder of wheels on its path, unless that was done already."""
    environment = install(wheels)
    if environment["PYTHONPATH"] != os.environ.get("PYTHONPATH"):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def _name(distribution: Distribution) -> str | None:
    return distribution.metadata["Name"] if distribution.metadata else None  # a damaged one has none


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    os.execve(sys.executable, [sys.executable, *sys.argv[2:]], install(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
