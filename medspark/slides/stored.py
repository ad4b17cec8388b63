"""A slide whose stored tiles we can address ourselves: where they lie, how they are coded, how they make a region.

Both own readers (TIFF, DICOM) end here: they turn headers into `TileTable`s, nothing else differs. Files are read by position (pread), so a
handle survives a fork and no file is ever read whole.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medspark.errors import Rejected
from medspark.slides.codings import Coding, Jp2Coding
from medspark.slides.slide import WHITE, Level, checked_region

RUN_BYTES = 8 << 20  # neighbouring tiles are read in one go up to this size
GAP_BYTES = 4 << 10  # ... across gaps as small as this (padding, item headers)
KEPT_RIGHT = 16  # tiles cut by a region's right edge; regions are some 1,000 px high
TILE_SLACK_BYTES = 1 << 16  # a compressed tile is at most its pixels' size and this: more is not a tile


@dataclass(frozen=True)
class TileTable:
    """Where the tiles of one level lie; row-major over the grid.

    file : int                            descriptor
    grid_rows, grid_cols : int
    offsets, counts : (grid_rows * grid_cols,) int64, bytes       count 0: the tile was never scanned
    """

    file: int
    grid_rows: int
    grid_cols: int
    offsets: np.ndarray
    counts: np.ndarray
    coding: Coding


def checked_extents(offsets: np.ndarray, counts: np.ndarray, file_bytes: int, tile_px: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 offsets and counts; raises Rejected SLIDE_UNREADABLE when a tile lies outside the file or is larger than a tile can be."""
    offsets, counts = offsets.astype(np.uint64), counts.astype(np.uint64)
    most = np.uint64(min(file_bytes, 2 * 3 * tile_px + TILE_SLACK_BYTES))
    if bool((counts > most).any()):
        raise Rejected("SLIDE_UNREADABLE", "a tile's byte count exceeds the file or any possible tile")
    stored = counts > 0
    if bool((offsets[stored] > np.uint64(file_bytes) - counts[stored]).any()):
        raise Rejected("SLIDE_UNREADABLE", "a tile lies outside the file")
    return np.where(stored, offsets, 0).astype(np.int64), counts.astype(np.int64)


