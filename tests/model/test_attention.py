"""Faster attention and recomputed activations against litgpt's plain ones."""

import shutil

import pytest
import torch
from litgpt.model import GPT
from tiny import SHAPE

from inheritune_lit.checkpoint.config import Config, GPT2Config
from inheritune_lit.model.attention import attention_kernel, fuse_attention
from inheritune_lit.model.gpt import build_model, checkpoint_activations
from inheritune_lit.train.loss import TrainingModel

GPT2_SHAPE = {
    "name": "gpt2",
    "block_size": 32,
    "n_layer": 3,
    "n_embd": 40,
    "n_head": 4,
    "padded_vocab_size": 400,
    "rotary_percentage": 0.0,
    "parallel_residual": False,
    "scale_attn_by_inverse_layer_idx": True,
}
# OpenLLaMA-3B's heads of 100 in small: 10 is no multiple of 8 either.
CONFIGS = {
    "llama": Config(**{**SHAPE, "n_embd": 40, "head_size": 10}),
    "gpt2": GPT2Config(**GPT2_SHAPE),
}


def gradients(
    model: GPT, kernel: str = "plain", compiled: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    tokens = torch.randint(0, 400, (2, 33))
    model.zero_grad()
    module = TrainingModel(model, kernel)
    loss = (torch.compile(module, dynamic=False) if compiled else module)(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def expect_same(one, other, atol=1e-6):
    torch.testing.assert_close(other[0], one[0])
    for name, grad in one[1].items():
        torch.testing.assert_close(other[1][name], grad, rtol=1e-4, atol=atol, msg=name)


@pytest.fixture(params=CONFIGS)
def model(request) -> GPT:
    torch.manual_seed(0)
    return build_model(CONFIGS[request.param])


def test_padded_heads_compute_the_same(model):
    plain = gradients(model)
    fuse_attention(model)
    seen = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watch(q, k, v, **options):
        seen.append((q.shape[-1], k.shape[-1], v.shape[-1]))
        return original(q, k, v, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
        padded = gradients(model)
    expect_same(plain, padded)
    assert set(seen) == {(16, 16, 16)}


def test_recomputed_activations_give_the_same_gradients(model):
    plain = gradients(model)
    names = list(model.state_dict())
    checkpoint_activations(model)
    expect_same(plain, gradients(model), atol=0)
    assert list(model.state_dict()) == names


def test_chunked_loss_leaves_the_head_as_it_was(model):
    before = model(torch.zeros(1, 4, dtype=torch.long))
    expect_same(gradients(model), gradients(model, "chunked"))
    assert torch.equal(model(torch.zeros(1, 4, dtype=torch.long)), before)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("padded", [False, True])
def test_compiled_model_and_loss_give_the_same_gradients(model, padded):
    plain = gradients(model)
    if padded:
        fuse_attention(model)
    expect_same(plain, gradients(model, compiled=True))


def test_the_chosen_kernel_is_named():
    cpu = torch.device("cpu")
    assert attention_kernel(GPT(Config(**SHAPE)), 32, cpu, torch.float32) == "flash_attention"
    soft = Config(**{**SHAPE, "attention_logit_softcapping": 50.0})
    assert attention_kernel(GPT(soft), 32, cpu, torch.float32).startswith("eager")
