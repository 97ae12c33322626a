"""``inheritune analyze`` with its page, measured once, and two models side by side."""

import pytest
from tiny import make_checkpoint, make_packed

from inheritune_lit.cli import main


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
        "drop_sequences": 0,
    }
    return ["analyze", *(part for name, value in args.items() for part in (f"--{name}", str(value)))]


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
        (["--compare", "nowhere"], "nowhere can't be read as the result of an analysis"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(args, told, command, tmp_path, capsys):
    assert main([*command, *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("inheritune: error: ") and error.count("\n") == 1
    assert told in error
    assert not (tmp_path / "out").exists()
