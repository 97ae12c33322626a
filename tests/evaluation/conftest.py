"""Fixtures of the tests of evaluation."""

from hf_fixture import hf_checkpoint
from random_models import make_gpt2, make_neox
from task_fixtures import checkpoint, rows_dir, two_models

__all__ = ["checkpoint", "hf_checkpoint", "make_gpt2", "make_neox", "rows_dir", "two_models"]
