"""Figures that everybody can read: labels at the ends of curves, no curve outside its panel, the same bytes."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Annotation

from inheritune_lit.io.plotting import (
    draw_curve,
    draw_level,
    engineering_ticks,
    label_ends,
    new_figure,
    save_png,
    spread_apart,
    style,
)

TOKENS = np.linspace(0, 8e6, 9)


def loss(number: int) -> np.ndarray:
    return 3 + 4 * np.exp(-TOKENS / 1e6) + 0.01 * number


def figure_of_curves(count: int):
    figure, (axes,) = new_figure()
    for number in range(count):
        draw_curve(axes, number, TOKENS, loss(number), f"run {number}", stderr=[0.01] * len(TOKENS))
    draw_level(axes, 3.05, "reference")
    engineering_ticks(axes.xaxis)
    label_ends(axes)
    return figure, axes


def test_curves_differ_in_more_than_colour():
    looks = [style(number) for number in range(28)]
    assert len({(each["color"], each["linestyle"]) for each in looks}) == 28
    for first in range(28):
        for second in range(first):
            a, b = looks[first], looks[second]
            assert (a["linestyle"], a["marker"]) != (b["linestyle"], b["marker"])


@pytest.mark.parametrize("count", [1, 3, 12])
def test_labels_stand_beside_the_panel_and_do_not_overlap(count):
    figure, axes = figure_of_curves(count)
    save_png(figure)
    figure.draw_without_rendering()
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    assert {text.get_text() for text in labels} == {*(f"run {number}" for number in range(count)), "reference"}
    boxes = sorted((super(Annotation, text).get_window_extent() for text in labels), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    panel, whole = axes.get_window_extent(), figure.bbox
    assert all(panel.x1 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1 for box in boxes)


def test_ticks_have_no_power_of_ten_at_the_end_of_the_axis():
    figure, axes = figure_of_curves(2)
    figure.draw_without_rendering()
    assert "8M" in [tick.get_text() for tick in axes.get_xticklabels()]
    assert not axes.xaxis.get_offset_text().get_text() and not axes.yaxis.get_offset_text().get_text()


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    first, second = (figure_of_curves(5)[0] for _ in range(2))
    content = save_png(first, tmp_path / "figure.png")
    assert content == (tmp_path / "figure.png").read_bytes() == save_png(second) == save_png(first)
    assert b"Matplotlib" not in content and [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_heights_are_moved_as_little_as_possible_and_stay_inside():
    assert spread_apart(np.array([0.2, 0.5, 0.9]), 0.1).tolist() == [0.2, 0.5, 0.9]
    assert spread_apart(np.array([0.5, 0.5]), 0.1) == pytest.approx([0.45, 0.55])
    assert spread_apart(np.array([0.0, 0.0, 1.0, 1.0]), 0.2) == pytest.approx([0, 0.2, 0.8, 1])


def test_importing_it_changes_no_state_of_matplotlib():
    code = (
        "import sys, inheritune_lit.io.plotting as plotting; figure, _ = plotting.new_figure(); "
        "plotting.save_png(figure); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
