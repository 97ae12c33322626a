"""Which layers the rounds have, for the paper's own cases and for every way to grow."""

import pytest

from inheritune_lit.errors import UserError
from inheritune_lit.studies.args import GrowArgs
from inheritune_lit.studies.rounds import plan_layers


def growing(n=None, **options):
    return GrowArgs("", "", "", n=n, **options)


def layers(*args, depth, start=None, **options):
    return [list(one.layers) for one in plan_layers(growing(*args, **options), depth, start)]


def test_the_papers_gpt2_medium():
    # Table 1: 24 layers; Inheritune trains 12, 14, 16.
    rounds = plan_layers(growing(), 24)
    assert [list(one.layers) for one in rounds] == [list(range(n)) for n in range(12, 25, 2)]
    assert [one.added for one in rounds] == [0, 2, 2, 2, 2, 2, 2]
    assert [one.folder for one in rounds[:2]] == ["round-01-12l", "round-02-14l"]


def test_new_layers_by_selection_come_in_turn():
    assert layers(4, new_layers="last:4", depth=12) == [
        [0, 1, 2, 3],
        [0, 1, 2, 3, 8, 9],
        [0, 1, 2, 3, 8, 9, 10, 11],
    ]
    assert layers(2, new_layers="7,5,6", depth=12) == [[0, 1], [0, 1, 7, 5]]


def test_from_a_checkpoint_the_next_positions_count():
    assert layers(depth=8, start=(0, 3, 5), max_layers=5) == [[0, 3, 5], [0, 3, 5, 3, 4]]


def test_no_growing_on_request():
    assert layers(5, max_layers=5, depth=8) == [[0, 1, 2, 3, 4]]
    assert layers(depth=1, max_layers=1) == [[0]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"grow_by": 0}, "--grow_by is 0; give 1 or more"),
        ({"grow_by": -2}, "--grow_by is -2"),
        ({"n": 0}, "--n is 0; the reference has 8 layers, give 1 to 8"),
        ({"n": 9}, "--n is 9; the reference has 8 layers"),
        ({"max_layers": 9}, "--max_layers is 9; the start has 4 layers and the reference 8, beyond which"),
        ({"max_layers": 3}, "--max_layers is 3; the start has 4 layers"),
        ({"n": 7}, "--grow_by 2 on 7 layers grows past the reference's 8 layers"),
        ({"n": 4, "max_layers": 5}, "--grow_by 2 on 4 layers grows past --max_layers 5"),
        ({"n": 8}, "grows past the reference's 8 layers"),
        ({"new_layers": "last"}, "grows past --new_layers last, which are 1"),
        (
            {"initial_checkpoint_dir": "elsewhere", "old_layers": "inherited"},
            "--old_layers inherited takes every layer from the reference",
        ),
        ({"new_layers": "lazy"}, "--new_layers lazy: lazy is not understood"),
        ({"new_layers": "last:9"}, "--new_layers last:9 asks for 9 layers; the reference has 8"),
        ({"new_layers": "6-8"}, "--new_layers 6-8 names layer 8; the reference has layers 0 to 7"),
    ],
)
def test_refused(options, told):
    with pytest.raises(UserError) as refused:
        plan_layers(growing(**options), 8)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
