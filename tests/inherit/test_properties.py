"""Random architectures and layer choices: logits equal transformers', through the slice and through its export."""

import tempfile
from pathlib import Path

import torch
import transformers
from families import CASES, build, logits_without_layers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import build_llama, randomise
from safetensors.torch import load_file

from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.export import export
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.plan import half_width_config
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.load import load_model, load_state

TOKENS_BT = torch.arange(13).reshape(1, 13) * 5 % 61
ONCE = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def llamas(draw) -> tuple[dict, list[int]]:
    groups = draw(st.integers(1, 4))
    heads = groups * draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 6))
    depth = draw(st.integers(1, 7))
    config = {
        "vocab_size": 61,
        "hidden_size": draw(st.sampled_from([heads * head_dim, 2 * draw(st.integers(4, 16))])),
        "head_dim": head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": draw(st.integers(1, 40)),
        "num_hidden_layers": depth,
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([100.0, 10000.0, 500000.0])),
        "seed": draw(st.integers(0, 9)),
    }
    return config, draw(st.lists(st.integers(0, depth - 1), min_size=1, max_size=8))


@torch.no_grad()
def check(model, layers: list[int], folder: Path) -> None:
    """Slice, and export, then compare three models."""
    model.save_pretrained(folder / "ref", max_shard_size="30KB")
    expected = logits_without_layers(model, layers, TOKENS_BT)
    out = slice_model(SliceArgs(str(folder / "ref"), layers=",".join(map(str, layers)), out_dir=folder / "out")).folder
    torch.testing.assert_close(load_model(out)(TOKENS_BT), expected, rtol=1e-3, atol=1e-4)
    export(ExportArgs(out, folder / "hf"))
    exported, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "hf", output_loading_info=True, attn_implementation=model.config._attn_implementation
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(exported(TOKENS_BT, use_cache=False).logits, expected, rtol=1e-3, atol=1e-4)


@ONCE
@given(llamas())
def test_llama(case):
    config, layers = case
    with tempfile.TemporaryDirectory() as folder:
        check(build_llama(**config), layers, Path(folder))


@settings(ONCE, max_examples=12)
@given(
    heads=st.integers(1, 5),
    head_size=st.integers(1, 6),
    rotary=st.sampled_from([0.25, 0.5, 1.0]),
    parallel=st.booleans(),
    tied=st.booleans(),
    bias=st.booleans(),
    layers=st.lists(st.integers(0, 2), min_size=1, max_size=5),
)
def test_gpt_neox(heads, head_size, rotary, parallel, tied, bias, layers):
    torch.manual_seed(heads)
    config = transformers.GPTNeoXConfig(
        vocab_size=61,
        hidden_size=8 * heads * head_size,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=heads,
        rotary_pct=rotary,
        use_parallel_residual=parallel,
        tie_word_embeddings=tied,
        attention_bias=bias,
        max_position_embeddings=32,
    )
    model = randomise(transformers.GPTNeoXForCausalLM(config).eval())
    with tempfile.TemporaryDirectory() as folder:
        check(model, layers, Path(folder))


@settings(ONCE, max_examples=12)
@given(
    heads=st.integers(1, 5),
    head_size=st.integers(1, 6),
    inner=st.sampled_from([None, 10]),
    activation=st.sampled_from(["gelu_new", "gelu"]),
    layers=st.lists(st.integers(0, 2), min_size=1, max_size=5),
)
def test_gpt2(heads, head_size, inner, activation, layers):
    torch.manual_seed(heads)
    config = transformers.GPT2Config(
        vocab_size=61,
        n_embd=heads * head_size,
        n_head=heads,
        n_layer=3,
        n_inner=inner,
        activation_function=activation,
        n_positions=32,
        initializer_range=0.3,
    )
    model = randomise(transformers.GPT2LMHeadModel(config).eval())
    with tempfile.TemporaryDirectory() as folder:
        check(model, layers, Path(folder))


@st.composite
def families(draw) -> tuple[str, dict, list[int]]:
    """A case with heads, groups, head size, depth and ties of its own."""
    case = draw(st.sampled_from(sorted(CASES)))
    falcon, free_head_size = "falcon" in case, "head_dim" in CASES[case][1]
    groups = draw(st.integers(1, 3))
    heads = groups * draw(st.integers(1, 3))
    head_dim = 4 * draw(st.integers(1, 4))
    depth = draw(st.integers(1, 7))
    if case == "falcon-multi-head":  # transformers builds this with other groups, but cannot run it
        groups = heads
    sizes = {
        "num_attention_heads": heads,
        "num_kv_heads" if falcon else "num_key_value_heads": groups,
        "hidden_size": draw(st.sampled_from([8, 20, 36])) if free_head_size else heads * head_dim,
        "num_hidden_layers": depth,
        "tie_word_embeddings": draw(st.booleans()),
        "seed": draw(st.integers(0, 9)),
    }
    if free_head_size:
        sizes["head_dim"] = head_dim
    return case, sizes, draw(st.lists(st.integers(0, depth - 1), min_size=1, max_size=8))


@settings(ONCE, max_examples=40)
@given(families())
def test_families(case):
    name, sizes, layers = case
    model = build(name, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        check(model, layers, Path(folder))


@ONCE
@given(llamas())
def test_half_width_is_the_upper_left_of_every_matrix(case):
    config, _ = case
    config |= {"hidden_size": 16, "intermediate_size": 2 * config["intermediate_size"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_llama(**config)
        model.save_pretrained(folder / "ref")
        whole = slice_model(
            SliceArgs(str(folder / "ref"), n=config["num_hidden_layers"], out_dir=folder / "whole")
        ).folder
        narrow = slice_model(SliceArgs(str(folder / "ref"), init="half-width", out_dir=folder / "narrow")).folder
        wide_state, state = load_state(whole), load_state(narrow)
        expected = half_width_config(load_config(whole))
        assert load_model(narrow).config.n_head == expected.n_head <= config["num_attention_heads"]
        for key, tensor in state.items():
            if ".attn.qkv." not in key:
                upper_left = wide_state[key][tuple(slice(size) for size in tensor.shape)]
                assert torch.equal(tensor, upper_left), key
        size, stored = config["head_dim"], load_file(folder / "ref/model.safetensors")
        rows = (expected.n_head * size, expected.n_query_groups * size, expected.n_query_groups * size)
        for layer in range(expected.n_layer):
            parts = [stored[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv"]
            joined = torch.cat([part[:count, :8] for part, count in zip(parts, rows, strict=True)])
            assert torch.equal(state[f"transformer.h.{layer}.attn.qkv.weight"], joined)
