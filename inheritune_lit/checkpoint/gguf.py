"""GGUF files: weights through transformers, everything else from the file's own metadata, or refused by name.

transformers leaves out what it does not know (rope scaling, softcapping, biases), and changes tokenizers. The whole
model is dequantised, so memory is that of the model.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.config import load_hf_config, save_hf_config
from inheritune_lit.checkpoint.folder import GENERATION_CONFIG, HF_CONFIG, MODEL_CONFIG
from inheritune_lit.errors import UserError, first_line
from inheritune_lit.io.folders import FULL_DISK, OutOfSpace
from inheritune_lit.io.tables import own_table

_REMEDY = "give the reference's safetensors checkpoint"
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_WITHOUT_EFFECT = ("tensor_data_layout", "rope.scaling.finetuned", "vocab_size", "context_length")
_NEUTRAL = {"logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 1.0, "attention.causal": True}
_ENTRIES: dict[str, list[str]] = {}
"""Metadata, and the entries of ``config.json`` that say the same, of which transformers may have left out one."""
_RULES: dict[str, list[str]] = {}
"""Patterns by ``tokenizer.ggml.pre``, as llama.cpp has them: a text is cut by one after the other."""
for _row in own_table(__file__):
    for _name in _row["names"].split():
        (_ENTRIES if _row["kind"] == "entry" else _RULES).setdefault(_name, []).append(_row["value"])
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6  # kinds of tokens, numbered as SentencePiece does
_LIKE_LLAMA3 = ("llama3", "llama-v3", "llama-bpe", "falcon3")


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

    A file that is damaged or unknown, or that would lose something, or a missing library, is a ``UserError``.
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
            if any(os.strerror(number) in str(error) for number in FULL_DISK):  # the error of safetensors has no number
                raise OutOfSpace(f"too little space for {path} in {folder}; free some, or set TMPDIR") from error
            raise UserError(f"{path} cannot be read ({first_line(error)}); get it again, or {_REMEDY}") from error
        yield folder


def _convert(path: Path, folder: Path) -> None:
    import gguf
    from transformers import AutoConfig

    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    architecture = str(metadata.get("general.architecture"))
    scaling = _rope_scaling(metadata, tensors, architecture, path)
    if (count := metadata.get("split.count", 1)) not in (0, 1):
        raise UserError(f"{path} is one of {count} files (split.count); merge them with llama-gguf-split")
    if (kind := metadata.get("general.type", "model")) != "model":
        raise UserError(f"{path} holds a {kind} (general.type), not a model; give the file of the model")
    ids = _write_tokenizer(metadata, path, folder)
    # Under Python 3.10 transformers cannot find gguf's version: it asks the module, which does not say.
    vars(gguf).setdefault("__version__", version("gguf"))
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
        raise UserError(f"{path} has no tensor for {missing[0]} ({len(missing)} are missing); get it again")
    stored = sum(int(one.n_elements) for name, one in tensors.items() if not name.endswith(_ROPE_TENSORS))
    if stored != (read := sum(parameter.numel() for parameter in model.parameters())):
        # Most likely a bias or a norm of queries and keys.
        left_out = next((name for name in tensors if name.endswith(".bias") or "q_norm" in name), [*tensors][-1])
        problem = f"of which transformers reads {read:,}: it would leave out tensors such as {left_out}"
        raise UserError(f"{path} holds {stored:,} values, {problem}; {_REMEDY}")


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
        window = key == "attention.sliding_window"
        if (
            prefix != architecture
            or key in _WITHOUT_EFFECT
            or key.startswith("rope.scal")
            or value in (computed.get(key), _NEUTRAL.get(key))
            or (not value and key not in _NEUTRAL)
            or (window and value >= metadata.get(f"{architecture}.context_length", math.inf))
        ):
            continue
        where = rope if key == "rope.freq_base" and "rope_theta" in rope else hf
        entry = next((entry for entry in _ENTRIES.get(key, ()) if entry in where), None)
        if entry is not None and not (window and hf.get("use_sliding_window") is False):
            numbers = all(isinstance(each, int | float) for each in (where[entry], value))
            if not (numbers and math.isclose(where[entry], value, rel_tol=1e-6)):
                where[entry] = value
        elif key not in read:
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
    stored = torch.tensor(divisors, dtype=torch.float64)
    wavelengths = 2 * math.pi * base ** (torch.arange(len(stored), dtype=torch.float64) / len(stored))
    for length in (1 << power for power in range(9, 18)):
        smooth = ((length / wavelengths - low) / (high - low)).clamp(0, 1)
        if torch.allclose(1 / ((1 - smooth) / factor + smooth), stored, rtol=1e-4, atol=0):
            names = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
            return {"rope_type": "llama3", **dict(zip(names, (factor, low, high, length), strict=True))}
    return None


def _write_tokenizer(metadata: Mapping[str, Any], path: Path, folder: Path) -> dict[str, int | None]:
    """Write a GGUF file's tokenizer, or refuse it; returns the ids of BOS, EOS, unknown and padding, None of none."""

    def value(key: str, kind: type, default: Any = None) -> Any:
        found = metadata.get(f"tokenizer.ggml.{key}", default)
        if found is not None and not isinstance(found, kind):
            raise UserError(f"{path}: tokenizer.ggml.{key} is {str(found)[:60]!r}; get the file again")
        return found

    kind, tokens = value("model", str), value("tokens", list, [])
    if kind not in ("gpt2", "llama") or not tokens:
        problem = f"tokenizer.ggml.model is {kind!r} with {len(tokens)} tokens (gpt2, llama are)"
        raise UserError(f"{path}: {problem}; {_REMEDY}")
    kinds, scores = value("token_type", list, [_NORMAL] * len(tokens)), value("scores", list, [0.0] * len(tokens))
    if len({len(tokens), len(kinds), len(scores)}) > 1 or len(set(tokens)) < len(tokens):
        counts = f"{len(tokens)} tokens, of which {len(set(tokens))} differ, {len(kinds)} types, {len(scores)} scores"
        raise UserError(f"{path}: tokenizer.ggml has {counts}; get the file again")
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if kind == "llama" else {}  # llama.cpp's
    ids = {name: value(f"{name}_token_id", int, defaults.get(name)) for name in ("bos", "eos", "unknown", "padding")}
    if ids["padding"] not in range(len(tokens)):
        ids["padding"] = None
    for name, number in ids.items():
        if number is not None and not 0 <= number < len(tokens):
            raise UserError(f"{path}: tokenizer.ggml.{name}_token_id is {number} of {len(tokens)}; get the file again")
    pre = value("pre", str, "gpt-2" if metadata.get("general.architecture") == "gpt2" else "default")
    add_bos = value("add_bos_token", bool, kind == "llama" or pre in _LIKE_LLAMA3) and ids["bos"] is not None
    plain = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
    marked = {
        i: {"content": token, "special": kinds[i] == _CONTROL, **plain}
        for i, token in enumerate(tokens)
        if kinds[i] in (_CONTROL, _USER_DEFINED)
    }
    config: dict[str, Any] = {
        **{f"{name[:3]}_token": None if number is None else tokens[number] for name, number in ids.items()},
        "add_bos_token": add_bos,
        "add_eos_token": value("add_eos_token", bool, False),
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    if kind == "llama":
        (folder / "tokenizer.model").write_bytes(_sentencepiece(value, tokens, scores, kinds, ids))
        config["tokenizer_class"] = "LlamaTokenizer"
        if not value("add_space_prefix", bool, True):
            config["add_prefix_space"] = False
        config["added_tokens_decoder"] = {str(i): token for i, token in marked.items() if kinds[i] == _CONTROL}
    else:
        if pre not in _RULES:
            raise UserError(f"{path}: tokenizer.ggml.pre is {pre!r}, whose rules are not known; {_REMEDY}")
        merges = [tuple(merge.split(" ", 1)) for merge in value("merges", list, [])]
        content = _byte_level(path, tokens, merges, pre, list(marked.values()), ids["bos"] if add_bos else None)
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    return ids


def _sentencepiece(
    value: Callable[..., Any], tokens: list[str], scores: list[float], kinds: list[int], ids: Mapping[str, int | None]
) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer, normaliser = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.BPE, len(tokens), _BYTE in kinds
    for name, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos")):
        number = ids[key]
        setattr(trainer, f"{name}_id", -1 if number is None else number)
        if number is not None:
            setattr(trainer, f"{name}_piece", tokens[number])
    trainer.pad_id = -1
    normaliser.name, normaliser.precompiled_charsmap = "identity", bytes(value("precompiled_charsmap", list, []))
    normaliser.add_dummy_prefix = value("add_space_prefix", bool, True)
    normaliser.remove_extra_whitespaces = value("remove_extra_whitespaces", bool, False)
    normaliser.escape_whitespaces = True
    return proto.SerializeToString()


def _byte_level(
    path: Path, tokens: list[str], merges: list[Any], pre: str, marked: list[dict[str, Any]], bos: int | None
) -> str:
    """A ``tokenizer.json`` as Hugging Face writes them for GPT-2 and its kin."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _LIKE_LLAMA3))
    except Exception as error:  # a merge of what is no token; tokenizers raises bare Exception
        raise UserError(f"{path}: tokenizer.ggml.merges does not fit its tokens ({error}); get it again") from error
    if pre in ("qwen2", "deepseek-r1-qwen", "megrez"):
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _RULES[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    if bos is not None:
        first = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], pair=[f"{first}:0", "$A:0", f"{first}:1", "$B:1"], special_tokens=[(first, bos)]
        )
    tokenizer.add_tokens([AddedToken(**token) for token in marked])
    if tokenizer.get_vocab_size() != len(tokens):
        raise UserError(f"{path}: {tokenizer.get_vocab_size()} ids come of {len(tokens)} tokens; get the file again")
    return tokenizer.to_str(pretty=True)
