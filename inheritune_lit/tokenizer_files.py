"""The files of a tokenizer, read with care: what JSON says of it, and the models of three libraries."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError, first_line
from inheritune_lit.io.reading import open_regular, parse_json, read_json, read_text

AGAIN = "copy it again from the reference"
_MAX_MODEL_BYTES = 256 << 20
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # fields of an added token beside its text


class TokenizerSettings:
    """What the JSON files beside a tokenizer say of it, read as transformers reads them.

    ``named`` has the texts of "bos", "eos" and so on, ``special`` those of all special tokens, ``added`` the fields of
    tokenizers' ``AddedToken`` by id, ``ids`` what the models' configurations say of "bos" and "eos".
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = ("tokenizer_config", "generation_config", "config", "special_tokens_map", "added_tokens")
        paths = {name: folder / f"{name}.json" for name in files}
        read = {name: read_json(path, remedy=AGAIN) if os.path.lexists(path) else {} for name, path in paths.items()}
        config, where = read["tokenizer_config"], paths["tokenizer_config"]
        if "added_tokens_decoder" not in config:  # older folders
            config = config | read["special_tokens_map"]
        tokens = {name: f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}
        self.named = {name: text for name, key in tokens.items() if (text := _token_text(config.get(key), where, key))}
        more = config.get("extra_special_tokens", config.get("additional_special_tokens"))
        more = list(more.values()) if isinstance(more, dict) else more if isinstance(more, list) else []
        texts = [_token_text(token, where, "additional_special_tokens") for token in more]
        self.special = {*self.named.values(), *texts} - {""}
        entries = config.get("added_tokens_decoder")
        if entries is None:
            where, special = paths["added_tokens"], self.special
            entries = {
                number: {"content": text, "special": text in special, "normalized": text not in special}
                for text, number in read["added_tokens"].items()
            }
        if not isinstance(entries, dict):
            raise _wrong(where, "added_tokens_decoder", entries)
        self.added = _added_tokens(entries.items(), where)
        self.ids: dict[str, list[int]] = {"bos": [], "eos": []}
        for name, known in self.ids.items():
            for source in ("generation_config", "config"):
                found = _stated_ids(read[source].get(f"{name}_token_id"), paths[source], f"{name}_token_id")
                self.ids[name] = known = known or found
        self.legacy = config.get("legacy") is True
        is_llama = str(config.get("tokenizer_class", "")).startswith("Llama")
        self.prefix_space = config.get("add_prefix_space") if is_llama else None


def _wrong(path: Path, key: str, value: Any) -> UserError:
    return UserError(f"{path}: {key} is {value!r}; {AGAIN}")


def _token_text(value: Any, path: Path, key: str) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise _wrong(path, key, value)
    return text or ""


def _stated_ids(value: Any, path: Path, key: str) -> list[int]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(one) is int for one in values):
        raise _wrong(path, key, value)
    return [one for one in values if one >= 0]


def _added_tokens(entries: Iterable[tuple[Any, Any]], path: Path) -> dict[int, dict[str, Any]]:
    added = {}
    for number, token in entries:
        fields = {key: token[key] for key in ("content", *FLAGS) if key in token} if isinstance(token, dict) else {}
        content, *flags = fields.values() or [None]
        is_valid = content and isinstance(content, str) and all(isinstance(flag, bool) for flag in flags)
        if not is_valid or not re.fullmatch(r"\d{1,9}", str(number), re.ASCII):
            raise _wrong(path, f"added token {number!r}", token)
        added[int(number)] = fields
    return added


def parse_proto(content: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]


def processor_of(model: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=model)


def read_sentencepiece(path: Path) -> tuple[Any, str]:
    """A ``tokenizer.model`` as message, or None and why it cannot be read, with a remedy."""
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_MODEL_BYTES)
    except UserError as error:
        return None, str(error)
    if re.match(rb"[A-Za-z0-9+/]+=* [0-9]+\s", content):
        return None, f"{path} is tiktoken's, not SentencePiece's; put the reference's tokenizer.json beside it"
    try:
        proto = parse_proto(content)
        if not proto.pieces:
            raise ValueError("it has no pieces")
        processor_of(content)
    except Exception as error:  # protobuf's, or a RuntimeError of sentencepiece
        return None, f"{path} can't be read as a SentencePiece model ({first_line(error)}); {AGAIN}"
    return proto, ""


def read_fast(path: Path) -> tuple[Any, dict[int, dict[str, Any]]]:
    """A ``tokenizer.json`` with the ids that it states for its added tokens."""
    from tokenizers import Tokenizer as FastTokenizer

    text = read_text(path, "a tokenizer file", AGAIN, _MAX_MODEL_BYTES)
    content = parse_json(text, path, "a tokenizer file", AGAIN)
    entries = content.get("added_tokens") if isinstance(content, dict) else None
    if entries is not None and not (isinstance(entries, list) and all(isinstance(one, dict) for one in entries)):
        raise _wrong(path, "added_tokens", entries)
    stated = _added_tokens([(one.get("id"), one) for one in entries or ()], path)
    return _guarded(lambda: FastTokenizer.from_str(text), path), stated


def read_gpt2(path: Path) -> Any:
    """GPT-2's tokenizer out of its two files."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    read_json(path, "a vocabulary", AGAIN)
    merges = path.with_name("merges.txt")
    read_text(merges, "a list of merges", AGAIN)
    fast = FastTokenizer(_guarded(lambda: models.BPE.from_file(str(path), str(merges)), path))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return fast


def _guarded(load: Callable[[], Any], path: Path) -> Any:
    try:
        return load()
    except BaseException as error:  # bare Exception, or a panic, which is not even that
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UserError(f"{path} is not a tokenizer file ({first_line(error)}); {AGAIN}") from error


def is_nameless(pieces: Any, number: int) -> bool:
    """Whether an id is one of a SentencePiece model that has no text of its own, so that another name may be added."""
    return number < len(pieces) and pieces[number].type in (pieces[number].CONTROL, pieces[number].UNUSED)


def same_vocabulary(proto: Any, fast: Any) -> bool:
    """Whether a SentencePiece model and a converted file give the pieces the same ids."""
    texts = {number: text for text, number in fast.get_vocab(with_added_tokens=True).items()}
    plain = set(fast.get_vocab(with_added_tokens=False).values()) - set(fast.get_added_tokens_decoder())
    if any(number >= len(proto.pieces) for number in plain):
        return False
    for number, piece in enumerate(proto.pieces):
        text = texts.get(number)
        # Gemma's conversion writes a tab for its byte; fine-tuned models rename what has no text.
        same = text is not None and text.replace(" ", "\u2581") in (piece.piece, {"<0x09>": "\t"}.get(piece.piece))
        if not same and piece.type in (piece.NORMAL, piece.BYTE, piece.USER_DEFINED):
            return False
    return True
