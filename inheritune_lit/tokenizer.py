"""One way from text to token ids, shared by data preparation and evaluation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.reading import read_json


class Tokenizer:
    """A checkpoint folder's tokenizer, adding no special tokens of its own.

    ``tokenizer.model`` (SentencePiece) wins over ``tokenizer.json``: OpenLLaMA's converted fast tokenizer differs from
    the SentencePiece model its weights were trained with (stated in the OpenLLaMA README). litgpt's own class prefers
    the converted one, and guesses from the folder's name whether to add BOS.

    With ``parse_special_tokens`` a text that spells a special token of a ``tokenizer.json`` gets that token, as in
    transformers; a SentencePiece model never parses them. A folder without a readable tokenizer is a ``UserError``.

    Attributes:
        path: the file that defines the tokenizer.
        vocab_size: number of ids, added tokens included; every id is below it.
        bos_id, eos_id: ids, or None where the tokenizer defines none.
    """

    def __init__(self, folder: Path, parse_special_tokens: bool = True) -> None:
        if (folder / "tokenizer.model").is_file():
            self.path = folder / "tokenizer.model"
            self._load_sentencepiece()
        elif (folder / "tokenizer.json").is_file():
            self.path = folder / "tokenizer.json"
            self._load_huggingface(folder, parse_special_tokens)
        else:
            raise UserError(f"no tokenizer in {folder}: neither tokenizer.model nor tokenizer.json is there")

    def _load_sentencepiece(self) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            processor = SentencePieceProcessor(model_file=str(self.path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{self.path} is not a SentencePiece model; copy it again from the reference") from error
        self.vocab_size = processor.vocab_size()
        self.bos_id, self.eos_id = (found if found >= 0 else None for found in (processor.bos_id(), processor.eos_id()))
        self._encode = lambda texts, num_threads: processor.encode(list(texts), num_threads=num_threads)
        # SentencePiece's control tokens have no text anyway.
        self._decode = lambda ids, skip: processor.decode(ids)

    def _load_huggingface(self, folder: Path, parse_special_tokens: bool) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        try:
            processor = FastTokenizer.from_file(str(self.path))
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{self.path} is not a tokenizer file; copy it again from the reference") from error
        processor.no_truncation()
        processor.no_padding()
        processor.encode_special_tokens = not parse_special_tokens
        # Not the number of entries: ids may have gaps.
        self.vocab_size = max(processor.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_id, self.eos_id = _special_ids(folder, processor.token_to_id)

        def encode(texts: Sequence[str], num_threads: int) -> list[list[int]]:
            try:
                encodings = processor.encode_batch_fast(list(texts), add_special_tokens=False)
            except Exception as error:  # for instance an unknown word, where no token stands for those
                raise UserError(f"{self.path} cannot encode a text ({error}); take the reference's own file") from error
            return [encoding.ids for encoding in encodings]

        self._encode = encode
        self._decode = lambda ids, skip: processor.decode(ids, skip_special_tokens=skip)

    def encode_batch(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Token ids of each text, by some threads of SentencePiece, -1 for all cores.

        The tokenizers library has a pool of its own, which ``TOKENIZERS_PARALLELISM`` switches off.
        """
        return self._encode(texts, num_threads)

    def encode(self, text: str) -> list[int]:
        """Token ids of one text."""
        return self._encode([text], 1)[0]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids; special tokens of a ``tokenizer.json`` are spelled out unless skipped."""
        return self._decode([int(i) for i in ids], skip_special_tokens)

    def sha256(self) -> str:
        """SHA-256 of the file that defines the tokenizer: equal hashes mean equal ids."""
        return sha256_file(self.path)


def _special_ids(folder: Path, token_to_id: Callable[[str], int | None]) -> tuple[int | None, int | None]:
    """BOS and EOS from ``tokenizer_config.json``, else from ``generation_config.json`` or ``config.json``."""
    files = (folder / f"{name}.json" for name in ("tokenizer_config", "generation_config", "config"))
    remedy = "copy it again from the reference"
    tokens, *configs = (read_json(file, remedy=remedy) if file.is_file() else {} for file in files)
    ids: list[int | None] = []
    for name in ("bos", "eos"):
        token = tokens.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        found = [token_to_id(text)] if isinstance(text, str) else []
        values: list[Any] = [config.get(f"{name}_token_id") for config in configs]
        found += [value[0] if isinstance(value, list) and value else value for value in values]
        ids.append(next((one for one in found if one is not None), None))
    return ids[0], ids[1]
