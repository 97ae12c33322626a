"""The command line: errors are one line and exit code 2, help is instant, everyday spellings work."""

import shutil
import subprocess
import sys
from typing import Literal

import pytest

from inheritune_lit.arguments import check_choices, spell_out
from inheritune_lit.cli import main
from inheritune_lit.errors import UserError


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "subcommand"),
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


def test_everyday_spellings():
    def command(flag: bool, many: list[str], one: str) -> None: ...

    commands = {"do": command}
    assert spell_out(["do", "--flag"], commands) == ["do", "--flag=true"]
    assert spell_out(["do", "--flag", "false"], commands) == ["do", "--flag", "false"]
    assert spell_out(["do", "--many", "A", "B", "--one", "x"], commands) == [
        "do",
        "--many+=A",
        "--many+=B",
        "--one",
        "x",
    ]
    assert spell_out(["--config", "f.yaml"], commands) == ["--config", "f.yaml"]

    def tell(runs: list[str], loud: bool = False) -> None: ...

    for words in (["a", "b"], ["--runs", "a", "b"]):
        assert spell_out(["tell", *words, "--loud"], {"tell": tell}) == [
            "tell",
            "--runs+=a",
            "--runs+=b",
            "--loud=true",
        ]


def test_lists_of_words_are_left_to_the_parser():
    def do(words: list[Literal["a", "b"]] | None = None, one: Literal["a", "b"] | None = None) -> None: ...

    check_choices(["do", "--words", "[a, b]", "--one=b"], {"do": do})
    with pytest.raises(UserError, match="--one is 'c'; give one of a, b"):
        check_choices(["do", "--words", "[a, b]", "--one", "c"], {"do": do})


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
