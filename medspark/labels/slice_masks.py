"""Painted truth on slices: which plane lies on which slice, and how its pixels become the slice's.

A plane with an affine is placed by it, whether it names its slice or not; along another axis than the series it is scattered voxel by voxel.
A plane without one belongs to the one image that it names, pixel by pixel. Masks are kept as they are stored, compressed: 100 organs on
500 slices are 1.6 GB as bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.labels.label_rows import Groups, Piece, cropped
from medspark.labels.mask_bands import DEFAULT_THRESHOLD
from medspark.labels.regions import MAX_COORDINATE
from medspark.labels.slice_geometry import SlicePlanes, Turn, Volume, corners, off_mm, parallel, turn_onto
from medspark.labels.slice_images import Images, Structures
from medspark.pixels.masks import pack, pack_u8, unpack, unpack_u8


@dataclass
class SliceMasks:
    """Collects planes per (group, image).

    images, planes : the images, and where they lie
    wrong : counts what lies nowhere
    """

    groups: Groups
    images: Images
    planes: SlicePlanes
    wrong: Structures
    _bits: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _fractions: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _threshold: dict[int, float] = field(default_factory=dict)
    _voxels: dict[int, list[tuple[str, np.ndarray]]] = field(default_factory=dict)
    _volumes: dict[str, Volume | None] = field(default_factory=dict)

    def read(self, tables: Iterator[pa.Table]) -> None:
        for table in tables:
            numbers = self.groups.add(table)
            for batch_row, row in zip(numbers.tolist(), _rows(table), strict=True):
                self._place(batch_row, row)

    def keys(self) -> set[tuple[int, int]]:
        """(group, image) of everything that was placed, empty masks among them."""
        found = {*self._bits, *self._fractions}
        for group, parts in self._voxels.items():
            for part, voxels in parts:
                volume = self._volumes[part]
                assert volume is not None
                found |= {(group, at) for k in np.unique(voxels[:, 0]).tolist() for at in volume.at[k]}
        return found

    def piece(self, group: int, at: int) -> Piece | None:
        """The group's mask on an image; None where no plane lies."""
        rows, cols = self.planes.size[at].tolist()
        mask: np.ndarray | None = None
        if (group, at) in self._bits:
            mask = unpack(self._bits[group, at], rows, cols)
        for voxels in self._by_slice(group, at):
            mask = np.zeros((rows, cols), bool) if mask is None else mask.copy()
            mask[voxels[:, 1], voxels[:, 2]] = True
        if (group, at) in self._fractions:
            fractions = unpack_u8(self._fractions[group, at], rows, cols)
            if mask is not None:
                fractions = np.maximum(fractions, np.where(mask, 255, 0).astype(np.uint8))
            threshold = self._threshold[group]
            return cropped((fractions >= threshold) & (fractions > 0), fractions, threshold)
        return None if mask is None else cropped(mask)

    def _by_slice(self, group: int, at: int) -> Iterator[np.ndarray]:
        for part, voxels in self._voxels.get(group, ()):
            volume = self._volumes[part]
            assert volume is not None
            if part != self.planes.part[at]:
                continue
            k = next((k for k, here in enumerate(volume.at) if at in here), None)
            if k is not None and (here := voxels[voxels[:, 0] == k]).size:
                yield here

    def _place(self, number: int, row: dict[str, Any]) -> None:
        group, ref = self.groups[number], row["ref_image"]
        candidates = self.images.of(ref)
        if ref.startswith("sop:") and not candidates:
            return  # its image is not here, and may still come
        self.wrong.count(group)
        fractional, size = row["mask_codec"] != "bits-zstd", (row["rows"], row["cols"])
        if fractional:
            threshold = DEFAULT_THRESHOLD if row["threshold"] is None else float(row["threshold"])
            self._threshold[number] = max(threshold, self._threshold.get(number, 0.0))
        if row["affine"] is None:
            self._paste(number, candidates, row, _array(row))
            return
        affine = np.array(row["affine"], np.float64).reshape(4, 4)
        named = ref.startswith("sop:")
        if not (np.abs(affine) <= MAX_COORDINATE).all():  # also where one is NaN
            self.wrong.fault(group, "LABEL_GEOMETRY")
            return
        on = self.planes.nearest(corners(affine, *size), candidates)
        if not named:
            on = [at for at in on if parallel(self.planes, at, affine)]
        if not on:
            if named:
                self.wrong.fault(group, "LABEL_GEOMETRY")
            else:
                self._scatter(number, affine, _array(row))
            return
        for at in on:
            turn = turn_onto(self.planes, at, affine, *size, named)
            if not isinstance(turn, Turn):
                self.wrong.fault(group, turn, off_mm(self.planes, at, affine, *size) if turn == "LABEL_GEOMETRY" else float("nan"))
                return
            if turn == Turn() and (number, at) not in (self._fractions if fractional else self._bits):
                (self._fractions if fractional else self._bits)[number, at] = row["mask"]
            else:
                self._unite(number, at, turn(_array(row)))

    def _paste(self, number: int, candidates: list[int], row: dict[str, Any], mask: np.ndarray) -> None:
        """A plane without a place: (a band of) the whole of one image."""
        if len(candidates) != 1:
            self.wrong.fault(self.groups[number], "LABEL_GEOMETRY")
            return
        at = candidates[0]
        row0, col0 = row.get("row0") or 0, row.get("col0") or 0
        size = row.get("ref_rows") or row["rows"], row.get("ref_cols") or row["cols"]
        if size != tuple(self.planes.size[at].tolist()) or row0 + mask.shape[0] > size[0] or col0 + mask.shape[1] > size[1]:
            self.wrong.fault(self.groups[number], "LABEL_SIZE")
            return
        if mask.shape != size:
            whole = np.zeros(size, mask.dtype)
            whole[row0 : row0 + mask.shape[0], col0 : col0 + mask.shape[1]] = mask
            mask = whole
        self._unite(number, at, mask)

    def _scatter(self, number: int, affine: np.ndarray, mask: np.ndarray) -> None:
        """A plane that cuts the series along another axis."""
        fault = "LABEL_GEOMETRY"
        for part in dict.fromkeys(self.planes.part.tolist()):
            if part not in self._volumes:
                self._volumes[part] = Volume.of(self.planes, part)
            volume = self._volumes[part]
            if volume is None:
                continue
            inside = mask if mask.dtype == bool else mask >= self._threshold[number]
            voxels = volume.voxels(affine, inside)
            if isinstance(voxels, np.ndarray):
                if len(voxels):
                    self._voxels.setdefault(number, []).append((part, voxels))
                return
            fault = voxels
        self.wrong.fault(self.groups[number], fault)

    def _unite(self, number: int, at: int, mask: np.ndarray) -> None:
        key = number, at
        if mask.dtype == bool:
            self._bits[key] = pack(mask if key not in self._bits else mask | unpack(self._bits[key], *mask.shape))
        else:
            if key in self._fractions:
                mask = np.maximum(mask, unpack_u8(self._fractions[key], *mask.shape))
            self._fractions[key] = pack_u8(mask)


def _array(row: dict[str, Any]) -> np.ndarray:
    """(rows, cols) bool, or uint8 fractions of 255."""
    return (unpack if row["mask_codec"] == "bits-zstd" else unpack_u8)(row["mask"], row["rows"], row["cols"])


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=64):
        yield from batch.to_pylist()
