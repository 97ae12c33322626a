"""The paper's GPT-2 against its mathematics written out, against transformers, and its kernels."""

import json
import math

import pytest
import torch
import transformers
from tiny import make_checkpoint
from torch.nn import functional as F

from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.config import GPT2Config
from inheritune_lit.checkpoint.export import export
from inheritune_lit.errors import UserError
from inheritune_lit.inherit import reference as resolving
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.gpt import build_model
from inheritune_lit.model.load import is_tied, load_model, load_state
from inheritune_lit.references import SHAPES, Shape, find_shape

TOKENS_BT = torch.arange(2 * 19).reshape(2, 19) * 5 % 97


@pytest.fixture
def small_shape(monkeypatch):
    """``paper-gpt2-medium`` with a width that a test can afford."""
    shape = Shape("paper-gpt2-medium", 4, 32, 4)
    monkeypatch.setattr("inheritune_lit.references.SHAPES", (shape,))
    monkeypatch.setattr(resolving, "VOCABULARY", 448)
    return shape


@pytest.fixture
def paper(small_shape, tokenizer_dir, tmp_path):
    """A random one, with every weight large enough to show."""
    out = slice_model(
        SliceArgs("paper-gpt2-medium", n=4, init="random", tokenizer_dir=tokenizer_dir, out_dir=tmp_path / "paper")
    ).folder
    state = load_state(out)
    torch.manual_seed(1)
    larger = {name: value * 10 if value.dim() > 1 else value + torch.randn(32) * 0.3 for name, value in state.items()}
    larger["lm_head.weight"] = larger["transformer.wte.weight"]
    torch.save(larger, out / "lit_model.pth")
    return out


def written_out(state: dict[str, torch.Tensor], tokens: torch.Tensor, heads: int, layers: int) -> torch.Tensor:
    """Logits in fp64: no biases, learned positions, tied head, tanh GELU, scores / sqrt(size) / (layer + 1)."""
    w = {name.removeprefix("transformer."): tensor.double() for name, tensor in state.items()}

    def norm(x, weight):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    B, T = tokens.shape
    x = w["wte.weight"][tokens] + w["wpe.weight"][:T]
    for layer in range(layers):
        block = {name.removeprefix(f"h.{layer}."): t for name, t in w.items() if name.startswith(f"h.{layer}.")}
        q, k, v = (
            part.reshape(B, T, heads, -1).transpose(1, 2)
            for part in (norm(x, block["norm_1.weight"]) @ block["attn.qkv.weight"].T).chunk(3, -1)
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) / (layer + 1)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1)
        x = x + mixed @ block["attn.proj.weight"].T
        x = x + gelu(norm(x, block["norm_2.weight"]) @ block["mlp.fc.weight"].T) @ block["mlp.proj.weight"].T
    return norm(x, w["ln_f.weight"]) @ w["wte.weight"].T


def test_logits_and_gradients_equal_the_mathematics(paper):
    model = load_model(paper)
    state = {name: value.clone().requires_grad_() for name, value in load_state(paper).items()}
    expected = written_out(state, TOKENS_BT, heads=4, layers=4)
    found = model(TOKENS_BT)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    targets = TOKENS_BT.roll(-1, 1).flatten()
    F.cross_entropy(found.flatten(0, 1), targets).backward()
    names = [name for name in state if name != "lm_head.weight"]
    grads = torch.autograd.grad(F.cross_entropy(expected.flatten(0, 1), targets), [state[name] for name in names])
    for name, grad in zip(names, grads, strict=True):
        torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=1e-3, atol=1e-5)


def test_export_equals_transformers(paper, tmp_path):
    hf = export(ExportArgs(paper, tmp_path / "hf")).folder
    for attention in ("eager", "sdpa"):
        model = transformers.AutoModelForCausalLM.from_pretrained(hf, attn_implementation=attention).eval()
        assert not model.config.scale_attn_by_inverse_layer_idx  # folded into the queries
        with torch.no_grad():
            torch.testing.assert_close(model(TOKENS_BT).logits, load_model(paper)(TOKENS_BT), rtol=1e-3, atol=1e-3)
    assert json.loads((hf / "config.json").read_text())["vocab_size"] == 448


