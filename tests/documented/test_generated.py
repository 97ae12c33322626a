"""The tables of flags, architectures and GPUs in docs/ are those of the code."""

import pytest
from generated import DOCS, rewrite

from inheritune_lit.cli import COMMANDS
from inheritune_lit.io.arguments import flags_of


@pytest.mark.parametrize("name", ["flags", "architectures", "gpu"])
def test_tables_are_those_of_the_code(name):
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert "<!-- made by" in page
    assert rewrite(page) == page, "run `make docs`"


def test_every_flag_is_in_the_table():
    page = (DOCS / "flags.md").read_text(encoding="utf-8")
    for kind, _ in COMMANDS.values():
        assert [flag for flag in flags_of(kind) if f"`--{flag}`" not in page] == []
