"""Tiny checkpoints and packed data for the tests of training and evaluation."""

import json
import random
import shutil
from pathlib import Path

import torch
import yaml
from litgpt.model import GPT

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.prepare import prepare

SHAPE = {
    "name": "tiny",
    "block_size": 32,
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_query_groups": 2,
    "intermediate_size": 48,
    "vocab_size": 400,
    "padded_vocab_size": 400,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
    "norm_class_name": "RMSNorm",
    "norm_eps": 1e-5,
    "mlp_class_name": "LLaMAMLP",
}

HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "vocab_size": 400,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_checkpoint(folder: Path, tokenizer_dir: Path, tied: bool = False, seed: int = 0, **changes: object) -> GPT:
    """Write a litgpt checkpoint folder with random weights and return its model."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    shape = {**SHAPE, **changes}
    model = GPT(Config(**shape))
    model.apply(model._init_weights)
    if tied:
        model.lm_head.weight = model.transformer.wte.weight
    torch.save(model.state_dict(), folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(shape))
    hf_config = {
        **HF_CONFIG,
        "tie_word_embeddings": tied,
        "num_hidden_layers": shape["n_layer"],
        "max_position_embeddings": shape["block_size"],
    }
    (folder / "config.json").write_text(json.dumps(hf_config))
    for file in tokenizer_dir.iterdir():
        shutil.copyfile(file, folder / file.name)
    return model


def make_packed(folder: Path, tokenizer_dir: Path) -> Path:
    """Write packed data whose next token is easy to learn: sentences of a small grammar."""
    draw = random.Random(0)
    words = [["the", "a"], ["cat", "dog", "model"], ["sees", "reads"], ["every", "no"], ["text", "tree"]]
    rows = []
    for number in range(60):
        sentences = (" ".join(draw.choice(choices) for choices in words) for _ in range(draw.randint(10, 40)))
        rows.append(json.dumps({"text": f"{number}. " + ". ".join(sentences)}) + "\n")
    source = folder.parent / f"{folder.name}.jsonl"
    source.write_text("".join(rows))
    prepare(PrepareArgs(source, tokenizer_dir, folder, val_fraction=0.2))
    return folder


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write rows, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