def test_attention_is_fused_and_takes_the_scale(paper, monkeypatch):
    """No mask and no dropout, so that flash attention applies, and the layer's number in the kernel's own scale."""
    calls = []
    original = F.scaled_dot_product_attention

    def noted(*args, **kwargs):
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    model = load_model(paper)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        model(TOKENS_BT).sum().backward()
    assert [call["scale"] for call in calls] == pytest.approx([8**-0.5 / (layer + 1) for layer in range(4)])
    assert all(call["attn_mask"] is None and call["is_causal"] and not call["dropout_p"] for call in calls)


def test_a_fresh_model_follows_the_papers_scheme(small_shape, tokenizer_dir, tmp_path):
    out = slice_model(
        SliceArgs("paper-gpt2-medium", n=3, init="random", tokenizer_dir=tokenizer_dir, out_dir=tmp_path / "out")
    ).folder
    state = load_state(out)
    assert is_tied(state)
    assert not any(name.endswith("bias") for name in state)
    assert state["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    assert state["transformer.h.2.mlp.proj.weight"].std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert state["transformer.ln_f.weight"].eq(1).all()
    config = load_model(out).config
    assert (config.n_layer, config.scale_attn_by_inverse_layer_idx, config.norm_bias) == (3, True, False)
    assert (out / "tokenizer.model").is_file()


def test_slices_of_a_trained_one(paper, tmp_path):
    """Half width and first layers of a model without biases, by Table 10's proportions."""
    whole = load_state(paper)
    half = load_model(slice_model(SliceArgs(str(paper), init="half-width", out_dir=tmp_path / "half")).folder)
    assert (half.config.n_layer, half.config.n_embd, half.config.n_head) == (4, 16, 2)
    assert torch.equal(half.transformer.h[3].mlp.fc.weight, whole["transformer.h.3.mlp.fc.weight"][:64, :16])
    first = load_model(slice_model(SliceArgs(str(paper), n=2, out_dir=tmp_path / "first")).folder)
    expected = written_out(whole, TOKENS_BT, heads=4, layers=2)
    torch.testing.assert_close(first(TOKENS_BT), expected.float(), rtol=1e-4, atol=1e-4)


def test_as_the_code_inherits(paper, tokenizer_dir, tmp_path):
    """Blocks and the tied embedding, but neither positions nor the final norm."""
    whole = load_state(paper)
    out = slice_model(SliceArgs(str(paper), n=2, positions=False, final_norm=False, out_dir=tmp_path / "code")).folder
    for name, tensor in load_state(out).items():
        fresh = name in ("transformer.wpe.weight", "transformer.ln_f.weight")
        assert torch.equal(tensor, whole[name]) != fresh, name
    make_checkpoint(tmp_path / "llama", tokenizer_dir)
    with pytest.raises(UserError, match="no learned positions"):
        slice_model(SliceArgs(str(tmp_path / "llama"), n=2, positions=False, out_dir=tmp_path / "out"))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_named_shapes_are_table_10s(shape):
    published = {
        "paper-gpt2-medium": (24, 1024, 16, 355),
        "paper-gpt2-large": (36, 1280, 20, 770),
        "paper-gpt2-large-32l": (32, 1280, 20, 680),
        "paper-gpt2-xlarge": (48, 1600, 25, 1500),
    }
    layers, width, heads, millions = published[shape.name]
    assert (shape.layers, shape.width, shape.heads) == (layers, width, heads)
    assert shape.parameters / 1e6 == pytest.approx(millions, rel=0.05)
    config = GPT2Config(
        block_size=1024,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        padded_vocab_size=50304,
        rotary_percentage=0.0,
        parallel_residual=False,
        bias=False,
        norm_bias=False,
    )
    with torch.device("meta"):
        model = build_model(config)
    assert sum(p.numel() for p in model.parameters()) - model.lm_head.weight.numel() == shape.parameters


def test_refusals(small_shape, tokenizer_dir, tmp_path, paper):
    with pytest.raises(UserError, match="give --init random"):
        slice_model(SliceArgs("paper-gpt2-medium", n=2, tokenizer_dir=tokenizer_dir, out_dir=tmp_path / "out"))
    with pytest.raises(UserError, match="brings its own tokenizer"):
        slice_model(SliceArgs(str(paper), n=2, tokenizer_dir=tokenizer_dir, out_dir=tmp_path / "out"))
    with pytest.raises(UserError, match="tokenizer"):
        slice_model(
            SliceArgs("paper-gpt2-medium", n=2, init="random", tokenizer_dir=tmp_path, out_dir=tmp_path / "out")
        )
    assert find_shape("gpt2-medium") is None
