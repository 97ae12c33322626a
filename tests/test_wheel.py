"""The wheel, installed in an environment of its own, has everything that the commands need."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Folder of the scripts of a new environment with the wheel in it; dependencies are those of this one."""
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("eval", "inheritune_lit", "recipes"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    build = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=folder / "source", check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip())
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    wheel = next(folder.glob("*.whl"))
    install = [python, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall", "-q", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return python.parent


def run(installed: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [installed / command[0], *command[1:]]
    done = subprocess.run(words, cwd=installed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_is_there(installed):
    assert run(installed, "inheritune", "--version").startswith("inheritune ")
    assert "openllama-3b" in run(installed, "inheritune", "references")
    told = run(installed, "inheritune", "plan", "--ref", "openllama-3b", "--n", "13", "--tokens", "8B")
    assert "1,815,638,400 parameters" in told


def test_recipes_are_in_the_package(installed):
    listed = {line.split()[0] for line in run(installed, "inheritune", "recipes").splitlines()}
    assert listed == {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")}
    told = run(installed, "inheritune", "plan", "--recipe", "recipes/paper-openllama-3b-13l-50b.yaml")
    assert "1,815,638,400 parameters" in told


def test_suites_are_in_the_package(installed):
    code = (
        "import inheritune_lit.evaluation.suite as suite; "
        "print(suite.__file__); print(len(suite.load_suite('paper-table5').columns)); "
        "from pathlib import Path; print((Path(suite.__file__).parents[1] / 'py.typed').is_file())"
    )
    lines = run(installed, "python", "-c", code).splitlines()
    assert Path(lines[0]).is_relative_to(installed.parent)
    assert lines[1:] == ["10", "True"]
