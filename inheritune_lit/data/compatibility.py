"""Does packed data belong to this model?"""

from pathlib import Path

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.data.packed import load_packed_manifest
from inheritune_lit.errors import UserError
from inheritune_lit.tokenizer import Tokenizer


def check_fits(folder: Path, checkpoint_dir: Path) -> None:
    """Checks that packed data was made with the checkpoint's tokenizer and fits its vocabulary.

    Raises:
        UserError: it was not, or does not.
    """
    check_fits_model(folder, checkpoint_dir, load_config(checkpoint_dir).padded_vocab_size)


def check_fits_model(folder: Path, checkpoint_dir: Path, padded_vocab_size: int) -> None:
    """``check_fits`` for any format of model.

    Args:
        folder: packed data.
        checkpoint_dir: folder of the tokenizer.
        padded_vocab_size: embeddings of the model.

    Raises:
        UserError: the data does not fit.
    """
    manifest = load_packed_manifest(folder)
    if manifest["max_token_id"] >= padded_vocab_size:
        raise UserError(
            f"vocabulary too large for the model: {folder} holds token id {manifest['max_token_id']}, {checkpoint_dir} "
            f"has {padded_vocab_size} embeddings; prepare the data with the model's own tokenizer"
        )
    tokenizer = Tokenizer(checkpoint_dir)
    made_with = manifest["tokenizer"]["sha256"]
    if tokenizer.sha256() != made_with:
        raise UserError(
            f"{folder} was made with another tokenizer (SHA-256 {made_with[:12]}...) than {tokenizer.path} "
            f"({tokenizer.sha256()[:12]}...); prepare the data with `--tokenizer_dir {checkpoint_dir}`"
        )
