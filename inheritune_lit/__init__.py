"""Inheritune on litgpt: small base language models out of large pretrained ones (arXiv 2404.08634)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("inheritune-lit")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
