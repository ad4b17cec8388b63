"""Lesions of the truth as somebody numbered them: ``instance_key`` of the rows of ``labels`` that a feed was built from, at its version of the table.

A feed's masks unite objects; only the table tells two that touch apart. Its keys are used where they can be put back onto the feed's pixels without
doubt: images and slices that were not resampled by spacing, rows that no free SQL condition chose, and objects that do not overlap (several
readers who each numbered the same lesion would make one lesion many). Elsewhere lesions are connected components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

from medspark.feed.card import Card
from medspark.feed.sample import Recipe, resized_mask
from medspark.lake.files import admitted_paths
from medspark.lake.store import Lake
from medspark.pixels.masks import HALF, unpack, unpack_u8
from medspark.train.gathered import Crop

MOST_ROWS = 50_000  # rows with keys of one slide or series: beyond (every nucleus of a slide) they would fill the memory
FULL = 255.0  # a fraction of 1 in a u8-zstd mask
MASK = ["image_id", "label", "instance_key", "rows", "cols", "mask_codec", "mask", "threshold"]


@dataclass
class Objects:
    """Reads the keyed rows of one parent at a time."""

    lake: Lake
    card: Card
    _actions: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._recipe = Recipe.parse(self.card.recipe)
        options = self.card.options
        self._classes: Mapping[str, str] = dict(options.get("classes") or {})
        self._sources = list(options.get("label_sources") or ("annotation", "reader", "consensus"))
        plain = self._recipe.kind != "volume" and self._recipe.spacing_mm is None and not options.get("label_where")
        if plain and self.card.task == "segmentation" and "labels" in self.card.tables and self.lake.exists("labels"):
            self._actions = self.lake.actions("labels", self.card.tables["labels"])

    def of(self, parent_id: str) -> list[dict[str, Any]]:
        """The rows with a key and a mask of one slide, series or source; none where there are too many, or the feed's pixels are not theirs."""
        files = admitted_paths(self._actions, "parent_id", [parent_id])
        if not files:
            return []
        where = (pc.field("parent_id") == parent_id) & pc.field("instance_key").is_valid() & pc.field("mask_codec").is_valid()
        where &= (pc.field("role") == "positive") & pc.field("source").isin(self._sources)
        if self.lake.read("labels", ["label"], where, files).num_rows > MOST_ROWS:
            return []
        rows = self.lake.read("labels", MASK, where, files).to_pylist()
        return [{**row, "label": self._classes.get(row["label"], row["label"])} for row in rows]

    def painted(
        self, rows: Sequence[Mapping[str, Any]], label: str, crops: Sequence[Crop], first: Sequence[int], shape: Sequence[int]
    ) -> np.ndarray | None:
        """int32 array of ``shape``: the number of the object at each pixel, 0 where there is none. None where no object is there, or two overlap.

        rows : of `of`;  first : (k, row, col) or (row, col) of the array's first pixel in the feed's (resampled) images
        """
        of_image = {crop.place.image_id: crop.place.k for crop in crops}
        numbers: dict[str, int] = {}
        drawn = np.zeros(tuple(shape), np.int32)
        for row in rows:
            if row["label"] != label or row["image_id"] not in of_image:
                continue
            number = numbers.setdefault(row["instance_key"], len(numbers) + 1)
            plane = drawn if len(first) == 2 else drawn[of_image[row["image_id"]] - first[0]]
            mask = _mask(row)
            mask = resized_mask(mask, self._recipe.size) if self._recipe.size is not None else mask
            here, there = _meeting(mask.shape, first[-2:], plane.shape)
            inside = mask[there]
            taken = plane[here]
            if (taken[inside] * (taken[inside] != number)).any():
                return None
            taken[inside] = number
        return drawn if numbers else None


def _meeting(size: Sequence[int], first: Sequence[int], shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """(in the array, in the image): where an array that begins at ``first`` meets an image of ``size``."""
    here, there = [], []
    for side, start, length in zip(size, first, shape, strict=True):
        low, high = max(start, 0), max(min(start + length, side), max(start, 0))
        here.append(slice(low - start, high - start))
        there.append(slice(low, high))
    return tuple(here), tuple(there)


def _mask(row: Mapping[str, Any]) -> np.ndarray:
    if row["mask_codec"] == "u8-zstd":
        threshold = HALF if row["threshold"] is None else row["threshold"] * FULL
        return np.asarray(unpack_u8(row["mask"], row["rows"], row["cols"]) >= threshold)
    return unpack(row["mask"], row["rows"], row["cols"])
