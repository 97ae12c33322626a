"""Bad arguments are one line in a user's words, on the command line and in a recipe."""

import shlex

import pytest

from inheritune_lit.cli import main

TRAIN = "pretrain --initial_checkpoint_dir a --data b --out_dir c "


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("slice --ref a --n two", "--n is 'two'; give a whole number; see `inheritune slice --help`"),
        ("slice --ref a --n", "--n needs a value; see `inheritune slice --help`"),
        ("slice", "--ref is missing; see `inheritune slice --help`"),
        ("slice --reff x", "there is no flag --reff; did you mean --ref?; see `inheritune slice --help`"),
        ("slice x y", "unexpected argument 'y'; see `inheritune slice --help`"),
        ("slice --ref a --embeddings maybe", "--embeddings is 'maybe'; give true or false; see"),
        ("slise", "there is no command 'slise'; did you mean slice? give one of init, references, recipes, plan, "),
        ("eval --checkpoint_dir", "--checkpoint_dir needs a value; see `inheritune eval --help`"),
        (TRAIN + "--train.max_steps 1.5", "--train.max_steps is '1.5'; give a whole number; see"),
        (TRAIN + "--optimizer.lr nan", "--optimizer.lr is 'nan'; give a number; see"),
        (
            TRAIN + "--mixture.weights foo",
            "give a mapping such as {a: 1} or one of proportional, uniform; see",
        ),
        (TRAIN + "--devices few", "--devices is 'few'; give a whole number or one of auto; see"),
    ],
)
def test_on_the_command_line(line, told, capsys):
    assert main(shlex.split(line)) == 2
    error = capsys.readouterr().err
    assert error.startswith("inheritune: error: ") and told in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("lairs: 3", "there is no flag --lairs; see `inheritune pretrain --help`"),
        ("train: {max_stepz: 3}", "there is no flag --train.max_stepz; did you mean --train.max_steps?; see"),
        ("speed: {loss_kernel: foo}", "--speed.loss_kernel has a wrong value; give one of auto, plain, chunked"),
        ("train: {max_steps: many}", "--train.max_steps is 'many'; give a whole number"),
        ("train: 3", "recipe.yaml is 3; give flags, a line each below `train:`"),
        ("- a", "holds a list, not names and values); give a YAML file of lines such as `seed: 1`"),
        ("a: [1", "recipe.yaml can't be read as a recipe of --config (line 1: expected"),
        ("", "not names and values"),
    ],
)
def test_in_a_recipe(recipe, told, capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert main(shlex.split(f"{TRAIN} --config {tmp_path / 'recipe.yaml'}")) == 2
    error = capsys.readouterr().err
    assert error.startswith("inheritune: error: ") and told in error and error.count("\n") == 1
    assert main(shlex.split(f"{TRAIN} --config {tmp_path}")) == 2
    assert f"{tmp_path} can't be read as a recipe of --config (Is a directory)" in capsys.readouterr().err
