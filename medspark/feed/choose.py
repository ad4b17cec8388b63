"""One task of choosing: images with their labels in, samples with their packed truth out. No pixel is read; pointers to them travel.

Pure but for Arrow: `Chooser` is called with record batches of `cohort.Cohort.images`, sorted by parent, volume and place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.feed.rows import pack_masks
from medspark.feed.sample import Recipe, covered, cut, depths, grid, neighbours, resized_mask
from medspark.feed.truth import Truth, shown
from medspark.keys import Ids

STAGED = (
    "row_id string, image_id string, parent_id string, dataset string, subject_key string, part string, row0 int, col0 int, k int, weight double,"
    " target array<float>, positive_px array<long>, known_px long, overlap boolean, rows int, cols int, positive boolean,"
    " home_file int, home_grp int, planes string, mask binary"
)
"""A sample without its pixels. ``planes``: JSON list of [file, row group, row, {what `Recipe.values` reads}], one per stored plane."""
_TYPES = {
    "string": pa.string(),
    "int": pa.int32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "binary": pa.binary(),
    "long": pa.int64(),
}
_TYPES |= {"array<float>": pa.list_(pa.float32()), "array<long>": pa.list_(pa.int64())}
SCHEMA = pa.schema([pa.field(name, _TYPES[kind]) for name, kind in (column.split() for column in STAGED.split(", "))])
FLUSH_ROWS = 512  # samples per batch: packed masks of some KB each
FLUSH_BYTES = 16 << 20

Image = Mapping[str, Any]


@dataclass(frozen=True)
class Chooser:
    """crop, stride : (rows, cols) after resampling, None for whole images;  fingerprint : of all that makes a row another row"""

    recipe: Recipe
    truth: Truth
    segmentation: bool
    crop: tuple[int, int] | None
    stride: tuple[int, int] | None
    fingerprint: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        held: list[dict[str, Any]] = []
        size = 0
        for sample in self.samples(row for batch in batches for row in batch.to_pylist()):
            held.append(sample)
            size += len(sample["mask"]) + len(sample["planes"])
            if len(held) >= FLUSH_ROWS or size >= FLUSH_BYTES:
                yield pa.RecordBatch.from_pylist(held, SCHEMA)
                held, size = [], 0
        if held:
            yield pa.RecordBatch.from_pylist(held, SCHEMA)

    def samples(self, images: Iterable[Image]) -> Iterator[dict[str, Any]]:
        """Samples of images in their order."""
        if self.recipe.kind == "image":
            for image in images:
                yield from self._of_image(image, [image])
            return
        for _, group in groupby(images, key=lambda image: (image["parent_id"], image["t"])):
            volume = list(group)
            if self.recipe.kind == "volume":
                yield from self._of_volume(volume)
                continue
            ks = [image["k"] for image in volume]
            for place, image in enumerate(volume):
                if image["wants"]:
                    yield from self._of_image(image, [volume[at] for at in neighbours(place, self.recipe.context, ks)])

    def _size(self, image: Image) -> tuple[int, int]:
        spacing = json.loads(image["meta"]).get("pixel_spacing_mm") if self.recipe.spacing_mm is not None else None
        return self.recipe.sized(image["rows"], image["cols"], spacing)

    def _of_image(self, image: Image, planes: Sequence[Image]) -> Iterator[dict[str, Any]]:
        size, rows = self._size(image), image["truth"] or ()
        whole: tuple[np.ndarray, np.ndarray] | None = None
        targets: list[float] | None = None
        if self.segmentation:
            found = self.truth.planes(rows, (image["rows"], image["cols"]), image["extents"])
            if found is None:
                return
            whole = _resized(found, size)
        else:
            targets = self.truth.targets(rows)
            if targets is None:
                return
        for want in image["wants"]:
            for row0, col0 in self._corners(want, size):
                box = self.crop or size
                if whole is None:
                    assert targets is not None
                    yield self._row(image, planes, want, row0, col0, box, targets, None)
                    continue
                known = cut(whole[1], row0, col0, box) & covered(size, row0, col0, box)
                drawn = cut(whole[0], row0, col0, box, axis=1) & known
                if known.any():
                    yield self._row(image, planes, want, row0, col0, box, shown(drawn, known), (drawn, known))

    def _corners(self, want: Mapping[str, Any], size: tuple[int, int]) -> list[tuple[int, int]]:
        if self.crop is None:
            return [(0, 0)]
        if want["row0"] is not None and want["col0"] is not None:
            return [(want["row0"], want["col0"])]
        return grid(size, self.crop, self.stride or self.crop)

    def _of_volume(self, volume: Sequence[Image]) -> Iterator[dict[str, Any]]:
        wants = [want for image in volume for want in image["wants"] or ()]
        if not wants:
            return
        places = depths(len(volume), self.recipe.depth)
        chosen = [volume[place] for place in places]  # -1: the last slice again
        middle = volume[len(volume) // 2]
        size = self.recipe.sized(middle["rows"], middle["cols"], None)
        if not self.segmentation:
            targets = self.truth.targets([row for image in volume for row in image["truth"] or ()])
            if targets is not None:
                yield self._row(middle, chosen, wants[0], 0, 0, size, targets, None)
            return
        drawn = np.zeros((len(self.truth.labels), self.recipe.depth, *size), bool)
        known = np.zeros((self.recipe.depth, *size), bool)
        for at, (place, image) in enumerate(zip(places, chosen, strict=True)):
            found = self.truth.planes(image["truth"] or (), (image["rows"], image["cols"]), image["extents"]) if place >= 0 else None
            if found is not None:
                drawn[:, at], known[at] = _resized(found, size)
        drawn &= known
        if known.any():
            yield self._row(middle, chosen, wants[0], 0, 0, size, shown(drawn, known), (drawn, known))

    def _row(
        self,
        image: Image,
        planes: Sequence[Image],
        want: Mapping[str, Any],
        row0: int,
        col0: int,
        box: tuple[int, int],
        targets: Sequence[float],
        masks: tuple[np.ndarray, np.ndarray] | None,
    ) -> dict[str, Any]:
        places = ",".join(f"[{plane['file']},{plane['grp']},{plane['row']},{plane['meta']}]" for plane in planes)
        return {
            "row_id": Ids(None).digest("feed_row", image["image_id"], want["part"], row0, col0, self.fingerprint),
            "image_id": image["image_id"],
            "parent_id": image["parent_id"],
            "dataset": image["dataset"],
            "subject_key": image["subject_key"],
            "part": want["part"],
            "row0": row0,
            "col0": col0,
            "k": -1 if image["k"] is None else image["k"],
            "weight": want["weight"],
            "target": list(targets),
            "positive_px": [] if masks is None else [int(plane.sum()) for plane in masks[0]],
            "known_px": 0 if masks is None else int(masks[1].sum()),
            "overlap": masks is not None and bool((masks[0].sum(axis=0) > 1).any()),
            "rows": box[0],
            "cols": box[1],
            "positive": 1.0 in targets,
            "home_file": image["file"],
            "home_grp": image["grp"],
            "planes": f"[{places}]",
            "mask": b"" if masks is None else pack_masks(*masks),
        }


def _resized(truth: tuple[np.ndarray, np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    drawn, known = truth
    if known.shape == size:
        return truth
    return np.stack([resized_mask(plane, size) for plane in drawn]) if len(drawn) else drawn, resized_mask(known, size)
