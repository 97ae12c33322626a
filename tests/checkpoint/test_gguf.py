"""A GGUF file as reference, against transformers' own reading of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest, sha256_file
from inheritune_lit.model.load import load_model
from inheritune_lit.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁fox"]


@pytest.fixture
def gguf_file(tmp_path) -> Path:
    """A random two-layer LLaMA as llama.cpp's tools write it."""
    path = tmp_path / "models/tiny.gguf"
    path.parent.mkdir()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([0.0] * len(WORDS))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1, 1])
    for kind, number in (("unk", 0), ("bos", 1), ("eos", 2)):
        getattr(writer, f"add_{kind}_token_id")(number)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape) * 0.2 + (1 if "norm" in name else 0)
        writer.add_tensor(name + ".weight", values.astype(np.float32))

    add("token_embd", len(WORDS), 32)
    add("output", len(WORDS), 32)
    add("output_norm", 32)
    for layer in range(3):
        for name, shape in (
            ("attn_norm", (32,)),
            ("attn_q", (32, 32)),
            ("attn_k", (16, 32)),
            ("attn_v", (16, 32)),
            ("attn_output", (32, 32)),
            ("ffn_norm", (32,)),
            ("ffn_gate", (48, 32)),
            ("ffn_up", (48, 32)),
            ("ffn_down", (32, 48)),
        ):
            add(f"blk.{layer}.{name}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def test_slice_of_a_gguf_file(gguf_file, tmp_path):
    tokens_BT = torch.arange(9).reshape(1, 9) * 7
    for ref in (gguf_file, gguf_file.parent):
        # First: under Python 3.10 transformers alone finds no version of gguf, and refuses.
        out = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / f"out-{ref.name}")).folder
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.bfloat16
        ).float()
        model.model.layers = model.model.layers[:2]
        expected = model(tokens_BT, use_cache=False).logits
        torch.testing.assert_close(load_model(out, dtype=torch.float32)(tokens_BT), expected, rtol=1e-4, atol=1e-5)
    source = read_manifest(out)["reference"]
    assert (source["format"], source["name"]) == ("gguf", "tiny")
    assert source["files"][0]["sha256"] == sha256_file(gguf_file)
    assert Tokenizer(out).decode([257 + 2, 258 + 2]) == "the fox"


def test_damaged_gguf(gguf_file, tmp_path):
    data = gguf_file.read_bytes()
    for damaged, message in ((data[:2000], "cannot be read"), (b"PK" + data, "not a GGUF file")):
        gguf_file.write_bytes(damaged)
        with pytest.raises(UserError, match=message) as caught:
            slice_model(SliceArgs(str(gguf_file), n=1, out_dir=tmp_path / "out"))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
