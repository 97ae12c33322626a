"""One way from text to token ids, shared by data preparation and evaluation."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from inheritune_lit import tokenizer_files as files
from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import sha256_file

logger = logging.getLogger(__name__)

_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json")


class Tokenizer:
    """A checkpoint folder's tokenizer, adding no special tokens of its own.

    All its files are read, and compared where they say the same thing. ``tokenizer.model`` (SentencePiece) wins over a
    ``tokenizer.json`` with the same vocabulary: OpenLLaMA's converted fast tokenizer differs from the SentencePiece
    model its weights were trained with (stated in the OpenLLaMA README). With another vocabulary, ``tokenizer.json`` is
    taken, as transformers does. GPT-2's ``vocab.json`` with ``merges.txt`` is the last choice. Tokens that were added
    to the vocabulary, and the names of BOS and EOS, come from the JSON files as in transformers; a text that spells an
    added token is split there.

    With ``parse_special_tokens`` a text that spells a special token gets that token, as in transformers. A folder
    without a readable tokenizer, or whose files disagree about an id, is a ``UserError``.

    ``path`` is the file that defines the tokenizer. Every id is below ``vocab_size``, which counts added tokens;
    ``base_size`` counts those of the vocabulary alone. ``bos_id`` and ``eos_id`` are None where there is no such token,
    ``model`` is the SentencePiece model, None for others, and ``template`` has the ids that a ``tokenizer.json`` puts
    around an empty text, None for a SentencePiece model.
    """

    def __init__(self, folder: Path, parse_special_tokens: bool = True) -> None:
        model, converted, vocabulary = (folder / name for name in _FILES)
        self._parsed, self._settings = parse_special_tokens, files.TokenizerSettings(folder)
        self.model: bytes | None = None
        self.template: list[int] | None = None
        self._extra: list[Any] = []
        proto, problem = files.read_sentencepiece(model) if os.path.lexists(model) else (None, "")
        fast, stated = files.read_fast(converted) if os.path.lexists(converted) else (None, {})
        if proto is not None and fast is not None and not files.same_vocabulary(proto, fast):
            words = "%s and tokenizer.json have different vocabularies; tokenizer.json is taken, as transformers does"
            logger.warning(words, model)
            proto = None
        if proto is not None:
            self._load_sentencepiece(model, proto, stated)
        elif fast is not None:
            self._load_huggingface(converted, fast, stated)
        elif problem:
            raise UserError(problem)
        elif os.path.lexists(vocabulary) and os.path.lexists(folder / "merges.txt"):
            self._load_huggingface(vocabulary, files.read_gpt2(vocabulary), {})
        else:
            raise UserError(f"no tokenizer in {folder}: neither tokenizer.model nor tokenizer.json is there")

    def _load_sentencepiece(self, path: Path, proto: Any, stated: Mapping[int, dict[str, Any]]) -> None:
        self.path, settings, pieces = path, self._settings, proto.pieces
        if settings.prefix_space is False:
            proto.normalizer_spec.add_dummy_prefix = False
        self.model = proto.SerializeToString()
        self._processor = processor = files.processor_of(self.model)
        self.base_size = self.vocab_size = size = processor.vocab_size()
        known = {piece.piece: number for number, piece in enumerate(pieces)}
        own = [i for i in (processor.bos_id(), processor.eos_id(), processor.unk_id()) if 0 <= i < size]
        added = {i: {"content": pieces[i].piece, "special": True, "normalized": False} for i in own}
        added |= {known[text]: {"content": text, "special": True} for text in settings.special if text in known}
        added |= {**stated, **settings.added}
        in_order = sorted(added.items())
        self._ids = {fields["content"]: number for number, fields in in_order}
        for number, fields in in_order:
            content = fields["content"]
            # transformers gives a new token the next id, and leaves one of the vocabulary where it is.
            if (real := known.get(content, self.vocab_size)) != number and not files.is_nameless(pieces, number):
                raise self._contradiction(content, number, real)
            known[content], self.vocab_size = number, max(self.vocab_size, number + 1)
            fields["special"] = fields.get("special", False) or content in settings.special
        # SentencePiece finds its user-defined symbols itself.
        self._added = [one for i, one in in_order if i >= size or pieces[i].type != pieces[i].USER_DEFINED]
        keys = ("content", *files.FLAGS)
        self._extra = [[i, *map(one.get, keys)] for i, one in added.items() if i >= size]
        self._spelled = [one["content"] for one in self._added if self._parsed or not one["special"]]
        self.bos_id = self._special_id("bos", self._ids | known, processor.bos_id())
        self.eos_id = self._special_id("eos", self._ids | known, processor.eos_id())
        self._encode = self._encode_pieces
        own_texts = {number: content for content, number in self._ids.items() if number >= size}
        hidden = {number for number, fields in added.items() if fields["special"]}

        def decode(ids: Sequence[int], skip: bool) -> str:
            # SentencePiece's control tokens have no text anyway.
            texts, own = list[str](), processor
            for text, group in groupby((i for i in ids if not (skip and i in hidden)), key=own_texts.get):
                run = list(group)
                texts.append(text * len(run) if text else own.decode(run))
                own = self._inner_processor
            return "".join(texts)

        self._decode = decode

    def _load_huggingface(self, path: Path, processor: Any, stated: Mapping[int, dict[str, Any]]) -> None:
        from tokenizers import AddedToken

        self.path, settings, before = path, self._settings, repr(processor.get_added_tokens_decoder())
        self.base_size = max(processor.get_vocab(with_added_tokens=False).values(), default=-1) + 1
        processor.add_tokens([AddedToken(**fields) for _, fields in sorted(settings.added.items())])
        for number, fields in {**stated, **settings.added}.items():
            if (real := processor.token_to_id(fields["content"])) != number:
                raise self._contradiction(fields["content"], number, real)
        if (after := repr(processor.get_added_tokens_decoder())) != before:
            self._extra = [after]
        is_gpt2 = path.name == "vocab.json"
        if is_gpt2:
            self._extra.append(sha256_file(path.with_name("merges.txt")))
        processor.no_truncation()
        processor.no_padding()
        processor.encode_special_tokens = not self._parsed
        # Not the number of entries: ids may have gaps.
        ids = processor.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        end = ids.get("<|endoftext|>", -1) if is_gpt2 else -1
        self.bos_id, self.eos_id = (self._special_id(name, ids, end) for name in ("bos", "eos"))
        self.template = processor.encode("").ids

        def encode(texts: Sequence[str], num_threads: int) -> list[list[int]]:
            try:
                encodings = processor.encode_batch_fast(list(texts), add_special_tokens=False)
            except Exception as error:  # for instance an unknown word, where no token stands for those
                raise UserError(f"{self.path} cannot encode a text ({error}); take the reference's own file") from error
            return [encoding.ids for encoding in encodings]

        self._encode = encode
        self._decode = lambda ids, skip: processor.decode(ids, skip_special_tokens=skip)

    def _contradiction(self, content: str, stated: int, real: int | None) -> UserError:
        problem = f"{content!r} is id {stated} in one of its JSON files, but {real} by {self.path.name}"
        return UserError(f"{self._settings.folder}: {problem}; correct the file that is wrong")

    def _special_id(self, name: str, ids: Mapping[str, int], own: int) -> int | None:
        """Id of BOS or EOS: what the JSON files name, else the tokenizer's ``own``, else what the configurations say.

        Where only the last two say something, nobody but the user knows which is meant.
        """
        settings, text = self._settings, self._settings.named.get(name)
        stated = settings.ids[name]
        if text:
            if text not in ids:
                problem = f"names the {name.upper()} token {text!r}, which {self.path.name} does not have"
                remedy = f"correct {name}_token in tokenizer_config.json, or copy the files again from the reference"
                raise UserError(f"{settings.folder} {problem}; {remedy}")
            return ids[text]
        if own < 0:
            return stated[0] if stated else None
        if stated and own not in stated:
            other = f"{stated[0]} by its generation_config.json or config.json"
            problem = f"the {name.upper()} token of {settings.folder} is id {own} by {self.path.name}, but {other}"
            raise UserError(f"{problem}; name the right one, {name}_token, in tokenizer_config.json")
        return own

    def split(self, text: str) -> Iterator[int | tuple[str, bool]]:
        """Yields the parts of a text for a SentencePiece model: the id of each added token that is spelled, and each
        text between, with whether it is to be encoded as what comes first, before which SentencePiece puts a space.
        """
        if not any(content in text for content in self._spelled):
            yield text, True
            return
        found = self._splitter.encode(text, add_special_tokens=False)
        for number, (start, stop) in zip(found.ids, found.offsets, strict=True):
            if number:  # the number of an added token, from 1
                yield self._ids[self._added[number - 1]["content"]]
            else:
                part = text[start:stop]
                yield part, start == 0 or (self._settings.legacy and part[0] not in " \u2581")

    @cached_property
    def _splitter(self) -> Any:
        """tokenizers' own way of finding added tokens; what lies between them is one unknown word each."""
        from tokenizers import AddedToken, models
        from tokenizers import Tokenizer as FastTokenizer

        splitter = FastTokenizer(models.WordLevel({"": 0}, unk_token=""))
        splitter.add_tokens([AddedToken(**fields) for fields in self._added])
        splitter.encode_special_tokens = not self._parsed
        return splitter

    @cached_property
    def inner_model(self) -> bytes:
        """The SentencePiece model for the parts of a text that do not come first."""
        proto = files.parse_proto(self.model or b"")
        proto.normalizer_spec.add_dummy_prefix = False
        return proto.SerializeToString()

    @cached_property
    def _inner_processor(self) -> Any:
        return files.processor_of(self.inner_model)

    def encode_inner(self, text: str) -> list[int]:
        """Token ids of a part of a text for a SentencePiece model, where the part does not come first."""
        return self._inner_processor.encode(text)

    def _encode_pieces(self, texts: Sequence[str], num_threads: int) -> list[list[int]]:
        if not any(content in text for content in self._spelled for text in texts):
            return self._processor.encode(list(texts), num_threads=num_threads)
        return [[number for part in self.split(text) for number in self._encode_part(part)] for text in texts]

    def _encode_part(self, part: int | tuple[str, bool]) -> list[int]:
        if isinstance(part, int):
            return [part]
        text, is_first = part
        return self._processor.encode(text) if is_first else self.encode_inner(text)

    def encode_batch(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Token ids of each text, by some threads of SentencePiece (-1: all cores) or the pool of tokenizers."""
        return self._encode(texts, num_threads)

    def encode(self, text: str) -> list[int]:
        """Token ids of one text."""
        return self._encode([text], 1)[0]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids; special tokens of a ``tokenizer.json`` are spelled out unless skipped."""
        return self._decode([int(i) for i in ids], skip_special_tokens)

    def sha256(self) -> str:
        """SHA-256 of what defines the tokenizer (its file, and what others add): equal hashes mean equal ids."""
        extra = [*self._extra, "no prefix"] if self.model and self._settings.prefix_space is False else self._extra
        own = sha256_file(self.path)
        return hashlib.sha256(json.dumps([own, extra]).encode()).hexdigest() if extra else own


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer's files."""
    return any(os.path.lexists(folder / name) for name in _FILES)


def check_tokenizer(folder: Path, rows: int) -> None:
    """Refuses a tokenizer that is damaged, contradicts itself, or does not fit so many embeddings; none is fine."""
    if not has_tokenizer(folder):
        return
    tokenizer = Tokenizer(folder)
    for name, number in (("BOS", tokenizer.bos_id), ("EOS", tokenizer.eos_id)):
        if number is not None and number >= rows:
            misfit = f"the {name} token of {folder} is id {number}, but the model has {rows} embeddings"
            raise UserError(f"{misfit}; correct tokenizer_config.json, or take the tokenizer of the reference")
    if (size := tokenizer.base_size) > rows:
        misfit = f"{tokenizer.path} has {size} ids, but the model has {rows} embeddings"
        raise UserError(f"{misfit}; take the tokenizer of the reference")
