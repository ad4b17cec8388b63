"""The masks of a grid's tiles put together again: stripes of whole pixel rows, in the grid's own pixels.

Tiles give what lies on the slide; where they overlap they agree, or are united. A stripe is as high as a tile, so that memory does not
grow with the slide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from medspark.errors import Rejected
from medspark.labels.export.rows import Mask

OFF_GRID_PX = 1e-3  # a tile whose corner lies further than this from a whole pixel is of another grid: float noise at 1e6 px is 1e-9
INCOMPLETE_PX = 1e-6  # slack below which a slide's last pixel is no pixel more: levels divide level 0 with rounding in the last digit


@dataclass(frozen=True)
class Canvas:
    """The pixels of a grid over the whole slide, or of one image.

    scale : (x, y)     level-0 px per pixel; (0, 0) is the corner of the first one
    """

    rows: int
    cols: int
    scale: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of_grid(cls, slide: Mapping[str, Any], tile: Mapping[str, Any]) -> Canvas:
        """slide : row of ``slides``;  tile : any row of ``tiles`` of the grid"""
        scale = tile["width_l0"] / tile["width_px"], tile["height_l0"] / tile["height_px"]
        cols, rows = (
            max(1, ceil(side / of - INCOMPLETE_PX)) for side, of in zip((slide["width_l0_px"], slide["height_l0_px"]), scale, strict=True)
        )
        return cls(rows, cols, scale)

    def corner(self, mask: Mask) -> tuple[int, int]:
        """(row, col) of the first pixel of a mask; an image that is no tile begins at (0, 0)."""
        if "x_l0" not in mask.image:
            return 0, 0
        col, row = mask.image["x_l0"] / self.scale[0], mask.image["y_l0"] / self.scale[1]
        if abs(col - round(col)) > OFF_GRID_PX or abs(row - round(row)) > OFF_GRID_PX:
            raise Rejected("LABEL_GEOMETRY", "its tiles do not lie on whole pixels of one grid")
        return round(row), round(col)

    def values(self, masks: Sequence[Mask], values: Mapping[str, int], dtype: type[np.generic]) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, (n, cols) values) from the top to the bottom of the slide."""
        placed = [(*self.corner(mask), mask) for mask in masks]
        yield from _stripes(placed, self.rows, self.cols, {mask.label: values[mask.label] for mask in masks}, dtype)

    def united(self, masks: Sequence[Mask]) -> tuple[int, int, Iterator[np.ndarray]]:
        """(row0, col0, stripes): the union of the masks within its tiles' box, (n, cols) bool each, from the top."""
        placed = [(*self.corner(mask), mask) for mask in masks]
        row0, col0 = min(row for row, _, _ in placed), min(col for _, col, _ in placed)
        rows = max(row + _valid(mask)[0] for row, _, mask in placed) - row0
        cols = max(col + _valid(mask)[1] for _, col, mask in placed) - col0
        moved = [(row - row0, col - col0, mask) for row, col, mask in placed]
        found = _stripes(moved, rows, cols, dict.fromkeys((mask.label for mask in masks), 1), np.bool_)
        return row0, col0, (stripe for _, stripe in found)


def _valid(mask: Mask) -> tuple[int, int]:
    """(rows, cols) of the mask that lie on the slide."""
    return mask.image.get("valid_height_px") or mask.rows, mask.image.get("valid_width_px") or mask.cols


def _stripes(
    placed: Sequence[tuple[int, int, Mask]], rows: int, cols: int, values: Mapping[str, int], dtype: type[np.generic]
) -> Iterator[tuple[int, np.ndarray]]:
    height = max((_valid(mask)[0] for _, _, mask in placed), default=rows)
    window = np.zeros((height, cols), dtype)  # rows from `top` on that are not given out yet
    top = 0
    for row, col, mask in sorted(placed, key=lambda item: (item[0], item[1], item[2].label_row_id)):
        while top < row:
            count = min(row - top, height)
            yield top, window[:count].copy()
            window[: height - count] = window[count:]
            window[height - count :] = 0
            top += count
        n_rows, n_cols = _valid(mask)
        n_rows, n_cols = min(n_rows, rows - row), min(n_cols, cols - col)
        window[:n_rows, col : col + n_cols][mask.inside()[:n_rows, :n_cols]] = values[mask.label]
    while top < rows:
        count = min(height, rows - top)
        yield top, window[:count].copy()
        window[:] = 0
        top += count
