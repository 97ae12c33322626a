"""Megatron's format, read from its description and not with our code."""

import struct


def parse_pair(prefix) -> list[list[int]]:
    """Documents of a Megatron pair, read field by field from the format's description."""
    index = prefix.with_suffix(".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code = struct.unpack_from("<QB", index, 9)
    assert version == 1
    sequences, boundaries = struct.unpack_from("<QQ", index, 18)
    assert boundaries == sequences + 1
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    pointers = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    assert struct.unpack_from(f"<{boundaries}q", index, 34 + 12 * sequences) == tuple(range(boundaries))
    assert len(index) == 34 + 12 * sequences + 8 * boundaries
    letter, size = {8: ("H", 2), 4: ("i", 4)}[code]
    data = prefix.with_suffix(".bin").read_bytes()
    assert len(data) == size * sum(lengths)
    return [
        list(struct.unpack_from(f"<{length}{letter}", data, at)) for length, at in zip(lengths, pointers, strict=True)
    ]
