"""Texts into ids for scoring: in batches, each text once, with BOS where it is asked for."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from inheritune_lit.errors import UserError
from inheritune_lit.tokenizer import Tokenizer

Bos = Literal["none", "model"]


class Encoder:
    """Encodes texts, remembering those that were announced.

    Args:
        tokenizer: the checkpoint's.
        vocab_size: ids that the model knows. A tokenizer may have more, as long as no text needs them.
        bos: "none" adds nothing, as the paper; "model" what the model's own tokenizer puts before a text.

    Attributes:
        prefix: ids put before a text.
        empty_context: id that stands for an empty context: BOS where a text gets one, else EOS.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, bos: Bos = "none") -> None:
        self.tokenizer, self._vocab_size = tokenizer, vocab_size
        self.prefix = model_prefix(tokenizer) if bos == "model" else []
        self.empty_context = self.prefix[0] if self.prefix else eos_id(tokenizer)
        self._known: dict[str, list[int]] = {}

    def announce(self, texts: Iterable[str]) -> None:
        """Encode texts together, which is many times faster than one by one; what was known before is forgotten."""
        texts = list(dict.fromkeys(texts))
        self._known = dict(zip(texts, self.tokenizer.encode_batch(texts), strict=True))

    def encode(self, text: str, add_prefix: bool = True) -> list[int]:
        """Ids of a text; a text that spells its own BOS gets no second one.

        Raises:
            UserError: the model does not know an id.
        """
        ids = self._known.get(text)
        if ids is None:
            ids = self.tokenizer.encode(text)
        if max(ids, default=0) >= self._vocab_size:
            raise UserError(
                f"{self.tokenizer.path} makes id {max(ids)}, the model's vocabulary is {self._vocab_size}; copy the "
                "tokenizer of its reference"
            )
        if add_prefix and self.prefix and ids[: len(self.prefix)] != self.prefix:
            return [*self.prefix, *ids]
        return list(ids)


def eos_id(tokenizer: Tokenizer) -> int:
    """The tokenizer's EOS.

    Raises:
        UserError: it has none.
    """
    if tokenizer.eos_id is None:
        raise UserError(f"{tokenizer.path} defines no EOS token, which stands before an empty context")
    return tokenizer.eos_id


def model_prefix(tokenizer: Tokenizer) -> list[int]:
    """Ids that transformers' tokenizer of the same folder puts before a text.

    ``add_bos_token`` of ``tokenizer_config.json`` decides; where it is not there, the template of ``tokenizer.json``,
    or for a SentencePiece model the default of the LLaMA and Gemma tokenizers, which is BOS.
    """
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    stated = _stated(tokenizer.path.parent / "tokenizer_config.json")
    if stated is not None:
        return bos if stated else []
    if tokenizer.path.name == "tokenizer.model":
        return bos
    from tokenizers import Tokenizer as FastTokenizer

    return [i for i in FastTokenizer.from_file(str(tokenizer.path)).encode("").ids if i == tokenizer.bos_id]


def _stated(path: Path) -> bool | None:
    if not path.is_file():
        return None
    stated = json.loads(path.read_text(encoding="utf-8")).get("add_bos_token")
    return stated if isinstance(stated, bool) else None
