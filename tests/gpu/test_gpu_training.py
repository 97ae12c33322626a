"""Training on a GPU: losses as on a CPU, the kernels that are meant, the memory that was planned, exact restarts."""

import gc
from dataclasses import replace

import pytest
import torch
from gpu_steps import DEVICE, MICRO, SAMPLES, SHAPE, WEIGHTS, draw_tokens, train, train_plainly
from train_command import kill_at_step, losses_of, pretrain_command

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.cli import main
from inheritune_lit.model.gpt import build_model
from inheritune_lit.model.load import load_state

T, VOCABULARY, STEPS = SHAPE["block_size"], 400, 4
# How far losses may be from fp32's on the CPU: bf16 has 8 bits, TF32 has 11.
TOLERANCE = {"bf16-mixed": 1e-2, "bf16-true": 1e-2, "32-true": 2e-3}


@pytest.fixture(scope="module")
def tokens_NT1():
    return draw_tokens(STEPS, T, VOCABULARY)


@pytest.fixture
def expected(build, tokens_NT1):
    return train_plainly(build(), tokens_NT1)


@pytest.mark.parametrize("precision", list(WEIGHTS))
@pytest.mark.parametrize("compiled", [False, True])
def test_steps_are_those_of_a_plain_loop_on_the_cpu(build, tokens_NT1, expected, precision, compiled):
    found = train(build(WEIGHTS[precision]), tokens_NT1, precision, compile=compiled)
    losses, norms = expected
    assert losses[-1] < losses[0] - 0.1  # there was something to learn
    assert found.losses == pytest.approx(losses, rel=TOLERANCE[precision])
    assert found.norms == pytest.approx(norms, rel=10 * TOLERANCE[precision])


@pytest.mark.parametrize("precision", list(WEIGHTS))
def test_compiled_is_eager(build, tokens_NT1, precision):
    eager, compiled = (train(build(WEIGHTS[precision]), tokens_NT1, precision, compile=c) for c in (False, True))
    assert compiled.losses == pytest.approx(eager.losses, rel=TOLERANCE[precision] / 2)


def test_recomputed_activations_change_nothing(build, tokens_NT1, expected):
    found = train(build(), tokens_NT1, "bf16-mixed", activation_checkpointing=True)
    assert found.losses == pytest.approx(expected[0], rel=TOLERANCE["bf16-mixed"])


def test_fp8_is_close(build, tokens_NT1, expected):
    pytest.importorskip("torchao")
    if DEVICE.type != "cuda" or torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")
    found = train(build(), tokens_NT1, "bf16-mixed", fp8=True)
    assert found.losses == pytest.approx(expected[0], rel=0.05)


def test_8_bit_optimizer_states_are_close(build, tokens_NT1, expected):
    pytest.importorskip("bitsandbytes")
    found = train(build(torch.bfloat16), tokens_NT1, "bf16-true", optimizer="adamw8bit")
    assert found.losses == pytest.approx(expected[0], rel=0.05)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("compiled", [False, True])
def test_attention_runs_in_a_fused_kernel(build, tokens_NT1, precision, compiled):
    """Forward and backward pass run in flash or cuDNN attention, also with heads of 100."""
    from torch.profiler import ProfilerActivity, profile

    step = train(build(WEIGHTS[precision]), tokens_NT1, precision, compile=compiled).trainer.train_step
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    launches = {event.key.lower(): event.count for event in profiled.key_averages()}
    fused = {name: count for name, count in launches.items() if "flash" in name or ("cudnn" in name and "sdpa" in name)}
    backward = [name for name in fused if "bwd" in name or "bprop" in name or "backward" in name]
    each = 2 * SAMPLES // MICRO  # layers, micro-batches
    assert sum(count for name, count in fused.items() if name not in backward) >= each, launches
    assert sum(fused[name] for name in backward) >= each, launches


# Large enough that what no plan counts, such as the fused optimizer's workspace, does not weigh.
BIG = {"n_layer": 6, "n_embd": 1024, "n_head": 8, "n_query_groups": 8, "intermediate_size": 2816, "block_size": 1024}
BIG |= {"vocab_size": 32000, "padded_vocab_size": 32000, "rotary_percentage": 1.0, "parallel_residual": False}
BIG |= {"bias": False, "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP"}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("precision", list(WEIGHTS))
def test_memory_is_what_the_plan_says(precision, compiled):
    gpt = build_model(Config(**BIG)).to(WEIGHTS[precision])
    found = train(gpt, draw_tokens(3, 1024, 32000), precision, compile=compiled)
    assert found.peak == pytest.approx(found.predicted, rel=0.1)


def test_a_killed_run_continues_bit_for_bit_where_it_is_asked_for(checkpoint, packed, tmp_path):
    settings = {"train__max_seq_length": 64, "precision": "bf16-mixed", "deterministic": "true"}
    assert main(pretrain_command(checkpoint, packed, tmp_path / "whole", **settings)) == 0
    command = pretrain_command(checkpoint, packed, tmp_path / "killed", **settings)
    kill_at_step(17, command)
    assert main(command) == 0
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")
    killed, whole = (load_state(tmp_path / run / "final") for run in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


def test_out_of_memory_is_one_line_that_says_what_fits(checkpoint, packed, tmp_path, capsys):
    if DEVICE.type != "cuda":
        pytest.skip("fills a GPU")
    gc.collect()
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_allocated() + 200_000_000  # bytes: enough for the model, not for its activations
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        size = {"train__global_batch_size": 64, "train__micro_batch_size": 64, "train__max_seq_length": 256}
        assert main(pretrain_command(checkpoint, packed, tmp_path / "run", precision="bf16-mixed", **size)) == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert "out of memory" in capsys.readouterr().err.splitlines()[-1]


def test_a_window_as_long_as_the_sample_changes_nothing(build, tokens_NT1, expected):
    """Models with sliding windows, such as Gemma's, train alike where nothing is out of sight."""
    windowed, plain = build(), build()
    config = replace(plain.config, sliding_window_size=T, sliding_window_indices=[1] * plain.config.n_layer)
    windowed = build_model(config)
    windowed.load_state_dict(plain.state_dict())
    found = train(windowed, tokens_NT1, "bf16-mixed", compile=False)
    assert found.losses == pytest.approx(expected[0], rel=TOLERANCE["bf16-mixed"])
