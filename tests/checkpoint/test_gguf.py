"""A GGUF file as reference, against transformers' own reading of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, trainers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest, sha256_file
from inheritune_lit.model.load import load_model
from inheritune_lit.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁fox"]


def write_gguf(path: Path, tokenizer=None, metadata=None, tensors=None, left_out=()) -> Path:
    """A random three-layer LLaMA as llama.cpp's tools write it, with other or more metadata and tensors."""
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    words = {"model": "llama", "tokens": WORDS, "scores": [0.0] * 261, "token_type": [2, 3, 3] + [6] * 256 + [1, 1]}
    words |= {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    words = tokenizer or words
    size = len(words["tokens"])
    words = {"llama.rope.freq_base": 10000.0, **{f"tokenizer.ggml.{key}": value for key, value in words.items()}}
    for key, value in {**words, **(metadata or {})}.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape) * 0.2 + (1 if "norm" in name else 0)
        if name not in left_out:
            writer.add_tensor(name + ".weight", values.astype(np.float32))

    add("token_embd", size, 32)
    add("output", size, 32)
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
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, np.asarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def gguf_file(tmp_path) -> Path:
    return write_gguf(tmp_path / "models/tiny.gguf")


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


@pytest.mark.parametrize("blocks", [1, 40])  # of 1 kB per file: too few for the tokenizer, or for the weights
def test_too_little_space_is_not_the_files_fault(gguf_file, tmp_path, blocks):
    command = f"{sys.executable} -m inheritune_lit slice {gguf_file} --n 2 --out_dir {tmp_path}/out"
    done = subprocess.run(["bash", "-c", f"ulimit -f {blocks}; exec {command}"], capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("inheritune: error: ")]
    assert "too little space for" in line and "set TMPDIR" in line


def slice_of(path: Path, tmp_path: Path) -> Path:
    return slice_model(SliceArgs(str(path), n=2, out_dir=tmp_path / "out")).folder


TEXTS = [
    "The quick  brown fox",
    " leading",
    "x = 1234567\n\n    return x's",
    "naïve café ☕ \u0065\u0301",
    "",
    "it's 3.14%",
]


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary(tokenizer_dir, tmp_path, prefix):
    content = (tokenizer_dir / "tokenizer.model").read_bytes()
    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    proto.normalizer_spec.add_dummy_prefix = prefix
    judge = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    words = {"model": "llama", "tokens": [one.piece for one in proto.pieces] + ["<|end|>", "<pad>"]}
    words |= {"scores": [one.score for one in proto.pieces] + [0.0] * 2}
    words |= {"token_type": [one.type for one in proto.pieces] + [3, 5], "add_space_prefix": prefix}
    path = write_gguf(tmp_path / "models/m.gguf", words | {"bos_token_id": 1, "eos_token_id": 400})
    out = slice_of(path, tmp_path)
    ours = Tokenizer(out)
    assert ours.encode_batch(TEXTS) == [judge.encode(text) for text in TEXTS]
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (1, 400, 402)
    assert ours.encode("fox<|end|>")[-1] == 400
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (1, 400, 402)


RULES = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": None,
    "qwen2": None,
}


