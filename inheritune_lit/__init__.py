"""Inheritune on litgpt: small base language models out of large pretrained ones (arXiv 2404.08634).

Each command is a function: ``from inheritune_lit import SliceArgs, slice_model``. Names are imported from where
``__init__.pyi`` says when they are first asked for, so that ``import inheritune_lit`` costs nothing.
"""

import ast
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_bytes())
_IMPORTS = [node for node in _STUB.body if isinstance(node, ast.ImportFrom)]
_PLACES = {name.asname or name.name: (node.module, name.name) for node in _IMPORTS for name in node.names}
__all__ = sorted(_PLACES)

try:
    __version__ = version("inheritune-lit")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"


def __getattr__(name):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__():
    return sorted({*globals(), *__all__})
