"""The tokenizer of a GGUF file, written as files that transformers and we read: ids and rules are the file's own."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError

_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6  # kinds of tokens, numbered as SentencePiece does
_REMEDY = "give the reference's safetensors checkpoint"

_WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2 = "'s|'t|'re|'ve|'m|'ll|'d|" + _WORDS
_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_LLAMA3, _QWEN2 = _TIKTOKEN.replace("DIGITS", "{1,3}"), _TIKTOKEN.replace("DIGITS", "")
_PATTERNS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "gpt-2 phi-2 mpt olmo": [_GPT2],
    "llama3 llama-v3 llama-bpe falcon3 dbrx": [_LLAMA3],
    "smollm starcoder refact command-r codeshell exaone": [r"\p{N}", _GPT2],
    "qwen2 deepseek-r1-qwen megrez": [_QWEN2],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"],
}
_RULES = {name: patterns for names, patterns in _PATTERNS.items() for name in names.split()}
"""Patterns by ``tokenizer.ggml.pre``, as llama.cpp has them: a text is cut by one after the other."""
_LIKE_LLAMA3 = ("llama3", "llama-v3", "llama-bpe", "falcon3")


def write_tokenizer(metadata: Mapping[str, Any], path: Path, folder: Path) -> dict[str, int | None]:
    """Write the tokenizer of a GGUF file into a folder; one of unknown kind or rules, or none, is a ``UserError``.

    Returns:
        The ids of BOS, EOS, unknown and padding, None for those that the file does not have.
    """

    def value(key: str, kind: type, default: Any = None) -> Any:
        found = metadata.get(f"tokenizer.ggml.{key}", default)
        if found is not None and not isinstance(found, kind):
            raise UserError(f"{path}: tokenizer.ggml.{key} is {str(found)[:60]!r}; get the file again")
        return found

    kind, tokens = value("model", str), value("tokens", list, [])
    if kind not in ("gpt2", "llama") or not tokens:
        raise UserError(
            f"{path}: tokenizer.ggml.model is {kind!r} with {len(tokens)} tokens (gpt2, llama are); {_REMEDY}"
        )
    kinds, scores = value("token_type", list, [_NORMAL] * len(tokens)), value("scores", list, [0.0] * len(tokens))
    if len({len(tokens), len(kinds), len(scores)}) > 1 or len(set(tokens)) < len(tokens):
        raise UserError(
            f"{path}: of {len(tokens)} tokens {len(set(tokens))} differ, with {len(kinds)} types and {len(scores)} "
            "scores in tokenizer.ggml; get the file again"
        )
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
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
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
