"""Fixtures of the tests of documents."""

from task_fixtures import rows_dir

__all__ = ["rows_dir"]
