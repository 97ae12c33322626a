"""Where a GPU's memory runs out, every command says so in one line, with what to do about it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import make_checkpoint, make_packed

from inheritune_lit.cli import COMMANDS, SMALLER, main
from inheritune_lit.io.arguments import flags_of

TORCHS = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 15.00 MiB is "
    "free. Including non-PyTorch memory, this process has 79.08 GiB memory in use. If reserved but unallocated memory "
    "is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True.  See documentation for Memory Management"
)
"""What torch says."""
SAID = TORCHS.partition(". Including")[0]


@pytest.fixture(scope="module")
def there(tmp_path_factory, tokenizer_dir):
    """A checkpoint and packed data."""
    folder = tmp_path_factory.mktemp("memory")
    make_checkpoint(folder / "model", tokenizer_dir)
    make_packed(folder / "data", tokenizer_dir)
    return folder


@pytest.fixture
def run(there, tmp_path, capsys, monkeypatch):
    """The one line on stderr of a command in which memory runs out where a function of that name is called."""

    def call(command: str, place: str) -> str:
        def full(*args, **options):
            raise torch.OutOfMemoryError(TORCHS)

        monkeypatch.setattr(place, full)
        line = command.format(model=there / "model", data=there / "data", out=tmp_path / "out")
        assert main(line.split()) == 2
        *plan, told = capsys.readouterr().err.strip().splitlines()
        assert not any("inheritune: error" in each for each in plan) and told.startswith("inheritune: error: ")
        return told.removeprefix("inheritune: error: ")

    return call


SHORT = "--train.max_steps 3 --train.lr_warmup_steps 1 --train.global_batch_size 4 --train.max_seq_length 16"
PRETRAIN = f"pretrain {{model}} --data {{data}} --out_dir {{out}} {SHORT} --eval.max_iters 2 --eval.interval 2"
GROW = f"grow {{model}} --data {{data}} --out_dir {{out}} --n 1 --grow_by 1 {SHORT} --eval.max_iters 2"
EVAL = "eval {model} --val_data {data} --limit 4"
ANALYZE = "analyze {model} --data {data} --out_dir {out} --num_sequences 4 --seq_length 16"
SEARCH = "search {model} --data {data} --out_dir {out} --num_sequences 4 --seq_length 16"
TEACH = "teach {model} --data {data} --out_dir {out} --max_seq_length 16 --top_k 4"
MEASURE = "plan openllama-3b --n 1 --tokens 1B --measure"


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (EVAL, "inheritune_lit.evaluation.open_lm.load_model"),
        (EVAL, "inheritune_lit.evaluation.held_out.F.cross_entropy"),
        (ANALYZE, "inheritune_lit.inherit.stream.LayerStream.embed"),
        (ANALYZE, "inheritune_lit.analysis.analyze.score_subsets"),
        (SEARCH, "inheritune_lit.analysis.search.score_subsets"),
        (TEACH, "inheritune_lit.train.teach.head_logits"),
        (GROW, "inheritune_lit.evaluation.held_out.F.cross_entropy"),
        (MEASURE, "inheritune_lit.train.plan.build_model"),
    ],
)
def test_commands_name_what_to_make_smaller(run, command, place):
    expected = SMALLER[command.split()[0]]
    assert run(command, place) == f"{SAID}; free memory, or give a smaller {expected}"


@pytest.mark.parametrize(
    "place",
    [
        "inheritune_lit.train.setup.build_optimizer",
        "inheritune_lit.train.setup.TrainingModel",
        "inheritune_lit.train.loop.validate",
        "inheritune_lit.train.loop.Trainer.train_step",
    ],
    ids=["optimizer", "model", "validation", "step"],
)
@pytest.mark.parametrize("command", [PRETRAIN, GROW])
def test_training_says_what_fits(run, monkeypatch, command, place):
    sizes = SimpleNamespace(total_memory=40_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: sizes)
    monkeypatch.setattr("inheritune_lit.train.setup.check_machine", lambda *args: None)  # it makes an optimizer too
    told = run(command, place)
    assert told.startswith("out of memory: a step was predicted to need 0.0 GB of 0.0; --train.micro_batch_size ")
    assert told.endswith(" fits: give it and run the same command again")


def test_a_state_that_does_not_fit_is_not_called_damaged(run, there, tmp_path, monkeypatch):
    stopped = f"{PRETRAIN} --train.max_time 1e-9".format(
        model=there / "model", data=there / "data", out=tmp_path / "out"
    )
    assert main(stopped.split()) == 0
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=40_000_000))
    assert run(PRETRAIN, "torch.optim.Optimizer.load_state_dict").startswith("out of memory: ")


def test_named_flags_are_flags():
    for command, named in SMALLER.items():
        flags = flags_of(COMMANDS[command][0])
        assert all(flag.removeprefix("--") in flags for flag in named.split(" or "))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True None"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native None"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "None backend:native"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="CUDA has it on Linux only")
def test_memory_of_cuda_grows_in_place_unless_the_user_chose(given, expected):
    # Asked where a command's own module is imported: torch, which reads it, comes no earlier.
    code = (
        "import os, sys\nfrom inheritune_lit import cli\nassert 'torch' not in sys.modules\n"
        "cli.import_module = lambda name: print(*map(os.environ.get, sys.argv[1:])) or sys.exit()\n"
        "cli.main(['recipes'])\n"
    )
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code, *names], env=clean | given, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr
