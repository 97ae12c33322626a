"""The command line: errors are one line and exit code 2, help is instant, everyday spellings work."""

import shutil
import subprocess
import sys
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from inheritune_lit.cli import main
from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import CommandArgs, flags_of
from inheritune_lit.parsing import check_choices, normalize_argv, parse, read_recipe
from inheritune_lit.studies.args import AblateArgs
from inheritune_lit.train.args import PretrainArgs, TrainArgs


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "no command; give one of init, "),
        (
            ["slice", "--ref", "x", "--init", "stak"],
            "--init is 'stak'; did you mean stack? give one of inherit, random",
        ),
        (["pretrain", "--train.schedule=linear"], "--train.schedule is 'linear'; give one of cosine, constant, wsd"),
        (["pretrain", "--strategy", "dpp"], "--strategy is 'dpp'; did you mean ddp?"),
        (["eval", "--quantize", "int4"], "--quantize is 'int4'; give one of bnb.nf4, bnb.nf4-dq"),
        (["slize"], "slice"),
        (["slice", "--n", "3"], "ref"),
        (["slice", "--ref", "gpt2", "--n", "three"], "three"),
        (["slice", "--ref", "gpt2", "--layerz", "3"], "--layerz"),
        (["pretrain", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(args, told, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("inheritune: error: ")
    assert error.count("\n") == 1
    assert told in error


def test_unknown_config_key_is_refused(tmp_path, capsys):
    config = tmp_path / "recipe.yaml"
    config.write_text("initial_checkpoint_dir: a\ndata: b\nout_dir: c\ntrain:\n  micro_batch: 3\n")
    assert main(["pretrain", "--config", str(config)]) == 2
    assert "micro_batch" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["pretrain", "grow"])
def test_help_needs_no_heavy_import(command):
    code = (
        "import sys\n"
        "from inheritune_lit.cli import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'litgpt', 'transformers', 'lm_eval', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@dataclass(frozen=True)
class DoArgs(CommandArgs):
    aliases: ClassVar[dict[str, str]] = {"old_one": "one"}

    many: list[str]
    _: KW_ONLY
    flag: bool = False
    one: Literal["a", "b"] | None = None
    words: list[Literal["a", "b"]] | None = None
    train: TrainArgs = field(default_factory=TrainArgs)


@dataclass(frozen=True)
class OneArgs(CommandArgs):
    ref: str
    _: KW_ONLY
    flag: bool = False


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--flag", "--flag=true"),
        ("--flag false", "--flag=false"),
        ("--many A B --one a", "--many=[] --many+=A --many+=B --one=a"),
        ("A B --flag", "--many=[] --many+=A --many+=B --flag=true"),
        ("--flag A B", "--flag=true --many=[] --many+=A --many+=B"),
        ("--one=a A", "--one=a --many=[] --many+=A"),
        ("--old-one a", "--one=a"),
        ("--train.max-steps 3", "--train.max_steps=3 --train.max_tokens=null --train.epochs=null"),
        ("--flag --config f.yaml", "--config=f.yaml --flag=true"),
        ("--recipe f.yaml", "--config=f.yaml"),
        ("--train.keep_best --one b", "--train.keep_best=true --one=b"),
    ],
)
def test_everyday_spellings(given, meant):
    assert normalize_argv(given.split(), DoArgs) == meant.split()


@pytest.mark.parametrize("given", ["A", "--ref A", "--ref=A", "A --flag", "--flag A", "--flag true A"])
def test_the_first_argument_needs_no_flag(given):
    assert "--ref=A" in normalize_argv(given.split(), OneArgs)


@pytest.mark.parametrize("given", ["A B", "--ref A B", "A --flag true B"])
def test_a_second_word_is_refused(given):
    with pytest.raises(UserError, match="unexpected argument 'B'"):
        normalize_argv(given.split(), OneArgs, "do")


def test_lists_of_words_are_left_to_the_parser():
    check_choices(["--words=[a, b]", "--one=b"], flags_of(DoArgs))
    with pytest.raises(UserError, match="--one is 'c'; give one of a, b"):
        check_choices(["--words=[a, b]", "--one=c"], flags_of(DoArgs))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("slice a --n_layer 13", "did you mean --n?"),
        ("slice a --num-hidden-layers 13", "did you mean --n?"),
        ("slice a --output_dir b", "did you mean --out_dir?"),
        ("pretrain a --lr 1e-3", "did you mean --optimizer.lr?"),
        ("pretrain a --resume", "the same command again continues"),
        ("pretrain a --max_steps 3", "did you mean --train.max_steps?"),
        ("eval --model a", "did you mean --checkpoint_dir?"),
        ("analyze --criteria", "inheritune ablate"),
        ("chat a", "litgpt chat FOLDER"),
        ("finetune_lora a", "litgpt finetune_lora FOLDER"),
        ("download a", "litgpt download"),
        ("convert a", "inheritune export FOLDER"),
        ("slice pretrain", "two commands, slice and pretrain"),
    ],
)
def test_what_users_of_other_tools_type_leads_on(line, told, capsys):
    assert main(line.split()) == 2
    assert told in capsys.readouterr().err


