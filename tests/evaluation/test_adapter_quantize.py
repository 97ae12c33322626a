"""8- and 4-bit weights: the model computes with the weights that bitsandbytes' own functions give back."""

import pytest
import torch
from random_models import build_llama

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.load import load_reference
from inheritune_lit.model import load as quantize
from inheritune_lit.model.load import quantize_linears

functional = pytest.importorskip("bitsandbytes.functional")


@pytest.mark.parametrize("mode", ["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8"])
def test_the_model_computes_with_rounded_weights(tmp_path, mode):
    build_llama(hidden_size=64, intermediate_size=128, initializer_range=0.05).save_pretrained(tmp_path)
    model, reference = load_reference(tmp_path), load_reference(tmp_path)
    exact = load_reference(tmp_path)
    head = model.lm_head.weight.clone()
    quantize_linears(model, mode, "cpu")
    assert torch.equal(model.lm_head.weight, head)
    quantised = 0
    for block in reference.transformer.h:
        for linear in block.modules():
            if isinstance(linear, torch.nn.Linear):
                linear.weight.data = _rounded(linear.weight.data, mode)
                quantised += 1
    assert quantised == 5 * 5
    tokens_BT = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs, unrounded = model(tokens_BT), reference(tokens_BT), exact(tokens_BT)
    gap = (unrounded - theirs).abs().mean()
    assert gap > 1e-3
    # LLM.int8() rounds activations too.
    assert (ours - theirs).abs().mean() < (gap if mode == "bnb.int8" else 0.02 * gap)


def _rounded(weight: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == "bnb.int8":
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        return (weight / scale).round() * scale
    kind = mode.removeprefix("bnb.")
    packed, state = functional.quantize_4bit(
        weight, quant_type=kind.removesuffix("-dq"), compress_statistics=kind.endswith("-dq")
    )
    return functional.dequantize_4bit(packed, state).float()


def test_a_kernel_that_is_missing_is_told(tmp_path, monkeypatch):
    build_llama().save_pretrained(tmp_path)

    def fail(block, device, dtype):
        raise NotImplementedError("no kernel\nhere")

    monkeypatch.setattr(quantize, "_try_each", fail)
    with pytest.raises(UserError, match=r"^bitsandbytes cannot do bnb.int8 on cpu \(no kernel\); choose another"):
        quantize_linears(load_reference(tmp_path), "bnb.int8", "cpu")
