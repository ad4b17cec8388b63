"""Where the tiles of a slide lie: integer planning over numbers only, no pixels.

`choose` turns settings and a slide's level sizes into a `Grid`; `Grid.table` lists its tiles as columns. Laws (tests/slides/test_grid.py):
without overlap every level-0 pixel lies in exactly one tile of a ``pad`` or ``clip`` grid, valid sizes add up to the slide, and a ``drop``
grid is the part of the ``clip`` grid whose tiles are whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import numpy as np

from medspark.config import Tiling
from medspark.errors import Rejected
from medspark.slides.frames import Frames, Pair

DEFAULT_TILE_PX = 256  # "native" on a file without tiles (strips, one big image)
SAME_MPP = 0.005  # a level this close to the wished µm/px is taken as it is: scanners' own pixel sizes scatter by about 0.5 %
BEST_MPP = 0.01  # a level this much coarser than wished still counts as fine enough to resample from
WHOLE = 1e-6  # grid px; what is smaller than this beyond the last pixel is rounding, not slide
MAX_NATIVE_PX = 8192  # a "tile" larger than this is a strip or an untiled image, not a tile
MIN_NATIVE_PX = 32  # nor is a smaller one: OpenSlide calls the pieces between a JPEG's restart markers tiles (NDPI: 8 px high, VMS: 16)


@dataclass(frozen=True)
class LevelShape:
    """What planning needs of a pyramid level; tile sizes are None where the file has no tiles."""

    width_px: int
    height_px: int
    tile_width_px: int | None = None
    tile_height_px: int | None = None


@dataclass(frozen=True)
class Grid:
    """A regular grid of tiles over one slide.

    level : pyramid level that pixels are read from
    frames : the planes; ``t_`` is the grid's own
    tile_width_px, tile_height_px : t px           whole tiles
    t_width, t_height : t px                       the slide; the last column and row may lie partly beyond it when resampled
    l0_width, l0_height : l0 px                    the slide
    by_mpp_um : the wish, None for a grid by level
    """

    level: int
    frames: Frames
    tile_width_px: int
    tile_height_px: int
    overlap_px: int
    edge: Literal["pad", "drop", "clip"]
    t_width: int
    t_height: int
    l0_width: int
    l0_height: int
    by_mpp_um: float | None = None

    @property
    def resamples(self) -> bool:
        return self.frames.t_in_l != (1.0, 1.0)

    @property
    def stride_px(self) -> tuple[int, int]:
        """(x, y) t px from tile to tile."""
        return self.tile_width_px - self.overlap_px, self.tile_height_px - self.overlap_px

    @property
    def n_cols(self) -> int:
        return _count(self.l0_width / self.frames.t_scale[0], self.tile_width_px, self.stride_px[0], self.edge == "drop")

    @property
    def n_rows(self) -> int:
        return _count(self.l0_height / self.frames.t_scale[1], self.tile_height_px, self.stride_px[1], self.edge == "drop")

    @property
    def n_tiles(self) -> int:
        return self.n_rows * self.n_cols

    def table(self, row0: int = 0, row1: int | None = None) -> dict[str, np.ndarray]:
        """Tiles of tile rows row0 <= row < row1, row by row, as columns of the table ``tiles``.

        tile_row, tile_col, t_x, t_y, width_px, height_px, valid_width_px, valid_height_px : (n,) int64
        x_l0, y_l0, width_l0, height_l0 : (n,) float64, of the whole tile (``clip``: of its stored part)
        """
        row1 = self.n_rows if row1 is None else min(row1, self.n_rows)
        tile_row, tile_col = (axis.ravel() for axis in np.mgrid[row0 : max(row0, row1), 0 : self.n_cols])
        t_x, t_y = tile_col * self.stride_px[0], tile_row * self.stride_px[1]
        valid_width = np.minimum(self.tile_width_px, self.t_width - t_x)
        valid_height = np.minimum(self.tile_height_px, self.t_height - t_y)
        clip = self.edge == "clip"
        width = valid_width if clip else np.full_like(t_x, self.tile_width_px)
        height = valid_height if clip else np.full_like(t_y, self.tile_height_px)
        x_l0, y_l0 = self.frames.l0_from_t(t_x.astype(float), t_y.astype(float))
        width_l0, height_l0 = self.frames.l0_from_t(width.astype(float), height.astype(float))
        return {
            "tile_row": tile_row,
            "tile_col": tile_col,
            "t_x": t_x,
            "t_y": t_y,
            "x_l0": x_l0,
            "y_l0": y_l0,
            "width_l0": width_l0,
            "height_l0": height_l0,
            "width_px": width,
            "height_px": height,
            "valid_width_px": valid_width,
            "valid_height_px": valid_height,
        }

    def passes_through(self, level: LevelShape) -> bool:
        """Whether tile (row, col) of the grid is the file's own tile (row, col) of ``level``, as long as it lies wholly on the slide."""
        own = (level.tile_width_px, level.tile_height_px)
        return own == (self.tile_width_px, self.tile_height_px) and self.overlap_px == 0 and not self.resamples


