"""Masks as packed bits: the store of ``labels.mask``, ``planes.mask`` and ``slides.tissue_mask`` (contract.md §4)."""

from __future__ import annotations

import threading

import numpy as np

ZSTD_LEVEL = 1  # higher levels gain 3 % on anatomical masks and cost half the speed
HALF = 128  # of 255: a fractional mask's pixel is inside from one half on (contract.md §3, labels.threshold)

_local = threading.local()  # zstandard's contexts must not be shared between threads


def pack(mask: np.ndarray) -> bytes:
    """``bits-zstd``: (rows, cols) bool -> row-major bits, most significant first, zstd level 1."""
    return _packed(np.packbits(np.asarray(mask, bool), axis=None).tobytes())


def unpack(data: bytes, rows: int, cols: int) -> np.ndarray:
    """(rows, cols) bool; raises ValueError when the bytes hold another number of pixels."""
    return np.unpackbits(_inflate(data, (rows * cols + 7) // 8), count=rows * cols).reshape(rows, cols).view(bool)


def pack_u8(mask: np.ndarray) -> bytes:
    """``u8-zstd``: (rows, cols) uint8 (fractions of 255, probabilities), zstd level 1."""
    return _packed(np.ascontiguousarray(mask, np.uint8).tobytes())


def unpack_u8(data: bytes, rows: int, cols: int) -> np.ndarray:
    """(rows, cols) uint8; raises ValueError when the bytes hold another number of pixels."""
    return _inflate(data, rows * cols).reshape(rows, cols)


def _packed(raw: bytes) -> bytes:
    # zstandard hands out its whole buffer under a shorter length: 100 bytes that hold on to 2 MB. A copy holds what it says.
    return bytes(memoryview(_compressor().compress(raw)))


def count_planes(data: bytes, planes: int, count: int) -> list[int]:
    """Pixels set in each of several planes of ``count`` pixels that are packed one after the other (`medspark.feed.rows.pack_masks`).

    Raises ValueError when the bytes hold another number of pixels.
    """
    raw = _inflate(data, (planes * count + 7) // 8)
    return [int(plane.sum()) for plane in np.unpackbits(raw, count=planes * count).reshape(planes, count)]


def inside(data: bytes, rows: int, cols: int) -> np.ndarray:
    """(rows, cols) bool of a mask of either codec, told apart by how many bytes it holds; fractions count from one half on.

    A mask of one pixel is one byte in both, and inside from 128 on in both. Raises ValueError when the bytes hold another number of pixels.
    """
    if rows < 1 or cols < 1:
        raise ValueError(f"a mask of {rows} x {cols} pixels has no pixel")
    count = rows * cols
    raw = _decompressed(data, count)
    if len(raw) == (count + 7) // 8:
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=count).reshape(rows, cols).view(bool)
    if len(raw) == count:
        return np.frombuffer(raw, np.uint8).reshape(rows, cols) >= HALF
    raise ValueError(
        f"the mask holds {len(raw)} bytes; {rows} x {cols} pixels are {(count + 7) // 8} bytes as bits or {count} as fractions"
    )


def _decompressed(data: bytes, at_most: int) -> bytes:
    import zstandard

    try:
        return bytes(_decompressor().decompress(data, max_output_size=at_most))
    except zstandard.ZstdError as error:
        raise ValueError(f"not a zstd mask: {error}") from None


def _inflate(data: bytes, size: int) -> np.ndarray:
    raw = _decompressed(data, size)
    if len(raw) != size:
        raise ValueError(f"mask holds {len(raw)} bytes, its size needs {size}")
    return np.frombuffer(raw, np.uint8)


def _compressor():  # type: ignore[no-untyped-def]
    import zstandard

    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    return _local.compressor


def _decompressor():  # type: ignore[no-untyped-def]
    import zstandard

    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return _local.decompressor
