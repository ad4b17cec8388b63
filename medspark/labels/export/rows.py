"""What every writer is given: masks with what they say and who says it, and the images they lie on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medspark.pixels.masks import unpack, unpack_u8

FULL = 255.0  # a stored fraction of 1 (contract.md §4: u8-zstd)
HALF = 0.5  # threshold of fractional masks that do not say theirs (contract.md §3)
READER_DIGITS = 8  # of a reader's name in file names: tells the few readers of one image apart


@dataclass(frozen=True, order=True)
class Reader:
    """Whose labels: those of two readers never share a value image, a volume or a segmentation."""

    source: str
    source_id: str
    annotator: str
    round: int

    @property
    def name(self) -> str:
        """Stands for the reader in file names."""
        return hashlib.sha256(repr((self.source, self.source_id, self.annotator, self.round)).encode()).hexdigest()[:READER_DIGITS]


@dataclass(frozen=True)
class Mask:
    """One row of ``labels`` with pixels.

    image : Mapping     the image's row (``slices``, ``tiles`` or ``photos``), as far as writers need it
    threshold : float   lowest fraction that counts as inside, for fractional masks
    """

    label_row_id: str
    image_id: str
    label: str
    code: str | None
    code_scheme: str | None
    instance_key: str | None
    role: str
    reader: Reader
    rows: int
    cols: int
    codec: str
    packed: bytes
    threshold: float | None
    confidence: float | None
    image: Mapping[str, Any]

    @classmethod
    def of(cls, row: Mapping[str, Any], image: Mapping[str, Any]) -> Mask:
        """From a row of ``labels`` as a dictionary."""
        reader = Reader(row["source"], row["source_id"] or "", row["annotator"] or "", row["round"])
        named = (
            "label_row_id",
            "image_id",
            "label",
            "code",
            "code_scheme",
            "instance_key",
            "role",
            "rows",
            "cols",
            "threshold",
            "confidence",
        )
        same: dict[str, Any] = {name: row[name] for name in named}
        return cls(reader=reader, codec=row["mask_codec"], packed=row["mask"], image=image, **same)

    @property
    def fractional(self) -> bool:
        return self.codec != "bits-zstd"

    def inside(self) -> np.ndarray:
        """(rows, cols) bool; of a fractional mask what ``area_px`` counts: at or above the threshold, and above 0."""
        if not self.fractional:
            return unpack(self.packed, self.rows, self.cols)
        values = self.fractions()
        return (values >= (HALF if self.threshold is None else self.threshold) * FULL) & (values > 0)

    def fractions(self) -> np.ndarray:
        """(rows, cols) uint8, fractions of 255."""
        if self.fractional:
            return unpack_u8(self.packed, self.rows, self.cols)
        return np.where(unpack(self.packed, self.rows, self.cols), np.uint8(FULL), np.uint8(0))


def by_reader(masks: Iterable[Mask]) -> dict[Reader, list[Mask]]:
    """The masks of each reader, readers in a fixed order."""
    found: dict[Reader, list[Mask]] = {}
    for mask in masks:
        found.setdefault(mask.reader, []).append(mask)
    return dict(sorted(found.items()))


def suffix(reader: Reader, readers: Sequence[Reader]) -> str:
    """What tells a reader's file from the others' of one image; empty where there is only one reader."""
    return f"-{reader.name}" if len(readers) > 1 else ""
