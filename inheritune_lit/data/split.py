"""Which documents are held out: a pure function of their text."""

import hashlib


def is_validation(text: str, val_fraction: float) -> bool:
    """Whether a document belongs to the validation split.

    The first eight bytes of the text's SHA-256 (UTF-8), read as a number in [0, 1), are compared with the fraction. So
    the split never changes when documents are added, moved or reordered; exact duplicates land on the same side; and a
    larger fraction only adds documents.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < val_fraction * 2**64
