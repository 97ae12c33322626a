"""A training step at full width but of two layers, on simulated CUDA: quick."""

import pytest

OPENLLAMA = {"ref": "openllama-3b", "n": 2, "micro": 1, "block": 256}
TWO_WAITS = {"item @ train/loop.py train_step": 2}  # for the loss and the gradients' norm


def on_the_gpu(*weights: str) -> dict[str, list[str]]:
    return {
        "parameters": [f"cuda:0 torch.{dtype}" for dtype in weights],
        "buffers": ["cuda:0 torch.float32"],  # rotary tables
        "optimizer": ["cuda:0 torch.float32"],  # moments, and masters of bf16 weights
    }


def test_everything_is_on_the_gpu(simulate):
    found = simulate(**OPENLLAMA, precision="bf16-true", speed__compile="false")
    assert found["devices"] == on_the_gpu("bfloat16")
    assert found["waits"] == TWO_WAITS
    # Two layers, two micro-batches; heads of 100 are padded to 104.
    assert found["attention"] == {"cudnn_attention": 4, "cudnn_attention_backward": 4}


def test_compiled_step_is_one_graph_each_way(simulate):
    found = simulate(ref="smollm2-135m", n=2, micro=2, block=128)
    assert found["devices"] == on_the_gpu("bfloat16", "float32")
    assert found["kernels"] == {"loss": "plain", "compiled": True}
    assert found["compiled"]["graphs"] == 2
    assert found["compiled"]["logits_fp32"] == []
    assert found["waits"] == TWO_WAITS
    assert found["attention"] == {"cudnn_attention": 4, "cudnn_attention_backward": 4}


@pytest.mark.slow
def test_flash_attention_where_cudnn_is_slower(simulate):
    found = simulate(**OPENLLAMA, gpu="a100", speed__compile="false")
    assert found["attention"] == {"flash_attention": 4, "flash_attention_backward": 4}


@pytest.mark.slow
def test_fp32_step_of_shared_keys(simulate):
    found = simulate(ref="smollm2-135m", n=2, micro=1, block=128, precision="32-true", speed__compile="false")
    # Neither flash nor cuDNN attention takes fp32, and what does takes no shared keys.
    assert found["attention"] == {"efficient_attention": 4, "efficient_attention_backward": 4}
    # Between steps there are weights and two moments, and rotary tables.
    assert found["live_gb"] == pytest.approx(12 * found["model"]["parameters"] / 1e9, rel=0.01)
