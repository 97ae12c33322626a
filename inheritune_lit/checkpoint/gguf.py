"""GGUF files: weights through transformers, everything else from the file's own metadata, or refused by name.

transformers leaves out what it does not know (rope scaling, softcapping, biases), and changes tokenizers. The whole
model is dequantised, so memory is that of the model.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.config import load_hf_config, save_hf_config
from inheritune_lit.checkpoint.folder import GENERATION_CONFIG, HF_CONFIG, MODEL_CONFIG
from inheritune_lit.checkpoint.gguf_tokenizer import write_tokenizer
from inheritune_lit.errors import UserError, first_line

_REMEDY = "give the reference's safetensors checkpoint"
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_WITHOUT_EFFECT = ("tensor_data_layout", "rope.scaling.finetuned", "vocab_size", "context_length")
_NEUTRAL = {"logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 1.0, "attention.causal": True}
_ENTRIES = {
    "rope.freq_base": ("rope_theta",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.sliding_window": ("sliding_window",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_count": ("num_experts",),
    "expert_used_count": ("num_experts_per_tok",),
    "use_parallel_residual": ("use_parallel_residual",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size"),
}
"""Metadata and the entries of ``config.json`` that say the same, where transformers may have left them out."""


def find_gguf(ref: Path) -> Path | None:
    """The GGUF file that a reference means: itself, or the only one of a folder without other weights."""
    if ref.suffix == ".gguf" and ref.is_file():
        return ref
    if not ref.is_dir() or (ref / HF_CONFIG).exists() or (ref / MODEL_CONFIG).exists():
        return None
    found = sorted(ref.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(f"{ref} holds {len(found)} GGUF files; give one of them with --ref, such as {found[0]}")
    return found[0] if found else None


@contextmanager
def as_huggingface(path: Path) -> Iterator[Path]:
    """A temporary Hugging Face folder with the file's model in bfloat16 and its tokenizer.

    A file that is damaged, of an unknown architecture, or says something about its model that would be lost, is a
    ``UserError``, and so are libraries that are not installed.
    """
    missing = [name for name in ("transformers", "gguf") if find_spec(name) is None]
    if missing:
        raise UserError(f"reading {path} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path} is not a GGUF file; get it again")
    with tempfile.TemporaryDirectory(prefix="inheritune-gguf-") as name:
        folder = Path(name)
        try:
            _convert(path, folder)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a damaged file fails anywhere in gguf, numpy or transformers
            raise UserError(f"{path} cannot be read ({first_line(error)}); get it again, or {_REMEDY}") from error
        yield folder


def _convert(path: Path, folder: Path) -> None:
    from gguf import GGUFReader
    from transformers import AutoConfig

    reader = GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    architecture = str(metadata.get("general.architecture"))
    scaling = _rope_scaling(metadata, tensors, architecture, path)
    if (count := metadata.get("split.count", 1)) not in (0, 1):
        raise UserError(f"{path} is one of {count} files (split.count); merge them with llama-gguf-split")
    if (kind := metadata.get("general.type", "model")) != "model":
        raise UserError(f"{path} holds a {kind} (general.type), not a model; give the file of the model")
    ids = write_tokenizer(metadata, path, folder)
    # Under Python 3.10 transformers cannot find gguf's version: it asks the module, which does not say.
    vars(import_module("gguf")).setdefault("__version__", version("gguf"))
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    _carry_over(metadata, architecture, config.to_dict(), path)  # refuses before the weights are read
    _write_model(path, config, tensors, folder)
    hf = load_hf_config(folder) or {}
    _carry_over(metadata, architecture, hf, path)
    if scaling:
        if "rope_parameters" in hf:  # transformers 5; Gemma 3 has one for each kind of layer
            rope = hf["rope_parameters"]
            rope.get("full_attention", rope).update(scaling)
        else:
            hf["rope_scaling"] = scaling
    stated = {f"{key}_token_id": ids[name] for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
    save_hf_config(hf | stated, folder)
    (folder / GENERATION_CONFIG).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


def _write_model(path: Path, config: Any, tensors: Mapping[str, Any], folder: Path) -> None:
    """Writes the weights as transformers reads them; all of the file's must be there, and nothing beside them."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    source: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "config": config}
    source["local_files_only"] = True
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)  # what it would warn of is an error here
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, output_loading_info=True)
        model, info = loaded
        model.save_pretrained(folder, max_shard_size="2GB")
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{path} has no tensor for {missing[0]} ({len(missing)} are missing); get it again, or {_REMEDY}"
        )
    stored = sum(int(one.n_elements) for name, one in tensors.items() if not name.endswith(_ROPE_TENSORS))
    if stored != (read := sum(parameter.numel() for parameter in model.parameters())):
        # Most likely a bias or a norm of queries and keys.
        left_out = next((name for name in tensors if name.endswith(".bias") or "q_norm" in name), [*tensors][-1])
        raise UserError(
            f"{path} holds {stored:,} values, of which transformers reads {read:,}: it would leave out tensors such as "
            f"{left_out}; {_REMEDY}"
        )


