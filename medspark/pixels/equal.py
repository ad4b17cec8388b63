"""What equal pixels are (docs/decisions/0012-pixel-hash.md)."""

from __future__ import annotations

import hashlib

import numpy as np


def pixel_hash(array: np.ndarray) -> str:
    """32 hex digits of dtype, shape and little-endian C-order bytes: equal pixels, equal hash, whatever they were coded as.

    The dtype belongs to it and is the header's (BitsAllocated, PixelRepresentation), never a decoder's: int16 and uint16 arrays of
    equal numbers are different pixels here, because a reader sees different types.
    """
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{little.dtype.str}{little.shape}".encode())
    digest.update(little.data)
    return digest.hexdigest()[:32]
