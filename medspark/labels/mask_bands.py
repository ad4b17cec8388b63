"""Raster masks of a slide, streamed in bands of rows and asked at the pixel centres of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from medspark.labels.label_rows import Groups, Piece, column, cropped
from medspark.pixels.masks import unpack, unpack_u8

EXACT = (
    1e-3  # a ratio of scales this near to a whole number is one: a level of 1,000 px whose last, incomplete pixel was cut is off by that
)
DEFAULT_THRESHOLD = 127.5  # of 255, where a fractional plane does not say: half (contract.md §3, labels.threshold)


class HasPlace(Protocol):
    """A tile: where its pixel centres lie at level 0."""

    @property
    def y_l0(self) -> float: ...
    @property
    def height_l0(self) -> float: ...
    @property
    def height_px(self) -> int: ...
    @property
    def width_px(self) -> int: ...
    @property
    def valid_height_px(self) -> int: ...
    @property
    def valid_width_px(self) -> int: ...

    @property
    def scale(self) -> tuple[float, float]: ...
    def xs(self) -> np.ndarray: ...
    def ys(self) -> np.ndarray: ...


def mask_scale(width_l0: int, height_l0: int, levels: list[tuple[int, int]], ref_cols: int, ref_rows: int) -> tuple[float, float] | None:
    """(x, y) level-0 px per mask px of a mask that covers the slide, or None where it is no uniformly scaled slide.

    A mask of a level's size has that level's scale, the ratio of the sizes axis by axis, as the tiles have (slides/frames.py). Another one
    has a whole-number scale where that explains its size to less than one mask pixel on both axes (writers cut or fill up the last
    incomplete pixel), else the ratio of the widths where that explains the height.
    """
    if (ref_cols, ref_rows) in [(width_l0, height_l0), *levels]:
        return width_l0 / ref_cols, height_l0 / ref_rows
    whole = round(width_l0 / ref_cols)
    if whole >= 1 and abs(width_l0 / whole - ref_cols) < 1 and abs(height_l0 / whole - ref_rows) < 1:
        return float(whole), float(whole)
    ratio = width_l0 / ref_cols
    if abs(height_l0 / ratio - ref_rows) < 1:
        return ratio, height_l0 / ref_rows
    return None


def is_exact(mask_px_l0: tuple[float, float], tile_px_l0: tuple[float, float]) -> bool:
    """Whether one of the two pixel sizes is a whole multiple of the other, on both axes: then sampling at centres moves nothing."""
    ratios = [max(m, t) / min(m, t) for m, t in zip(mask_px_l0, tile_px_l0, strict=True)]
    return all(abs(ratio - round(ratio)) <= EXACT * ratio for ratio in ratios)


@dataclass
class _Band:
    group: int
    scale: tuple[float, float]
    row0: int
    col0: int
    rows: int
    cols: int
    codec: str
    threshold: float
    packed: bytes
    _lines: np.ndarray | None = None

    @property
    def top_l0(self) -> float:
        return self.row0 * self.scale[1]

    @property
    def bottom_l0(self) -> float:
        return (self.row0 + self.rows) * self.scale[1]

    def window(self, row: np.ndarray, col: np.ndarray) -> np.ndarray | None:
        """(len(row), len(col)) bool, or uint8 fractions, at the band's own ascending rows and columns; None where nothing is set.

        What is kept while the band is needed is bits, a line of whole bytes per row: 256 classes on a slide of 100,000 px are 512 MB.
        """
        bits = self.codec == "bits-zstd"
        if self._lines is None:
            whole = (unpack if bits else unpack_u8)(self.packed, self.rows, self.cols)
            self._lines = np.packbits(whole, axis=1) if bits else whole
            self.packed = b""
        if not bits:
            part = self._lines[row[:, None], col[None, :]]
            return part if part.any() else None
        first = int(col[0]) // 8
        lines = self._lines[row, first : int(col[-1]) // 8 + 1]
        if not lines.any():
            return None
        part = np.unpackbits(lines, axis=1).view(bool)[:, col - first * 8]
        return part if part.any() else None


@dataclass
class Bands:
    """The bands that the current row of tiles needs.

    planes : tables of ``planes`` in the order of their first row (within a table any order will do); ValueError where they are not
    resample : ``labels.resample``
    faults : (code, reason) met so far, one per kind of mask
    """

    planes: Iterator[pa.Table]
    slide: Mapping[str, Any]
    groups: Groups
    resample: str
    faults: list[tuple[str, str]] = field(default_factory=list)
    _kept: list[_Band] = field(default_factory=list)
    _scales: dict[tuple[int, int], tuple[float, float] | None] = field(default_factory=dict)
    _passed_l0: float = 0.0
    _pending: Iterator[_Band] | None = None
    _next: _Band | None = None

    def advance(self, tile: HasPlace) -> None:
        """Drop what lies above the row of tiles that begins with ``tile``, take in what it needs."""
        self._kept = [band for band in self._kept if band.bottom_l0 > tile.y_l0]
        bottom = tile.y_l0 + tile.height_l0
        if self._pending is None:
            self._pending = self._read(tile.scale)
            self._next = next(self._pending, None)
        while self._next is not None and self._next.top_l0 < bottom:
            if self._next.top_l0 < self._passed_l0:
                raise ValueError("mask planes must come in the order of their first row")
            if self._next.bottom_l0 > tile.y_l0:
                self._kept.append(self._next)
            self._next = next(self._pending, None)
        self._passed_l0 = bottom

    def finish(self) -> None:
        """Read what is left, for its faults."""
        for _ in self._pending if self._pending is not None else self._read(None):
            pass

    def on(self, tile: HasPlace) -> Iterator[tuple[int, Piece]]:
        """(group, mask on the tile) of every mask that has a pixel there."""
        if not self._kept:
            return
        xs, ys = tile.xs(), tile.ys()
        by_group: dict[int, list[_Band]] = {}
        for band in self._kept:
            by_group.setdefault(band.group, []).append(band)
        for group, bands in by_group.items():
            found: np.ndarray | None = None
            for band in bands:
                row = np.floor(ys / band.scale[1]).astype(np.int64) - band.row0
                col = np.floor(xs / band.scale[0]).astype(np.int64) - band.col0
                r0, r1 = np.searchsorted(row, 0), np.searchsorted(row, band.rows)
                c0, c1 = np.searchsorted(col, 0), np.searchsorted(col, band.cols)
                if r0 == r1 or c0 == c1:
                    continue
                part = band.window(row[r0:r1], col[c0:c1])
                if part is None:
                    continue
                if found is None:
                    found = np.zeros((tile.height_px, tile.width_px), part.dtype)
                elif found.dtype != part.dtype:  # binary and fractional planes of one label
                    found, part = (np.where(item, 255, 0).astype(np.uint8) if item.dtype == bool else item for item in (found, part))
                np.maximum(found[r0:r1, c0:c1], part, out=found[r0:r1, c0:c1])
            if found is not None:
                if found.dtype == bool:
                    yield group, cropped(found)
                else:
                    threshold = max(band.threshold for band in bands)
                    yield group, cropped((found >= threshold) & (found > 0), found, threshold)

    def _read(self, tile_scale: tuple[float, float] | None) -> Iterator[_Band]:
        for table in self.planes:
            first_row = np.array([row or 0 for row in column(table, "row0")], np.int64)
            table = table.take(np.argsort(first_row, kind="stable"))  # tiled segmentations list their segments one after another
            numbers = self.groups.add(table)
            for number, row in zip(numbers.tolist(), table.to_pylist(), strict=True):
                if row["affine"] is not None:
                    self._fault("LABEL_GEOMETRY", "a mask that is placed in a patient does not belong to a slide")
                    continue
                ref = row["ref_rows"] or row["rows"], row["ref_cols"] or row["cols"]
                scale = self._scale(ref, tile_scale)
                if scale is not None:
                    threshold = DEFAULT_THRESHOLD if row["threshold"] is None else row["threshold"]
                    place = row["row0"] or 0, row.get("col0") or 0
                    yield _Band(number, scale, *place, row["rows"], row["cols"], row["mask_codec"], threshold, row["mask"])

    def _scale(self, ref: tuple[int, int], tile_scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if ref not in self._scales:
            slide = self.slide
            levels = [(level["width"], level["height"]) for level in slide.get("level_sizes_px") or ()]
            scale = mask_scale(slide["width_l0_px"], slide["height_l0_px"], levels, ref[1], ref[0])
            if scale is None:
                self._fault("LABEL_SIZE", f"a mask of {ref[0]} x {ref[1]} is no uniformly scaled slide")
            elif tile_scale is not None and self.resample != "nearest" and not is_exact(scale, tile_scale):
                reason = f"a mask of {ref[0]} x {ref[1]} does not fit the tiles' pixels; labels.resample = nearest samples it"
                self._fault("LABEL_SIZE", reason)
                scale = None
            self._scales[ref] = scale
        return self._scales[ref]

    def _fault(self, code: str, reason: str) -> None:
        if (code, reason) not in self.faults:
            self.faults.append((code, reason))