def test_the_reader_of_a_pipe_may_leave():
    command = f"{sys.executable} -m inheritune_lit references | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.stderr, done.stdout.count("\n")) == ("", 1)


def test_a_budget_wins_over_that_of_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("initial_checkpoint_dir: a\ndata: b\nout_dir: c\ntrain: {max_tokens: 5, micro_batch_size: 2}\n")
    kinds = {"pretrain": PretrainArgs}
    _, args = parse(["pretrain", "--train.max_steps", "7", "--config", str(recipe)], kinds)
    assert (args.train.max_steps, args.train.max_tokens, args.train.micro_batch_size) == (7, None, 2)


def test_a_recipe_is_read_without_what_it_lacks(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: b\nprecision: 32-true\ntrain: {max_tokens: 5}\n")
    values = read_recipe(recipe, PretrainArgs, "pretrain")
    assert values["train"] == TrainArgs(max_tokens=5)
    assert (values["precision"], values["data"]) == ("32-true", Path("b"))
    assert "out_dir" not in values and "initial_checkpoint_dir" not in values
    recipe.write_text("train: {lairs: 3}\n")
    with pytest.raises(UserError, match=r"--train\.lairs"):
        read_recipe(recipe, PretrainArgs, "pretrain")


def test_library_functions_take_paths_as_text():
    args = PretrainArgs("a", "b", "c", train=TrainArgs(max_steps=1))
    assert args.out_dir == Path("c")


def test_module_and_script_are_the_same_command():
    shown = subprocess.run([sys.executable, "-m", "inheritune_lit", "--version"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert shown.stdout.startswith("inheritune ")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_commands_flags_and_values(tmp_path):
    program = [sys.executable, "-m", "inheritune_lit", "--print_shtab=bash"]
    (tmp_path / "complete.sh").write_text(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    found = []
    for words in (["sl"], ["slice", "--ini"], ["slice", "--init", "ha"]):
        before = words[-2] if len(words) > 1 else "inheritune"
        script = (
            f"source {tmp_path}/complete.sh; COMP_WORDS=(inheritune {' '.join(words)}); COMP_CWORD={len(words)}; "
            f"_shtab_inheritune inheritune {words[-1]} {before}; echo ${{COMPREPLY[@]}}"
        )
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        found.append(done.stdout.split())
    assert found == [["slice"], ["--init"], ["half-width"]]


def test_a_list_takes_the_place_of_the_default_and_of_a_recipe(tmp_path):
    recipe = tmp_path / "ablate.yaml"
    recipe.write_text("ref: a\ndata: b\nout_dir: c\nseeds: [7, 8]\n")
    for given, meant in (("", [7, 8]), ("--seeds 1 2", [1, 2]), ("--seeds 1 --seeds 2", [1, 2]), ("--seeds=[3]", [3])):
        args = parse(f"ablate --config {recipe} --criteria first last {given}".split(), {"ablate": AblateArgs})[1]
        assert isinstance(args, AblateArgs) and args.seeds == meant and args.criteria == ["first", "last"]
