"""The layer syntax."""

import pytest

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import parse_layers


@pytest.mark.parametrize(
    ("text", "depth", "expected"),
    [
        ("first:3", 8, [0, 1, 2]),
        ("last:3", 8, [5, 6, 7]),
        ("middle:3", 8, [2, 3, 4]),
        ("middle:4", 8, [2, 3, 4, 5]),
        ("alternate", 5, [0, 2, 4]),
        ("alternate+last", 6, [0, 2, 4, 5]),
        ("alternate+last", 5, [0, 2, 4]),
        ("0:26:2", 26, list(range(0, 26, 2))),
        ("2:4", 8, [2, 3]),
        (":2", 8, [0, 1]),
        ("6:", 8, [6, 7]),
        ("0,3,5-7", 8, [0, 3, 5, 6, 7]),
        ("0-1,0-1", 2, [0, 1, 0, 1]),
        ("7, 3", 8, [7, 3]),
        # The paper's teacher-initialised KD baseline: 16 layers out of 24.
        ("alternate+18-21", 24, [*range(0, 24, 2), 18, 19, 20, 21]),
    ],
)
def test_selections(text, depth, expected):
    assert parse_layers(text, depth) == expected


@pytest.mark.parametrize(
    "text",
    ["", "first:0", "first:9", "8", "0-8", "5-3", "1:9", "8:", "0:4:0", "4:4", "half", "first", "-1", "1,,2", "1.5"],
)
def test_refused_in_one_line(text):
    with pytest.raises(UserError, match="--layers") as caught:
        parse_layers(text, 8)
    assert "\n" not in str(caught.value)
