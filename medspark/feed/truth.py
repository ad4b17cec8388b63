"""What is known of an image: rows of ``labels`` to planes and targets. Pure numpy.

A pixel's truth is known if somebody looked at it. Where a slide or series has extents (what was examined), only they are known; where it has none,
an image with any row of the wanted labels is known as a whole. An image without a row is known only if the request says so. Positive and negative
masks are known wherever they lie, ``ignore`` never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medspark.pixels import masks

BACKGROUND = ""
"""What a class map gives to labels that mean: none of the wanted ones."""
FULL = 255.0  # a fraction of 1 in a u8-zstd mask


@dataclass(frozen=True)
class Truth:
    """How rows of ``labels`` are read.

    labels : the wanted classes, in their order;  classes : label -> class, or `BACKGROUND`; others keep their names
    exclusive : one class at most: another one's presence says that this one is absent
    unlabelled : what an image without any row of the wanted labels is
    """

    labels: tuple[str, ...]
    classes: Mapping[str, str] = field(default_factory=dict)
    exclusive: bool = False
    unlabelled: Literal["skip", "negative"] = "skip"

    def name(self, label: str) -> str:
        return self.classes.get(label, label)

    def planes(self, rows: Sequence[Mapping[str, Any]], size: tuple[int, int], extents: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """((L, rows, cols) bool, (rows, cols) bool known) of one image; None where it is to be left out.

        rows : its rows of ``labels`` (label, role, mask, mask_codec, rows, cols, area_px, threshold)
        extents : whether its slide or series has extents, on whatever image
        """
        # That an image shows a class somewhere says nothing of its pixels: a positive row without a mask is none here.
        placed = [row for row in rows if row["mask"] is not None or row["role"] != "positive"]
        wanted = [row for row in placed if row["role"] in ("extent", "ignore") or self._counts(row["label"])]
        drawn = [row for row in wanted if row["role"] != "extent"]
        examined = [row for row in wanted if row["role"] == "extent"]
        if not wanted and (extents or self.unlabelled == "skip"):
            return None
        planes = np.zeros((len(self.labels), *size), bool)
        known = np.full(size, not (extents or examined))
        for row in examined:
            known |= inside(row, size)
        ignored = np.zeros(size, bool)
        for row in drawn:
            mask, name = inside(row, size), self.name(row["label"])
            if row["role"] == "ignore":
                ignored |= mask
                continue
            known |= mask
            if row["role"] == "positive" and name in self.labels:
                planes[self.labels.index(name)] |= mask
        known &= ~ignored
        return planes, known

    def targets(self, rows: Sequence[Mapping[str, Any]]) -> list[float] | None:
        """1, 0 or NaN (unknown) per class, from whole-image labels and from masks (any pixel); None where the image is to be left out."""
        found = [float("nan")] * len(self.labels)
        stated = False
        elsewhere = False
        for row in rows:
            name = self.name(row["label"])
            if row["role"] not in ("positive", "negative") or not self._counts(row["label"]):
                continue
            stated = True
            shown = row["role"] == "positive" and row["area_px"] != 0
            if name == BACKGROUND:
                elsewhere |= shown
            else:
                place = self.labels.index(name)
                if shown:
                    found[place] = 1.0
                elif found[place] != 1.0:  # a positive row wins over a negative one of another reader
                    found[place] = 0.0
        if not stated and self.unlabelled == "skip":
            return None
        if self.unlabelled == "negative" or elsewhere or (self.exclusive and 1.0 in found):
            found = [0.0 if value != value else value for value in found]
        return found

    def _counts(self, label: str) -> bool:
        name = self.name(label)
        return name == BACKGROUND or name in self.labels


def inside(row: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """(rows, cols) bool of one row's mask; a row without one means the whole image."""
    if row["mask"] is None:
        return np.full(size, True)
    if (row["rows"], row["cols"]) != size:
        raise ValueError(f"a mask of {row['rows']} x {row['cols']} px on an image of {size[0]} x {size[1]} px")
    if row["mask_codec"] == "u8-zstd":
        threshold = masks.HALF if row["threshold"] is None else row["threshold"] * FULL
        return np.asarray(masks.unpack_u8(row["mask"], *size) >= threshold)
    return masks.unpack(row["mask"], *size)


def shown(planes: np.ndarray, known: np.ndarray) -> list[float]:
    """Image-level truth of a sample from its planes: 1 if the class has a pixel, 0 if not, NaN if nothing of the sample is known."""
    if not known.any():
        return [float("nan")] * len(planes)
    return [1.0 if plane.any() else 0.0 for plane in planes]
