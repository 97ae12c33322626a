"""A SentencePiece tokenizer made from text, for models that are trained from nothing."""

import io
from collections.abc import Iterable
from pathlib import Path

from inheritune_lit.errors import UserError

_MOST_LINES = 40_000


def train_tokenizer(path: Path, lines: Iterable[str], vocab_size: int) -> None:
    """Write a ``tokenizer.model`` with LLaMA's choices: BPE, nothing unknown, digits and spaces stay what they are.

    Args:
        path: the new file.
        lines: text; up to 40,000 of them are used.
        vocab_size: number of pieces.

    Raises:
        UserError: too little text for so many.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            allow_whitespace_only_pieces=True,
            input_sentence_size=_MOST_LINES,
            shuffle_input_sentence=True,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"the text makes no tokenizer of {vocab_size:,} pieces, give more text ({' '.join(str(error).split())})"
        ) from error
    path.write_bytes(model.getvalue())
