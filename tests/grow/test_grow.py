"""Growing from end to end."""

import json

import pytest
import torch

from inheritune_lit.grow.layers import GrowOptions
from inheritune_lit.model.load import load_state


def test_grows_until_the_depth_ends(growing, tmp_path, reference):
    history = growing(margin=0.0)
    print(history.table(), history.conclusion())
