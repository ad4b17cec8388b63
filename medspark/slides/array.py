"""A slide made of arrays: the pyramid that tests and examples hand to the same code as a real file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medspark.errors import Rejected
from medspark.slides.slide import Level


class ArraySlide:
    """`Slide` over a numpy pyramid.

    pyramid : levels, finest first, (rows, cols, 3) uint8
    tile_px : (width, height) of the "file's own" tiles, None for none
    jpeg : "stored" tiles (level, tile_row, tile_col) -> JPEG; a missing one is None
    broken : level-0 boxes (x0, y0, x1, y1) that cannot be decoded at any level
    """

    def __init__(
        self,
        pyramid: Sequence[np.ndarray],
        tile_px: tuple[int, int] | None = None,
        jpeg: Mapping[tuple[int, int, int], bytes] | None = None,
        mpp_um: tuple[float, float] | None = (0.5, 0.5),
        broken: Sequence[tuple[int, int, int, int]] = (),
    ) -> None:
        self._pyramid = list(pyramid)
        self._jpeg = dict(jpeg or {})
        self._broken = list(broken)
        self.largest_read_px = 0
        rows = pyramid[0].shape[0]
        width, height = tile_px or (None, None)
        compression = "jpeg" if jpeg else "other"
        self.levels = tuple(Level(a.shape[1], a.shape[0], width, height, rows / a.shape[0], compression) for a in pyramid)
        self.vendor = "array"
        self.mpp_um = mpp_um
        self.objective_power: float | None = None
        self.bounds_l0: tuple[int, int, int, int] | None = None
        self.icc_profile: bytes | None = None
        self.properties: dict[str, str] = {}
        self.verdict: tuple[str, ...] = ()
        self.facts: dict[str, Any] = {}

    def stored_jpeg(self, level: int, tile_row: int, tile_col: int) -> bytes | None:
        return self._jpeg.get((level, tile_row, tile_col))

    def stored_jpegs(self, level: int, tile_row: int, col0: int, col1: int) -> list[bytes | None]:
        return [self.stored_jpeg(level, tile_row, tile_col) for tile_col in range(col0, col1)]

    def stored_jp2(self, level: int, tile_row: int, tile_col: int) -> bytes | None:
        return None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        self.largest_read_px = max(self.largest_read_px, width * height)
        array, down = self._pyramid[level], self.levels[level].downsample
        for x0, y0, x1, y1 in self._broken:
            if x * down < x1 and y * down < y1 and (x + width) * down > x0 and (y + height) * down > y0:
                raise Rejected("DECODE_FAILED", "a tile cannot be decoded")
        out = np.full((height, width, 3), 255, np.uint8)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, array.shape[1]), min(y + height, array.shape[0])
        if x1 > x0 and y1 > y0:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = array[y0:y1, x0:x1]
        return out

    def close(self) -> None:
        pass
