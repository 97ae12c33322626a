"""``inheritune analyze`` with its page, advice on n, and comparison of criteria."""

from pathlib import Path

import pytest
import torch
from tiny import make_checkpoint, make_packed
from torch.nn import functional as F

from inheritune_lit.analysis.analyze import draw_sequences
from inheritune_lit.cli import main
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.load import load_model

RECIPE = Path(__file__).parents[1] / "recipes" / "analysis" / "criteria-cpu.yaml"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("study")
    make_checkpoint(folder / "ref", tokenizer_dir, n_layer=4)
    return folder / "ref", make_packed(folder / "data", tokenizer_dir)


@pytest.fixture
def command(inputs, tmp_path):
    """Arguments of an analysis of a second, without attention maps and dropped layers."""
    ref, data = inputs
    args = {
        "checkpoint_dir": ref,
        "data": data,
        "out_dir": tmp_path / "out",
        "num_sequences": 6,
        "seq_length": 12,
        "maps": "none",
        "drop_length": 0,
        "gradients": "false",
    }
    return ["analyze", *(part for name, value in args.items() for part in (f"--{name}", str(value)))]


def test_advised_loss_is_that_of_the_slice(inputs, command, tmp_path, capsys):
    ref, data = inputs
    assert main([*command, "--advise", "--advice.gpu", "H100"]) == 0
    shown = capsys.readouterr().out
    page = (tmp_path / "out" / "analysis.md").read_text()
    tokens_BT1 = draw_sequences(data, ref, 400, 6, 12, 1337)
    advice = page[page.index("## Advice on n") : page.index("## Measures by layer")].strip()
    assert advice in shown
    cells = [[cell.strip("* ") for cell in line.split("|")[1:-1]] for line in advice.splitlines()]
    rows = {int(row[0]): row for row in cells if row and row[0].isdigit()}
    for n in range(1, 5):
        model = load_model(slice_model(SliceArgs(str(ref), n=n, out_dir=tmp_path / f"n{n}")).folder)
        with torch.no_grad():
            logits_BTV = model(tokens_BT1[:, :-1])
        loss_B = F.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT1[:, 1:], reduction="none").mean(dim=1)
        stderr = (loss_B.std() / 6**0.5).item()
        assert rows[n][1] == f"{loss_B.mean().item():.3f} ± {stderr:.3f}"
        assert rows[n][3] == f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    assert "paper's choice, k/2" in rows[2][-1]


def test_the_same_command_measures_once(command, tmp_path, capsys):
    assert main(command) == 0
    before = (tmp_path / "out" / "analysis.json").stat().st_mtime_ns
    (tmp_path / "out" / "heads.png").unlink()
    assert main(command) == 0
    assert (tmp_path / "out" / "analysis.json").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "heads.png").is_file()
    assert not list((tmp_path / "out").glob(".*"))
    capsys.readouterr()
    assert main([*command, "--seed", "2"]) == 2
    assert "holds an analysis with seed 1337, not 2; use the old value" in capsys.readouterr().err


def test_compare_draws_the_other_model(command, inputs, tokenizer_dir, tmp_path):
    make_checkpoint(tmp_path / "other", tokenizer_dir, n_layer=2)
    assert main([*command, "--checkpoint_dir", str(tmp_path / "other"), "--out_dir", str(tmp_path / "two")]) == 0
    assert main([*command, "--compare", str(tmp_path / "two")]) == 0
    assert (tmp_path / "out" / "heads_compared.png").is_file()
    assert "of 2 layers" in (tmp_path / "out" / "analysis.md").read_text()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--criteria"], "ways of choosing layers are compared by `inheritune ablate`"),
        (["--advice.gpu", "H100"], "--advice settings are given without --advise"),
        (["--advise", "--advice.gpu", "Abacus"], "--advice.gpu Abacus is not known"),
        (["--compare", "nowhere"], "nowhere can't be read as the result of an analysis"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(args, told, command, tmp_path, capsys):
    assert main([*command, *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("inheritune: error: ") and error.count("\n") == 1
    assert told in error
    assert not (tmp_path / "out").exists()
