"""Which documents are held out, and which are drawn for a subset: pure functions of their text."""

import hashlib


def text_digest(text: str) -> bytes:
    """SHA-256 of a text (UTF-8)."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def is_validation(text: str, val_fraction: float) -> bool:
    """Whether a document belongs to the validation split; see ``digest_is_validation``."""
    return digest_is_validation(text_digest(text), val_fraction)


def digest_is_validation(digest: bytes, val_fraction: float) -> bool:
    """Whether the document with this ``text_digest`` belongs to the validation split.

    The first eight bytes, read as a number in [0, 1), are compared with the fraction. So the split never changes when
    documents are added, moved or reordered; exact duplicates land on the same side; and a larger fraction only adds
    documents.
    """
    return int.from_bytes(digest[:8], "big") < val_fraction * 2**64


def sample_key(digest: bytes, seed: int) -> int:
    """A number below 2^64, uniform over documents and independent of the split; a subset takes the smallest keys."""
    return int.from_bytes(hashlib.blake2b(digest, digest_size=8, salt=seed.to_bytes(8, "big")).digest(), "big")
