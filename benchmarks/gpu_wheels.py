"""Download what inheritune-lit needs beside torch and transformers, as wheels for a machine without a network.

    python benchmarks/gpu_wheels.py wheels [--evaluation] [--bitsandbytes] [--python 3.12] [--platform x86_64]

Needs pip and a network. Packages that they depend on in turn, torch above all, are left out: the machine has its own.
About 13 MB for training, 11 MB more for lm-eval's tasks (``--evaluation``), 43 MB more for 8-bit optimizers and 4-bit
weights (``--bitsandbytes``).
"""

import argparse
import subprocess
import sys
from pathlib import Path

TRAINING = [
    "litgpt>=0.5.12,<0.6",
    "lightning>=2.5,<3",
    "lightning-utilities",
    "torchmetrics",
    "jsonargparse>=4.39,<=4.41",
    "typeshed-client",
    "docstring-parser",
    "zstandard>=0.22",
    "liger-kernel",
    "torchao",
]
EVALUATION = [
    "lm-eval>=0.4.12,<0.5",
    "datasets<6",
    "evaluate",
    "dill<0.4.2",
    "multiprocess<0.70.20",
    "xxhash",
    "more-itertools",
]
BITSANDBYTES = ["bitsandbytes>=0.45"]
GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)  # pip takes the ones it is told, not older ones by itself


def command(folder: Path, packages: list[str], python: str, platform: str) -> list[str]:
    """The call of pip that downloads wheels of some packages alone for a Python version and a processor."""
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    tags = [f"manylinux_2_{minor}_{platform}" for minor in GLIBC]
    tags += [f"manylinux2014_{platform}", f"manylinux1_{platform}"]
    for tag in tags:
        options += ["--platform", tag]
    return [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), *packages]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--evaluation", action="store_true")
    parser.add_argument("--bitsandbytes", action="store_true")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--platform", default="x86_64")
    arguments = parser.parse_args()
    packages = TRAINING + EVALUATION * arguments.evaluation + BITSANDBYTES * arguments.bitsandbytes
    if subprocess.run(command(arguments.folder, packages, arguments.python, arguments.platform)).returncode:
        raise SystemExit("pip could not download them all; its reason is above")
    wheels = sorted(arguments.folder.glob("*.whl"))
    print(f"{len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / 1e6:.0f} MB, in {arguments.folder}")


if __name__ == "__main__":
    main()
