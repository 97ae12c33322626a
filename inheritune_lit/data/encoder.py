"""Documents into token ids, one process: the reference's own ids by the fastest exact way."""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from inheritune_lit.data.word_cache import UnbrokenText, WordCache
from inheritune_lit.tokenizer import Tokenizer

_TYPECODES = {"uint16": "H", "int32": "i"}
_MAX_WHOLE_CHARACTERS = 1 << 23  # what cannot be cut takes 35 (sentencepiece) to 115 (tokenizers) bytes a character


class DocumentEncoder:
    """Token ids of documents, without special tokens of its own.

    SentencePiece BPE models go through ``WordCache`` where that is exact, everything else through the library that
    defines the tokenizer.

    Args:
        tokenizer_dir: folder with the reference's tokenizer.
        dtype: "uint16" or "int32".
        parse_special_tokens: whether a text that spells a special token gets that token. No by default: a web page
            that says ``<|endoftext|>`` must not end the document. SentencePiece never does.
    """

    def __init__(self, tokenizer_dir: Path, dtype: str, parse_special_tokens: bool) -> None:
        self.tokenizer = Tokenizer(tokenizer_dir, parse_special_tokens=parse_special_tokens)
        self.dtype, self._typecode = dtype, _TYPECODES[dtype]
        self._words = None
        if self.tokenizer.path.suffix == ".model":
            self._words = WordCache.create(self.tokenizer.path, self._typecode)

    def encode(self, texts: Sequence[str]) -> Iterator[bytes | None]:
        """Ids of each text, back to back as ``dtype``; None for a text too long to encode in bounded memory."""
        if self._words is not None:
            for text in texts:
                try:
                    yield self._words.encode(text)
                except UnbrokenText:
                    yield None
            return
        short = [text for text in texts if len(text) <= _MAX_WHOLE_CHARACTERS]
        encoded = iter(self.tokenizer.encode_batch(short, num_threads=1))
        for text in texts:
            yield self.pack(next(encoded)) if len(text) <= _MAX_WHOLE_CHARACTERS else None

    def pack(self, ids: Sequence[int]) -> bytes:
        """Token ids as bytes of ``dtype``."""
        return array(self._typecode, ids).tobytes()
