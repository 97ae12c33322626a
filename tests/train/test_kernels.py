"""Which kernels a run gets, and that compiled ones train alike."""

import pytest
import torch
import torch._inductor.config
from train_command import losses_of, pretrain_command

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.cli import main
from inheritune_lit.errors import UserError
from inheritune_lit.train import setup as kernels
from inheritune_lit.train.args import SpeedArgs
from inheritune_lit.train.setup import Kernels, choose_kernels

CONFIG = Config(name="x", n_layer=2, n_embd=16, n_head=2, intermediate_size=32, padded_vocab_size=64, block_size=16)
CPU = torch.device("cpu")
MINUTE, DAYS = 5e12, 1e17
"""FLOPs of runs that take so long on a few cores."""


def test_long_runs_on_cpu_are_compiled(monkeypatch):
    monkeypatch.setattr(kernels, "has_compiler", lambda: True)
    assert choose_kernels(CONFIG, SpeedArgs(), CPU, 0.0, MINUTE) == Kernels("chunked", compiled=False)
    assert choose_kernels(CONFIG, SpeedArgs(), CPU, 0.0, DAYS) == Kernels("plain", compiled=True)
    assert choose_kernels(CONFIG, SpeedArgs(compile=False), CPU, 0.0, DAYS) == Kernels("chunked", compiled=False)
    assert choose_kernels(CONFIG, SpeedArgs(compile=True), CPU, 0.0, MINUTE) == Kernels("plain", compiled=True)
    with pytest.raises(UserError, match="cannot be compiled"):
        choose_kernels(CONFIG, SpeedArgs(loss_kernel="chunked"), CPU, 0.0, DAYS)
    with pytest.raises(UserError, match="cannot be compiled"):  # already as an argument
        SpeedArgs(compile=True, loss_kernel="chunked")


def test_a_machine_without_compiler_runs_all_the_same():
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",)}):
        assert choose_kernels(CONFIG, SpeedArgs(), CPU, 0.0, DAYS) == Kernels("chunked", compiled=False)
        with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
            choose_kernels(CONFIG, SpeedArgs(compile=True), CPU, 0.0, DAYS)


@pytest.mark.slow
def test_compiled_training_has_the_losses_of_eager_and_continues_bit_for_bit(checkpoint, packed, tmp_path):
    def losses(run, *settings):
        for arguments in settings:
            assert main(pretrain_command(checkpoint, packed, tmp_path / run, **arguments)) == 0
        return [float(value) for row in losses_of(tmp_path / run) for value in row if value]

    compiled = {"speed__compile": True}
    eager, whole = losses("eager", {}), losses("whole", compiled)
    assert whole == pytest.approx(eager, rel=1e-4)
    assert losses("stopped", compiled | {"train__max_time": 0.02}, compiled) == whole
