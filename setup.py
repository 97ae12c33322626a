"""Only what pyproject.toml cannot say: the wheel carries the suites of ``eval/`` inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["inheritune_lit*"]), "inheritune_lit.suites"],
    package_dir={"inheritune_lit.suites": "eval"},
    package_data={"inheritune_lit.suites": ["*.yaml", "paper/*.csv"], "inheritune_lit": ["py.typed"]},
)