@pytest.mark.parametrize("pre", RULES)
def test_a_byte_level_vocabulary(tmp_path, pre):
    """Against the published tokenizers' own rules, and for two kinds against how many digits stay together."""
    judge = FastTokenizer(models.BPE())
    judge.pre_tokenizer = pre_tokenizers.Sequence(RULES[pre] or [pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    judge.train_from_iterator([Path(__file__).read_text(), "123 " * 99, "1234567 " * 99], trainer)
    content = json.loads(judge.to_str())["model"]
    tokens = ["<|end|>", "<|tool|>", *sorted(content["vocab"], key=content["vocab"].get)]
    merges = [" ".join(pair) for pair in content["merges"]]
    words = {"model": "gpt2", "tokens": tokens, "merges": merges, "token_type": [3, 4] + [1] * (len(tokens) - 2)}
    path = write_gguf(tmp_path / "models/m.gguf", words | {"pre": pre, "bos_token_id": 1, "eos_token_id": 0})
    out = slice_of(path, tmp_path)
    ours = Tokenizer(out)
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (1, 0, len(tokens))
    if RULES[pre]:
        assert ours.encode_batch(TEXTS) == [[i + 2 for i in judge.encode(text).ids] for text in TEXTS]
    assert [ours.decode(ours.encode(text)) for text in TEXTS[:3]] == TEXTS[:3]
    assert ours.encode("a<|tool|>b")[1] == 1
    digits = max(len(tokens[i]) for i in ours.encode("1234567"))
    assert digits == {"smollm": 1, "qwen2": 1, "llama-bpe": 3}.get(pre, digits)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.encode("fox") == [1] * (pre == "llama-bpe") + ours.encode("fox")


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALINGS = {
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "llama3.2": {"rope_type": "llama3", **LLAMA3, "factor": 32.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "old linear": {"rope_type": "linear", "factor": 2.0},
    "none": {"rope_type": "default"},
    "no factors": {"rope_type": "default"},
}


@torch.no_grad()
@pytest.mark.parametrize("kind", SCALINGS)
def test_rope_scaling_is_taken(tmp_path, kind):
    wanted = SCALINGS[kind]
    metadata = {
        "linear": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        "old linear": {"llama.rope.scale_linear": 2.0},
        "none": {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
    }.get(kind, {})
    tensors = {"rope_freqs.weight": [1.0] * 4} if kind == "no factors" else {}
    base = 10000.0
    if wanted["rope_type"] == "llama3":
        base = metadata["llama.rope.freq_base"] = 500000.0
        rope = {"rope_theta": base, **wanted}
        config = transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=rope)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        tensors["rope_freqs.weight"] = (base ** (-torch.arange(0, 8, 2) / 8) / scaled).numpy()
    out = slice_of(write_gguf(tmp_path / "models/m.gguf", metadata=metadata, tensors=tensors), tmp_path)
    hf = json.loads((out / "config.json").read_text())
    assert hf["rope_parameters"] == {"rope_theta": base, **wanted}
    exported = transformers.LlamaConfig.from_pretrained(out)
    assert exported.rope_parameters["rope_type"] == wanted["rope_type"]


REFUSED = {
    "rope.scaling.type": {"metadata": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}},
    "rope_freqs.weight": {"tensors": {"rope_freqs.weight": [1, 2, 1, 4]}},
    "rope_factors_long.weight": {"tensors": {"rope_factors_long.weight": [1, 1, 1, 4]}},
    "llama.attention.key_length": {"metadata": {"llama.attention.key_length": 16}},
    "llama.attention.sliding_window": {"metadata": {"llama.attention.sliding_window": 16}},
    "llama.attention.causal": {"metadata": {"llama.attention.causal": False}},
    "llama.logit_scale": {"metadata": {"llama.logit_scale": 0.5}},
    "llama.expert_count": {"metadata": {"llama.expert_count": 4}},
    "llama.attention.scale": {"metadata": {"llama.attention.scale": 0.25}},
    "split.count": {"metadata": {"split.count": 2}},
    "general.type": {"metadata": {"general.type": "adapter"}},
    "tokenizer.ggml.pre": {"tokenizer": {"model": "gpt2", "tokens": ["a", "b"], "pre": "tekken"}},
    "tokenizer.ggml.model": {"tokenizer": {"model": "rwkv", "tokens": ["a", "b"]}},
    "tokenizer.ggml.eos_token_id": {"tokenizer": {"model": "gpt2", "tokens": ["a", "b"], "eos_token_id": 2}},
    "tokenizer.ggml.merges": {"tokenizer": {"model": "gpt2", "tokens": ["a", "b"], "merges": ["a c"]}},
    "invalid enumerator": {"tokenizer": {"model": "llama", "tokens": ["a", "b", "c"], "token_type": [1, 1, 99]}},
    "tokenizer.ggml": {"tokenizer": {"model": "gpt2", "tokens": ["a", "a"]}},
    "blk.0.attn_q.bias": {"tensors": {f"blk.{layer}.attn_q.bias": [0.5] * 32 for layer in range(3)}},
    "model.layers.1.mlp.up_proj.weight": {"left_out": ["blk.1.ffn_up"]},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_name(tmp_path, named, capfd):
    path = write_gguf(tmp_path / "models/m.gguf", **REFUSED[named])
    capfd.readouterr()
    with pytest.raises(UserError) as caught:
        slice_of(path, tmp_path)
    assert named in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    if "llama." in named or "tokenizer" in named:  # the others show while the weights are read
        assert capfd.readouterr().err == ""


def test_metadata_without_effect(tmp_path):
    metadata = {"llama.attention.key_length": 8, "llama.attention.sliding_window": 64, "llama.logit_scale": 1.0}
    metadata |= {"llama.attention.causal": True, "llama.expert_count": 0, "general.type": "model"}
    assert slice_of(write_gguf(tmp_path / "models/m.gguf", metadata=metadata), tmp_path).is_dir()
