"""The page of an analysis and its figures."""

import math

import pytest
from matplotlib.image import imread
from synthetic_analysis import LAYER_MEASURES, make_analysis

from inheritune_lit.analysis.page import by_layer, draw_figures, sentence, write_report

ALL = {"rank_and_mass.png", "depth.png", "attention_maps.png", "heads.png"}


def sizes(folder):
    """Width and height of every PNG, read back by matplotlib; an empty image would have one colour."""
    found = {}
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        pixels = imread(path)
        assert pixels.std() > 0.01
        found[path.name] = pixels.shape[1], pixels.shape[0]
    return found


@pytest.mark.parametrize(("n_layer", "n_head"), [(4, 1), (48, 25)])
def test_every_figure_is_a_png_of_a_size_to_look_at(n_layer, n_head, tmp_path):
    names = draw_figures(make_analysis(n_layer, n_head, maps=n_head), tmp_path)
    found = sizes(tmp_path)
    assert set(names) == set(found) == ALL
    for name, (width, height) in found.items():
        assert 400 <= width <= 2400 and 250 <= height <= 2400, name


def test_two_models_stand_side_by_side(tmp_path):
    draw_figures(make_analysis(6, 2), tmp_path)
    alone = sizes(tmp_path)
    names = draw_figures(make_analysis(6, 2), tmp_path, make_analysis(4, 2, name="other"))
    together = sizes(tmp_path)
    assert set(names) == ALL | {"heads_compared.png"}
    assert together["rank_and_mass.png"][0] == 2 * alone["rank_and_mass.png"][0]
    assert together["attention_maps.png"][1] > 1.5 * alone["attention_maps.png"][1]
    assert together["depth.png"] == alone["depth.png"]


def test_absent_measures_leave_their_figures_out(tmp_path):
    analysis = make_analysis(6)
    for measure in (*LAYER_MEASURES, "logit_lens_loss"):
        del analysis.layers[measure]
    analysis.maps.attention.clear()
    analysis.measures.clear()
    assert write_report(analysis, tmp_path) == ["rank_and_mass.png", "heads.png", "analysis.md"]
    assert set(sizes(tmp_path)) == {"rank_and_mass.png", "heads.png"}


def test_single_absent_measures_and_values(tmp_path):
    analysis = make_analysis(5)
    del analysis.layers["output_variance"]
    del analysis.layers["drop_loss"]
    del analysis.heads["entropy"]
    analysis.layers["block_influence"].mean[2] = math.nan
    analysis.heads["attention_rank"].mean[1][0] = math.nan
    write_report(analysis, tmp_path)
    assert set(sizes(tmp_path)) == ALL
    page = (tmp_path / "analysis.md").read_text()
    assert "output variance |" not in page.split("## What was measured")[0]
    assert "nan" not in page


def test_page_says_what_the_numbers_say(tmp_path):
    analysis = make_analysis(6, maps=0)
    write_report(analysis, tmp_path)
    page = (tmp_path / "analysis.md").read_text()
    assert "2 of 6 layers are lazy, 4-5 counted from 0; the first is layer 4" in page
    assert "100 sequences, T=100, tau=0.9, protocol v4" in page
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|")]
    header = [cell.strip() for cell in rows[0]]
    third = dict(zip(header, (cell.strip() for cell in rows[4]), strict=True))
    assert third["layer"] == "2"
    assert float(third["block influence"]) == pytest.approx(analysis.layers["block_influence"].mean[2], rel=1e-3)
    heads = analysis.heads["sink_mass"].mean[2]
    assert float(third["sink mass"]) == pytest.approx(sum(heads) / len(heads), rel=1e-3)
    # The loss after the third layer is the lens's fourth value: the first is that of no layer.
    assert float(third["logit lens loss"]) == pytest.approx(analysis.layers["logit_lens_loss"].mean[3], rel=1e-3)
    assert all(len(row) == len(header) for row in rows[:8])
    for measure in analysis.measures:
        assert f"formula of {measure} \\| x" in page


def test_every_column_has_a_number_a_layer():
    columns = by_layer(make_analysis(7))
    assert {len(values) for values in columns.values()} == {7}


def test_sentence_counts():
    analysis = make_analysis(9)
    analysis.lazy.layers[:] = [2, 3, 7]
    assert "3 of 9 layers are lazy, 2-3,7 counted from 0; the first is layer 2; lazy groups 6-8 (" in sentence(analysis)
    analysis.lazy.layers[:] = [8]
    assert "1 of 9 layers is lazy, 8 counted" in sentence(analysis)
    analysis.lazy.layers.clear()
    assert sentence(analysis).startswith("made-up: none of 9 layers is lazy (100 sequences, T=100")
