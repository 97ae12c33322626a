"""Figures of layers."""

from dataclasses import asdict, replace

import numpy as np
from synthetic_analysis import make_analysis

from inheritune_lit.analysis.page import rank_and_mass_figure
from inheritune_lit.analysis.result import ProtocolV4


def test_a_second_model_of_higher_ranks_is_within_the_panels():
    low = make_analysis()
    v4 = ProtocolV4(**{name: [3 * value for value in values] for name, values in asdict(low.protocols.v4).items()})
    figure = rank_and_mass_figure([low, replace(low, protocols=replace(low.protocols, v4=v4))])
    for axes in figure.axes:
        bottom, top = axes.get_ylim()
        assert bottom == 0 and max(np.max(line.get_ydata()) for line in axes.lines) <= top
