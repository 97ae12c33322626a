"""Fixtures of the tests of evaluation."""

from hf_fixture import hf_checkpoint
from random_models import make_gpt2, make_neox

__all__ = ["hf_checkpoint", "make_gpt2", "make_neox"]
