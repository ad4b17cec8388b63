"""What a row of a feed holds: one sample, its pixels as they enter the network, its truth. The narrow waist between `write` and the readers.

A feed is a Delta table of plain Parquet, one part of the split per file, in exact row groups. No column is ever null: Petastorm turns nullable
integers into floats.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import zstandard

SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),  # id of (image, crop, recipe)
        pa.field("image_id", pa.string(), nullable=False),  # the image, or a volume's middle slice
        pa.field("parent_id", pa.string(), nullable=False),  # slide, series or source
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("subject_key", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),  # train, val, test, ...
        pa.field("row0", pa.int32(), nullable=False),  # upper left corner of the crop in the (resampled) image, px; may be negative: padded
        pa.field("col0", pa.int32(), nullable=False),
        pa.field("k", pa.int32(), nullable=False),  # the slice's place in its volume; -1 where it has none
        pa.field("weight", pa.float32(), nullable=False),  # of the sample in the loss
        pa.field("target", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),  # one per label: 1, 0, or NaN unknown
        pa.field("mask", pa.binary(), nullable=False),  # `pack_masks`; empty for classification
        pa.field("image", pa.binary(), nullable=False),  # by the card's codec, dtype and shape
    ]
)
"""Columns of every feed, in this order; the payload last."""

NARROW = ("row_id", "target", "weight")
PAYLOADS = ("mask", "image")
BATCHED = (*NARROW, *PAYLOADS)
"""What a batch is made from; the rest is for people and SQL. Stored without compression: a zstd context a column costs more than a row group's reading."""

ZSTD_LEVEL = 1


class _Inflaters(threading.local):
    """One zstd context a thread: making one costs fifteen times what it takes to inflate a mask."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_INFLATERS = _Inflaters()


def pack_masks(labels: np.ndarray, known: np.ndarray) -> bytes:
    """A sample's truth as bytes.

    labels : (L, *space) bool    one plane per label of the card, in its order
    known : (*space) bool        where the truth is known (inside an extent, not ignored, not padded)
    Returns zstd of the bits of (L + 1, *space), row-major, most significant first; the last plane is ``known``.
    """
    planes = np.concatenate([np.asarray(labels, bool), np.asarray(known, bool)[None]])
    return bytes(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(np.packbits(planes).tobytes()))


def unpack_masks(data: bytes | memoryview, count: int, space: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """((L, *space) bool, (*space) bool): inverse of `pack_masks`; ValueError where the bytes hold another number of pixels."""
    shape = (count + 1, *space)
    n = int(np.prod(shape))
    try:
        raw = _INFLATERS.zstd.decompress(data, max_output_size=(n + 7) // 8)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a feed's mask: {error}") from None
    if len(raw) != (n + 7) // 8:
        raise ValueError(f"mask holds {len(raw)} bytes, {shape} needs {(n + 7) // 8}")
    planes = np.unpackbits(np.frombuffer(raw, np.uint8), count=n).reshape(shape).view(bool)
    return planes[:-1], planes[-1]