@dataclass
class StoredSlide:
    """Final. A `medspark.slides.slide.Slide` over tile tables, one per level."""

    vendor: str
    levels: tuple[Level, ...]
    tables: tuple[TileTable, ...]
    max_pixels: int
    mpp_um: tuple[float, float] | None = None
    objective_power: float | None = None
    bounds_l0: tuple[int, int, int, int] | None = None
    icc_profile: bytes | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    verdict: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    borrow_missing: bool = False  # Aperio: a tile missing from a lower level is made from the level above, as OpenSlide does
    _kept: OrderedDict[tuple[int, int], np.ndarray] = field(default_factory=OrderedDict, repr=False)

    def stored_jpeg(self, level: int, tile_row: int, tile_col: int) -> bytes | None:
        table = self.tables[level]
        place = tile_row * table.grid_cols + tile_col
        count = int(table.counts[place])
        if count == 0:
            return None
        return table.coding.stand_alone(os.pread(table.file, count, int(table.offsets[place])), 0, count)

    def stored_jpegs(self, level: int, tile_row: int, col0: int, col1: int) -> list[bytes | None]:
        table = self.tables[level]
        stand_alone = table.coding.stand_alone
        first = tile_row * table.grid_cols
        offsets = table.offsets[first + col0 : first + col1].tolist()
        counts = table.counts[first + col0 : first + col1].tolist()
        result: list[bytes | None] = []
        place, n = 0, len(offsets)
        while place < n:
            start, stop, end = offsets[place], offsets[place] + counts[place], place + 1
            while end < n and 0 <= offsets[end] - stop <= GAP_BYTES and offsets[end] + counts[end] - start <= RUN_BYTES and counts[end]:
                stop, end = offsets[end] + counts[end], end + 1
            run = os.pread(table.file, stop - start, start) if stop > start else b""
            for i in range(place, end):
                at = offsets[i] - start
                result.append(stand_alone(run, at, at + counts[i]) if counts[i] else None)
            place = end
        return result

    def stored_jp2(self, level: int, tile_row: int, tile_col: int) -> bytes | None:
        table = self.tables[level]
        place = tile_row * table.grid_cols + tile_col
        if not isinstance(table.coding, Jp2Coding) or not table.counts[place]:
            return None
        return os.pread(table.file, int(table.counts[place]), int(table.offsets[place]))

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        it, table = checked_region(self, level, width, height, self.max_pixels), self.tables[level]
        assert it.tile_width_px and it.tile_height_px
        tile_w, tile_h = it.tile_width_px, it.tile_height_px
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, it.width_px), min(y + height, it.height_px)
        covered = (x0, y0, x1, y1) == (x, y, x + width, y + height)
        out = np.empty((height, width, 3), np.uint8) if covered else np.full((height, width, 3), WHITE, np.uint8)
        if x0 >= x1 or y0 >= y1:
            return out
        for row in range(y0 // tile_h, -(-y1 // tile_h)):
            top, bottom = row * tile_h, min((row + 1) * tile_h, it.height_px)
            for col in range(x0 // tile_w, -(-x1 // tile_w)):
                left, right = col * tile_w, min((col + 1) * tile_w, it.width_px)
                a, b, c, d = max(y0, top), min(y1, bottom), max(x0, left), min(x1, right)
                tile = self._tile(level, row * table.grid_cols + col, keep=b < bottom or d < right)
                if tile is None:
                    if self.borrow_missing and level > 0:
                        out[a - y : b - y, c - x : d - x] = self._borrowed(level, a, b, c, d)
                    else:
                        out[a - y : b - y, c - x : d - x] = WHITE
                    continue
                out[a - y : b - y, c - x : d - x] = tile[a - top : b - top, c - left : d - left]
        return out

    def _tile(self, level: int, place: int, keep: bool) -> np.ndarray | None:
        """The decoded tile, None for a sparse one. Tiles of which the next region, to the right or below, will need the rest are kept.

        They are those below one row of regions, at most a row of the level, and those at the right of one region.
        """
        kept = self._kept.pop((level, place), None)
        if kept is None:
            table = self.tables[level]
            count = int(table.counts[place])
            if count == 0:
                return None
            try:
                kept = table.coding.decode(os.pread(table.file, count, int(table.offsets[place])))
            except ValueError as error:
                row, col = divmod(place, table.grid_cols)
                raise Rejected("SLIDE_UNREADABLE", f"tile ({row}, {col}) of level {level} does not decode: {error}") from None
        if keep:
            self._kept[level, place] = kept
            while len(self._kept) > self.tables[level].grid_cols + KEPT_RIGHT:
                self._kept.popitem(last=False)
        return kept

    def _borrowed(self, level: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        above, here = self.levels[level - 1], self.levels[level]
        # Mean of the 2 x 2 samples nearest to each pixel's quarter points: enough for a tile that the scanner's encoder dropped.
        rows = _quarter_points(top, bottom, above.height_px / here.height_px, above.height_px)
        cols = _quarter_points(left, right, above.width_px / here.width_px, above.width_px)
        y0, x0 = int(rows.min()), int(cols.min())
        source = self.read(level - 1, x0, y0, int(cols.max()) + 1 - x0, int(rows.max()) + 1 - y0)
        picked = source[(rows - y0)[:, None], (cols - x0)[None, :]].astype(np.uint16)
        pairs = picked.reshape(bottom - top, 2, right - left, 2, 3).sum(axis=(1, 3))
        return ((pairs + 2) >> 2).astype(np.uint8)

    def close(self) -> None:
        self._kept.clear()
        for file in {table.file for table in self.tables}:
            os.close(file)
        self.tables = ()  # closing twice is harmless

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> StoredSlide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _quarter_points(start: int, stop: int, ratio: float, limit: int) -> np.ndarray:
    """(2 * (stop - start),) int: two samples per pixel in the larger level."""
    centres = (np.arange(start, stop)[:, None] + np.array([0.25, 0.75])) * ratio
    return np.minimum(centres.astype(np.int64), limit - 1).ravel()
