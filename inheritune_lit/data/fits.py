"""Does packed data belong to this model?"""

from pathlib import Path

from inheritune_lit.data.packed import load_packed_manifest
from inheritune_lit.errors import UserError
from inheritune_lit.model.load import load_config
from inheritune_lit.tokenizer import Tokenizer


def check_fits(folder: Path, checkpoint_dir: Path) -> None:
    """Check that packed data was made with the checkpoint's tokenizer and fits its vocabulary.

    Raises:
        UserError: it was not, or does not.
    """
    check_vocabulary(folder, checkpoint_dir, load_config(checkpoint_dir).padded_vocab_size)


def check_vocabulary(folder: Path, checkpoint_dir: Path, embeddings: int) -> None:
    """The same for a model in any format.

    Args:
        folder: packed data.
        checkpoint_dir: where the model's tokenizer is.
        embeddings: how many tokens the model knows.

    Raises:
        UserError: the data was made with another tokenizer, or does not fit the vocabulary.
    """
    manifest = load_packed_manifest(folder)
    if manifest["max_token_id"] >= embeddings:
        raise UserError(
            f"vocabulary too large for the model: {folder} holds token id {manifest['max_token_id']}, {checkpoint_dir} "
            f"has {embeddings} embeddings; prepare the data with the model's own tokenizer"
        )
    tokenizer = Tokenizer(checkpoint_dir)
    made_with = manifest["tokenizer"]["sha256"]
    if tokenizer.sha256() != made_with:
        raise UserError(
            f"{folder} was made with another tokenizer (SHA-256 {made_with[:12]}...) than {tokenizer.path} "
            f"({tokenizer.sha256()[:12]}...); prepare the data with `--tokenizer_dir {checkpoint_dir}`"
        )
