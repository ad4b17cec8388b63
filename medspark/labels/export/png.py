"""PNG value images, grey, 8 or 16 bits: one for each image and reader, or one per label where labels overlap; slides in one piece.

Written row by row with zlib, so that a slide of 100,000 px a side costs a stripe of memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import numpy as np

from medspark.labels.export.rows import Mask
from medspark.labels.export.stitch import Canvas
from medspark.labels.export.values import by_label, overlaps, united, value_type

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY = 0  # colour type
LEVEL = 6
CHUNK_BYTES = 1 << 20  # of IDAT


def images(masks: Sequence[Mask], values: Mapping[str, int]) -> Iterator[tuple[str | None, np.ndarray]]:
    """(label or None for all, (rows, cols) values) of one image and one reader."""
    labels = by_label(masks)
    whole = np.zeros((masks[0].rows, masks[0].cols), value_type(values))
    if overlaps(masks):
        for label, of in labels.items():
            yield label, np.where(united(of), np.array(values[label], whole.dtype), 0).astype(whole.dtype)
        return
    for label, of in labels.items():
        whole[united(of)] = values[label]
    yield None, whole


def slide_labels(masks: Sequence[Mask]) -> list[str | None]:
    """Which images a slide's labels need: [None] for one of all, else one per label."""
    by_image: dict[str, list[Mask]] = {}
    for mask in masks:
        by_image.setdefault(mask.image_id, []).append(mask)
    return list(by_label(masks)) if any(overlaps(of) for of in by_image.values()) else [None]


def stripes(canvas: Canvas, masks: Sequence[Mask], values: Mapping[str, int], label: str | None) -> Iterator[np.ndarray]:
    """A slide's value image from the top, a few rows at a time. ``label``: that one alone."""
    chosen = [mask for mask in masks if label is None or mask.label == label]
    for _, stripe in canvas.values(chosen, values, value_type(values)):
        yield stripe


def write(stream: IO[bytes], rows: int, cols: int, stripes: Iterator[np.ndarray], bits: int) -> None:
    """A grey PNG of rows x cols from stripes (n, cols) of uint8 or uint16."""

    def chunk(kind: bytes, data: bytes) -> None:
        stream.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))

    stream.write(SIGNATURE)
    chunk(b"IHDR", struct.pack(">IIBBBBB", cols, rows, bits, GREY, 0, 0, 0))
    pack, held, done = zlib.compressobj(LEVEL), b"", 0
    for stripe in stripes:
        raw = stripe.astype(">u2" if bits == 16 else np.uint8).view(np.uint8).reshape(len(stripe), -1)
        filtered = np.concatenate([np.zeros((len(raw), 1), np.uint8), raw], axis=1)  # filter type 0 before each row
        held += pack.compress(filtered.tobytes())
        done += len(stripe)
        if len(held) >= CHUNK_BYTES:
            chunk(b"IDAT", held)
            held = b""
    if done != rows:
        raise ValueError(f"{done} rows of {rows} were given")
    chunk(b"IDAT", held + pack.flush())
    chunk(b"IEND", b"")