def _carry_over(metadata: Mapping[str, Any], architecture: str, hf: dict[str, Any], path: Path) -> None:
    """Puts into ``config.json`` what transformers left out of the file's metadata, or refuses it by name."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    known: Any = GGUF_CONFIG_MAPPING
    read = {key for key, entry in known.get(architecture, {}).items() if entry}
    heads = hf.get("num_attention_heads", hf.get("n_head", 1))
    head = hf.get("head_dim") or hf.get("hidden_size", hf.get("n_embd", 0)) // heads
    layers: dict[str, Any] = hf.get("rope_parameters") or {}
    rope: dict[str, Any] = layers.get("full_attention", layers)
    share = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor")) or 1.0
    computed = {
        "rope.dimension_count": int(head * share),
        "attention.key_length": head,
        "attention.value_length": head,
        "feed_forward_length": hf.get("n_inner") or 4 * hf.get("n_embd", 0),
    }
    for name, value in metadata.items():
        prefix, _, key = name.partition(".")
        if prefix != architecture or key.startswith("rope.scal") or _NEUTRAL.get(key) == value:
            continue
        if key in _WITHOUT_EFFECT or computed.get(key) == value or (not value and key not in _NEUTRAL):
            continue
        where = rope if key == "rope.freq_base" and "rope_theta" in rope else hf
        entry = next((entry for entry in _ENTRIES.get(key, ()) if entry in where), None)
        window = key == "attention.sliding_window"
        if window and value >= metadata.get(f"{architecture}.context_length", math.inf):
            continue
        if entry is not None and not (window and hf.get("use_sliding_window") is False):
            numbers = all(isinstance(each, int | float) for each in (where[entry], value))
            if not (numbers and math.isclose(where[entry], value, rel_tol=1e-6)):
                where[entry] = value
            continue
        if key in read:
            continue
        raise UserError(f"{path}: {name} is {str(value)[:60]}, which cannot be carried over; {_REMEDY}")


def _rope_scaling(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str, path: Path
) -> dict[str, Any] | None:
    """How the file scales its rotary positions, as ``config.json`` says it; None where it does not."""
    prefix = f"{architecture}.rope"
    kind = metadata.get(f"{prefix}.scaling.type", "linear")
    factor = metadata.get(f"{prefix}.scaling.factor", metadata.get(f"{prefix}.scale_linear")) or 1.0
    scaling = None if kind == "none" or factor == 1.0 else {"rope_type": kind, "factor": float(factor)}
    problem = f"{prefix}.scaling.type is {kind!r}" if scaling and kind != "linear" else ""
    for name, tensor in tensors.items():
        divisors = tensor.data.astype("float64").ravel().tolist() if name.endswith(_ROPE_TENSORS) else []
        if any(divisor != 1.0 for divisor in divisors):
            base = float(metadata.get(f"{prefix}.freq_base", 10_000.0))
            found = _llama3(divisors, base) if name.endswith(_ROPE_TENSORS[0]) and scaling is None else None
            problem, scaling = problem or ("" if found else f"{name} scales rotary positions (rope)"), found
    if problem:
        raise UserError(f"{path}: {problem}, which litgpt computes only as linear or llama3; give another reference")
    return scaling


def _llama3(divisors: list[float], base: float) -> dict[str, Any] | None:
    """Llama 3's parameters that give these divisors of the frequencies; its files keep only the result."""
    factor, low, high = round(max(divisors), 3), 1.0, 4.0
    for length in (1 << power for power in range(9, 18)):
        expected = []
        for i in range(len(divisors)):
            turns = length / (2 * math.pi * base ** (i / len(divisors)))
            smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
            expected.append(1 / ((1 - smooth) / factor + smooth))
        if all(math.isclose(one, other, rel_tol=1e-4) for one, other in zip(expected, divisors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    return None
