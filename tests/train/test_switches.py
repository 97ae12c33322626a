"""Switches of torch while training, what a GPU lacks, and same bits from the same steps."""

import logging
import os
from types import SimpleNamespace

import pytest
import torch
from train_command import losses_of, pretrain_command

from inheritune_lit.cli import main
from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.model import devices
from inheritune_lit.train import loop
from inheritune_lit.train import teach as teaching
from inheritune_lit.train.args import SpeedArgs, TrainingArgs
from inheritune_lit.train.setup import check_machine, default_precision, training_switches

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def switches() -> tuple:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_float32_matmul_precision(),
        torch._inductor.config.deterministic,
    )


USUAL = (False, True, "highest", False)


@pytest.mark.parametrize(
    ("device", "precision", "deterministic", "expected"),
    [
        (CPU, "32-true", False, (True, False, "highest", True)),
        (CPU, "bf16-mixed", True, (True, False, "highest", True)),
        (CUDA, "bf16-mixed", False, USUAL),
        (CUDA, "32-true", False, (False, True, "high", False)),
        (CUDA, "bf16-mixed", True, (True, False, "highest", True)),
        (CUDA, "32-true", True, (True, False, "high", True)),
    ],
)
def test_switches_are_set_and_set_back(device, precision, deterministic, expected, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert switches() == USUAL
    with pytest.raises(ZeroDivisionError), training_switches(device, precision, deterministic):
        assert switches() == expected
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if expected[0] else None)
        raise ZeroDivisionError
    assert switches() == USUAL


def test_what_the_caller_set_is_kept():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with training_switches(CPU, "32-true", False):
            assert torch.get_deterministic_debug_mode() == 2
        assert torch.get_deterministic_debug_mode() == 1
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_flag_changes_nothing_on_a_cpu(checkpoint, packed, tmp_path, monkeypatch):
    during = set()
    step = loop.Trainer.train_step
    monkeypatch.setattr(loop.Trainer, "train_step", lambda self: during.add(switches()) or step(self))
    for name, flag in (("on", "true"), ("off", "false")):
        command = pretrain_command(checkpoint, packed, tmp_path / name, deterministic=flag, train__max_steps=12)
        assert main(command) == 0
    on, off = (sha256_file(tmp_path / name / "final" / "lit_model.pth") for name in ("on", "off"))
    assert on == off and losses_of(tmp_path / "on") == losses_of(tmp_path / "off")
    assert during == {(True, False, "highest", True)} and switches() == USUAL


def test_a_run_continues_with_the_other_value(checkpoint, packed, tmp_path, capsys):
    shared = {"train__max_steps": 12, "train__max_time": 1e-9}
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run", deterministic="true", **shared)) == 0
    shared["train__max_time"] = None
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run", deterministic="false", **shared)) == 0
    assert main(pretrain_command(checkpoint, packed, tmp_path / "whole", train__max_steps=12)) == 0
    one, other = (sha256_file(tmp_path / name / "final" / "lit_model.pth") for name in ("run", "whole"))
    assert one == other


@pytest.mark.skipif(not devices.has_compiler(), reason="no C++ compiler")
def test_compiled_steps_on_several_threads_have_the_same_bits():
    # A token that comes often: compiled code adds its gradients up in the order in which threads come.
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    torch._dynamo.reset()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            embedding, factors_BTC = torch.nn.Embedding(50, 64), torch.randn(4, 2048, 64)
            tokens_BT = torch.randint(0, 50, (4, 2048))
        loss = torch.compile(lambda tokens: (embedding(tokens) * factors_BTC).square().sum(), dynamic=False)
        with training_switches(CPU, "32-true", False):
            gradients = [torch.autograd.grad(loss(tokens_BT), embedding.weight)[0] for _ in range(50)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradients[0], each) for each in gradients)


@pytest.fixture
def gpu(monkeypatch):
    """Lets torch believe in a GPU of a compute capability."""

    def pretend(major: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True, raising=False)

    return pretend


@pytest.mark.parametrize(("major", "expected"), [(7, "32-true"), (8, "bf16-mixed"), (9, "bf16-mixed")])
def test_precision_is_what_the_gpu_has(gpu, major, expected):
    assert default_precision() == "32-true"
    gpu(major)
    assert default_precision() == expected


@pytest.mark.parametrize(
    ("device", "major", "used", "told"),
    [
        (CUDA, 7, True, "warning: this GPU has no bf16 and emulates it, slowly: fp32 is faster"),
        (CUDA, 7, False, "this GPU has no bf16: computed in fp32"),
        (CUDA, 8, True, ""),
        (CPU, 7, True, ""),
    ],
)
def test_emulated_bf16_is_told(gpu, caplog, device, major, used, told):
    caplog.set_level(logging.INFO, "inheritune_lit")
    gpu(major)
    devices.tell_bf16(device, used)
    assert told in caplog.text and bool(caplog.records) == bool(told)


@pytest.mark.parametrize("native", [True, False])
def test_a_teacher_computes_in_what_the_gpu_has(checkpoint, packed, tmp_path, monkeypatch, native):
    seen = []
    monkeypatch.setattr(teaching, "has_native_bf16", lambda: native)
    monkeypatch.setattr(teaching, "_write", lambda folder, settings, gpt, *_: seen.append(gpt.lm_head.weight.dtype))
    command = ["teach", checkpoint, "--data", packed, "--out_dir", tmp_path / "out", "--max_seq_length", "16"]
    assert main(list(map(str, [*command, "--top_k", "3"]))) == 0
    assert seen == [torch.bfloat16 if native else torch.float32]


class TestTriton:
    """A GPU's compiler is looked for before anything is read."""

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch, tmp_path):
        """A machine with all that Triton needs, and nothing else."""
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        self.program("gcc", tmp_path)
        (tmp_path / "Python.h").touch()
        monkeypatch.setattr(devices, "find_spec", lambda name: object())
        monkeypatch.setattr(devices.sysconfig, "get_path", lambda name: str(tmp_path))
        monkeypatch.setattr("inheritune_lit.train.setup.build_optimizer", lambda *args: None)
        monkeypatch.setattr(torch.nn, "Linear", lambda *args, **options: None)

    @staticmethod
    def program(name, folder):
        (folder / name).touch(mode=0o755)

    def test_all_there(self):
        check_machine(TrainingArgs(), CUDA)

    @pytest.mark.parametrize("cc", ["clang", "/nowhere/gcc"])
    def test_the_compiler_is_what_cc_names(self, cc, monkeypatch, tmp_path):
        monkeypatch.setenv("CC", cc)
        with pytest.raises(UserError, match="needs a C compiler"):
            check_machine(TrainingArgs(), CUDA)
        self.program("mine", tmp_path)
        monkeypatch.setenv("CC", str(tmp_path / "mine"))
        check_machine(TrainingArgs(), CUDA)

    @pytest.mark.parametrize("lacking", ["gcc", "Python.h", "triton"])
    def test_what_is_missing_is_named(self, lacking, monkeypatch, tmp_path):
        if lacking == "triton":
            monkeypatch.setattr(devices, "find_spec", lambda name: None)
        else:
            (tmp_path / lacking).unlink()
        for compiled in (None, True):
            with pytest.raises(UserError, match=rf"compiling for a GPU needs .*{lacking}.*--speed.compile false"):
                check_machine(TrainingArgs(speed=SpeedArgs(compile=compiled)), CUDA)
        check_machine(TrainingArgs(speed=SpeedArgs(compile=False)), CUDA)
        check_machine(TrainingArgs(), CPU)
