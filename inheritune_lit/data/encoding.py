"""Documents into token ids, one process: the reference's own ids by the fastest exact way."""

import re
import string
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from inheritune_lit.tokenizer import Tokenizer

_TYPECODES = {"uint16": "H", "int32": "i"}
_MAX_WHOLE_CHARACTERS = 1 << 23  # what cannot be cut takes 35 (sentencepiece) to 115 (tokenizers) bytes per character


class DocumentEncoder:
    """Token ids of documents as "uint16" or "int32", without special tokens of its own.

    SentencePiece BPE models go through ``WordCache`` where that is exact, everything else through the library that
    defines the tokenizer. With ``parse_special_tokens`` a text that spells a special token gets that token; without, a
    web page that says ``<|endoftext|>`` does not end the document.
    """

    def __init__(self, tokenizer_dir: Path, dtype: str, parse_special_tokens: bool) -> None:
        self.tokenizer = Tokenizer(tokenizer_dir, parse_special_tokens=parse_special_tokens)
        self.dtype, self._typecode = dtype, _TYPECODES[dtype]
        model = self.tokenizer.model
        self._words = WordCache.create(model, self._typecode) if model else None

    def encode(self, texts: Sequence[str]) -> Iterator[bytes | None]:
        """Yields each text's ids, back to back as ``dtype``; None for one too long to encode in bounded memory."""
        if self._words is not None:
            for text in texts:
                try:
                    yield b"".join(map(self._encode_part, self.tokenizer.split(text)))
                except UnbrokenText:
                    yield None
            return
        short = [text for text in texts if len(text) <= _MAX_WHOLE_CHARACTERS]
        encoded = iter(self.tokenizer.encode_batch(short, num_threads=1))
        for text in texts:
            yield self.pack(next(encoded)) if len(text) <= _MAX_WHOLE_CHARACTERS else None

    def _encode_part(self, part: int | tuple[str, bool]) -> bytes:
        if isinstance(part, int):
            return self.pack([part])
        text, first = part
        words = self._words if first else self._inner_words
        return words.encode(text) if words else self.pack(self.tokenizer.encode_inner(text))

    @cached_property
    def _inner_words(self) -> "WordCache | None":
        return WordCache.create(self.tokenizer.inner_model, self._typecode)

    def pack(self, ids: Sequence[int]) -> bytes:
        """Returns token ids as bytes of ``dtype``."""
        return array(self._typecode, ids).tobytes()


SPACE = "\u2581"  # the sign that SentencePiece puts in place of a space

_PROBES = (
    "Two words",
    " leading,  double, and trailing ",
    "def f(x):\n\treturn x ** 2 # \u4e2d\u6587\n\n    y = 3.14",
    "na\u00efve caf\u00e9 \u2615\ufe0f \u20ac1,000.50 \u2014 x\u00b2) 'n' \u201cq\u201d\u2026 \u0440\u0443\u0441",
)
_CACHED_CHARACTERS = 32  # longer words hardly come again
_GENERATION = 1 << 17  # words; two generations take about 60 MB
_WINDOW = 1 << 18  # characters split into words at a time


class UnbrokenText(Exception):
    """A text holds a stretch without a place to cut that is too long to encode in little memory."""


