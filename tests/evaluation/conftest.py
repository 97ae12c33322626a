"""Fixtures of the tests of evaluation."""

from task_fixtures import checkpoint, rows_dir, two_models

__all__ = ["checkpoint", "rows_dir", "two_models"]
