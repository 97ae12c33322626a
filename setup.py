"""Only what pyproject.toml cannot say: the wheel carries the suites of ``eval/`` and the recipes inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["inheritune_lit*"]), "inheritune_lit.suites", "inheritune_lit.recipes"],
    package_dir={"inheritune_lit.suites": "eval", "inheritune_lit.recipes": "recipes"},
    package_data={
        "inheritune_lit.suites": ["*.yaml", "paper/*.csv"],
        "inheritune_lit.recipes": ["**/*.yaml"],
        "inheritune_lit": ["py.typed"],
    },
)