class WordCache:
    """Encoder of whole documents; ``create`` checks that a model's vocabulary and normalisation allow it.

    What cannot be cut exactly (a text with SentencePiece's own sign for a space, or that normalises differently in
    parts) goes to the model whole. Matches of ``words`` are encoded apart; each begins with its spaces, if any.
    ``normalise`` and ``dummy_prefix`` say whether the model normalises a text and puts a space before it.
    """

    max_unbroken = 1 << 23  # characters; SentencePiece takes about 35 bytes of memory for each

    def __init__(self, processor, typecode: str, words: re.Pattern[str], normalise: bool, dummy_prefix: bool) -> None:
        self._processor, self._typecode, self._words = processor, typecode, words
        self._normalise, self._dummy_prefix = normalise, dummy_prefix
        self._cache = _TwoGenerations(self._encode_word)
        self._anchor = len(self._whole("\n"))
        self._lone_space = array(typecode, [processor.piece_to_id(SPACE)]).tobytes()

    @classmethod
    def create(cls, content: bytes, typecode: str) -> "WordCache | None":
        """Returns the encoder of a model, or None where its pieces or its normalisation forbid cutting."""
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        model = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
        trainer, normaliser = model.trainer_spec, model.normalizer_spec
        pieces = [one.piece for one in model.pieces if one.type in (one.NORMAL, one.USER_DEFINED, one.UNUSED)]
        if (
            trainer.model_type != trainer.BPE
            or not trainer.byte_fallback  # else neighbouring unknown characters become one token
            or trainer.treat_whitespace_as_suffix
            or not normaliser.escape_whitespaces
            or SPACE not in pieces
            or any(re.search(f"[^{SPACE} ][{SPACE} ]", piece) for piece in pieces)
        ):
            return None
        processor = SentencePieceProcessor(model_proto=content)
        normalise = bool(normaliser.precompiled_charsmap) or normaliser.remove_extra_whitespaces
        words = None if normalise else _fine_pattern(pieces)
        cache = cls(processor, typecode, words or re.compile(" *[^ ]+| +"), normalise, normaliser.add_dummy_prefix)
        exact = all(cache.encode(probe) == cache._whole(probe) for probe in _PROBES)
        return cache if exact else None

    def encode(self, text: str) -> bytes:
        """Returns a text's ids back to back; ``UnbrokenText`` where over ``max_unbroken`` characters have no cut."""
        if not text:
            return b""
        if SPACE in text:
            return self._whole(text)
        if self._normalise:
            spaced = self._processor.normalize(text).replace(SPACE, " ")
        else:
            spaced = f" {text}" if self._dummy_prefix else text
        lookup, words = self._cache.__getitem__, self._words
        try:
            if len(spaced) <= _WINDOW:  # a tenth of the time for short texts goes into windows
                return b"".join(map(lookup, words.findall(spaced)))
            return b"".join(b"".join(map(lookup, words.findall(part))) for part in _windows(spaced))
        except _NotTheSameApart:
            return self._whole(text)

    def _whole(self, text: str) -> bytes:
        if len(text) > self.max_unbroken:
            raise UnbrokenText
        return array(self._typecode, self._processor.encode(text)).tobytes()

    def _encode_word(self, word: str) -> bytes:
        plain = word
        if self._dummy_prefix:
            if word == " ":
                return self._lone_space
            if word[0] != " ":
                # Behind a line break no space is put; the fine pattern is used only where nothing merges with one.
                return self._whole("\n" + word)[self._anchor :]
            plain = word[1:]  # the model puts it back
        if self._normalise and self._processor.normalize(plain).replace(SPACE, " ") != word:
            raise _NotTheSameApart
        return self._whole(plain)


class _NotTheSameApart(Exception):
    """A part of normalised text normalises to something else."""


class _TwoGenerations(dict):
    """Words and their ids; of those not asked for lately, half is forgotten whenever a generation is full."""

    def __init__(self, encode) -> None:
        self._encode, self._older = encode, dict[str, bytes]()

    def __missing__(self, word: str) -> bytes:
        ids = self._older.get(word)
        if ids is None:
            ids = self._encode(word)
            if len(word) > _CACHED_CHARACTERS:
                return ids
        if len(self) >= _GENERATION:
            self._older = dict(self)
            self.clear()
        self[word] = ids
        return ids


def _fine_pattern(pieces: list[str]) -> re.Pattern[str] | None:
    """Words, runs of punctuation, single digits and line breaks, where no piece mixes them; None where one does."""
    pairs = {pair for piece in pieces for pair in pairwise(piece) if SPACE not in pair}
    marks, joined = set[str](), set(string.punctuation)
    while joined:  # a sign that some piece joins with punctuation counts as punctuation too
        marks |= joined
        joined = {other for pair in pairs for mark, other in (pair, pair[::-1]) if mark in marks} - marks
    fixed = {*string.digits, "\n"}
    if marks & (set(string.ascii_letters) | fixed) or any(fixed.intersection(pair) for pair in pairs):
        return None
    mark = re.escape("".join(sorted(marks)))
    return re.compile(rf" *(?:[^ \n0-9{mark}]+|[{mark}]+|[0-9]|\n)| +")


def _windows(spaced: str) -> Iterator[str]:
    """Yields parts of a long text, cut before a space that follows another character."""
    cut, start = re.compile("(?<=[^ ]) "), 0
    while start < len(spaced):
        found = cut.search(spaced, start + _WINDOW)
        stop = found.start() if found else len(spaced)
        yield spaced[start:stop]
        start = stop
