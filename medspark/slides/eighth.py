"""A level at an eighth of its size, decoded from the JPEG's own frequencies: what a thumbnail of a slide without a pyramid is made of.

libjpeg's scaled decoding (1/8 takes each block's mean alone) needs less than half the time of decoding and averaging, and differs from it
by less than one grey level on average.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from medspark.errors import Rejected
from medspark.slides.resample import WHITE, block_mean

if TYPE_CHECKING:
    from medspark.slides.slide import Level, Slide

EIGHTH = 8  # side of a JPEG block


def suits(level: Level, factor: tuple[float, float]) -> bool:
    """Whether a plane of pixels ``factor`` times as large can be made from eighths of this level's tiles."""
    sides = (level.tile_width_px or 0, level.tile_height_px or 0)
    return level.compression == "jpeg" and min(factor) >= EIGHTH and min(sides) > 0 and not any(side % EIGHTH for side in sides)


class EighthSlide:
    """Final. The one level of a slide, at an eighth; enough of `Slide` for `read_scaled`."""

    def __init__(self, slide: Slide, level: int) -> None:
        own = slide.levels[level]
        assert own.tile_width_px and own.tile_height_px
        self._slide, self._level, self._own = slide, level, own
        self._tile = own.tile_width_px // EIGHTH, own.tile_height_px // EIGHTH
        width, height = ceil(own.width_px / EIGHTH), ceil(own.height_px / EIGHTH)
        eighth = replace(own, width_px=width, height_px=height, tile_width_px=self._tile[0], tile_height_px=self._tile[1])
        self.levels: tuple[Level, ...] = (eighth,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slide, name)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8 of the eighth plane; raises `Rejected` where a tile cannot be decoded."""
        out = np.full((height, width, 3), WHITE, np.uint8)
        wide, high = self._tile
        x_end, y_end = min(x + width, self.levels[0].width_px), min(y + height, self.levels[0].height_px)
        for row in range(max(y, 0) // high, ceil(y_end / high)):
            col0, col1 = max(x, 0) // wide, ceil(x_end / wide)
            for col, data in zip(range(col0, col1), self._slide.stored_jpegs(self._level, row, col0, col1), strict=True):
                x0, x1 = max(col * wide, x), min(col * wide + wide, x_end)
                y0, y1 = max(row * high, y), min(row * high + high, y_end)
                tile = self._decode(row, col, data)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - row * high : y1 - row * high, x0 - col * wide : x1 - col * wide]
        return out

    def _decode(self, row: int, col: int, data: bytes | None) -> np.ndarray:
        import simplejpeg

        wide, high = self._tile
        if data is not None:
            try:
                tile = simplejpeg.decode_jpeg(data, "RGB", min_width=wide, min_height=high)
            except ValueError:
                raise Rejected("DECODE_FAILED", "a tile is not a readable JPEG") from None
            if tile.shape[:2] == (high, wide):
                return np.asarray(tile)
        own = self._own
        assert own.tile_width_px and own.tile_height_px
        whole = self._slide.read(self._level, col * own.tile_width_px, row * own.tile_height_px, own.tile_width_px, own.tile_height_px)
        return block_mean(whole, EIGHTH, EIGHTH)