def coincides(grid: Grid, level: LevelShape) -> bool:
    """See `Grid.passes_through`."""
    return grid.passes_through(level)


def choose(tiling: Tiling, levels: Sequence[LevelShape], mpp_um: Pair | None) -> Grid:
    """The grid that ``tiling`` asks for on a slide.

    levels : finest first; level 0 is the slide
    mpp_um : (x, y) µm per level-0 px, None where unknown
    A grid by ``mpp_um`` takes a level within `SAME_MPP` of the wish as it is; else it is resampled to exactly the wish from the coarsest
    level that is still at least as fine (within `BEST_MPP`), from level 0 where none is.
    Raises `Rejected` UNKNOWN_MPP for a grid by µm/px on a slide without a pixel size, SLIDE_UNSUPPORTED for a level it does not have
    and for an overlap that its native tiles are too small for.
    """
    l0_width, l0_height = levels[0].width_px, levels[0].height_px
    scales = [(l0_width / level.width_px, l0_height / level.height_px) for level in levels]
    wish = tiling.mpp_um
    if wish is None:
        number = tiling.level or 0
        if number >= len(levels):
            raise Rejected("SLIDE_UNSUPPORTED", f"tiling.level is {number}, the slide has {len(levels)} pyramid level(s)")
        t_scale = scales[number]
    else:
        if mpp_um is None:
            raise Rejected("UNKNOWN_MPP", "tiling.mpp_um needs a pixel size and the slide has none; tiling.assume_mpp_um supplies one")
        number, t_scale = _by_mpp(wish, scales, mpp_um)
    own = levels[number]
    frames = Frames(scales[number], t_scale, mpp_um)
    tile_width, tile_height = _tile_size(tiling, own)
    if tiling.overlap_px >= min(tile_width, tile_height):
        raise Rejected("SLIDE_UNSUPPORTED", f"tiling.overlap_px is {tiling.overlap_px}, not smaller than the slide's native tiles")
    same = frames.t_in_l == (1.0, 1.0)
    return Grid(
        level=number,
        frames=frames,
        tile_width_px=tile_width,
        tile_height_px=tile_height,
        overlap_px=tiling.overlap_px,
        edge=tiling.edge,
        t_width=own.width_px if same else _pixels(l0_width / t_scale[0]),
        t_height=own.height_px if same else _pixels(l0_height / t_scale[1]),
        l0_width=l0_width,
        l0_height=l0_height,
        by_mpp_um=wish,
    )


def best_level(wish: Pair, scales: Sequence[Pair]) -> int:
    """Level to resample from: the coarsest whose (x, y) scale is at most the wished one on both axes (within `BEST_MPP`), else 0."""
    fine = [n for n, scale in enumerate(scales) if scale[0] <= wish[0] * (1 + BEST_MPP) and scale[1] <= wish[1] * (1 + BEST_MPP)]
    return max(fine, key=lambda n: scales[n][0] * scales[n][1], default=0)


def _by_mpp(wish: float, scales: Sequence[Pair], mpp_um: Pair) -> tuple[int, Pair]:
    scale = wish / mpp_um[0], wish / mpp_um[1]
    off = [max(abs(own[0] / scale[0] - 1), abs(own[1] / scale[1] - 1)) for own in scales]
    nearest = int(np.argmin(off))
    if off[nearest] <= SAME_MPP:
        return nearest, scales[nearest]
    return best_level(scale, scales), scale


def _tile_size(tiling: Tiling, level: LevelShape) -> tuple[int, int]:
    if isinstance(tiling.tile_px, int):
        return tiling.tile_px, tiling.tile_px
    width, height = level.tile_width_px, level.tile_height_px
    if not width or not height or max(width, height) > MAX_NATIVE_PX or min(width, height) < MIN_NATIVE_PX:
        return DEFAULT_TILE_PX, DEFAULT_TILE_PX
    return width, height


def _pixels(length: float) -> int:
    """Whole pixels that cover ``length``; at least one."""
    return max(1, ceil(length - WHOLE))


def _count(length: float, tile: int, stride: int, whole_only: bool) -> int:
    """Tiles along one axis: as many as cover ``length``, or those that lie wholly on it."""
    if whole_only:
        return 0 if length + WHOLE < tile else floor((length + WHOLE - tile) / stride) + 1
    return 1 + max(0, ceil((_pixels(length) - tile) / stride))
