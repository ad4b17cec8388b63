"""Reads any rectangle of a scaled plane of a slide within a fixed memory, without seams.

The scaled plane is cut into output rectangles small enough that what they are made from fits `limit_px`; positions are those of the whole
plane (Pillow's ``box=`` in floating point, with the filter's margin around it), so that neighbouring rectangles fit together. Along an axis
where a new pixel is a whole number of old ones, it is their mean: exactly the light that a sensor of that pixel size collects, nothing of a
neighbour, and a quarter of a filter's cost. Elsewhere a filter weighs pixels by how far they lie within the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor, isqrt
from typing import TYPE_CHECKING

import numpy as np

from medspark.errors import Rejected

if TYPE_CHECKING:
    from medspark.slides.slide import Slide

BLOCK_PX = 1 << 21  # level pixels read at once: 6 MB as RGB, 8 MB more inside Pillow, which malloc reuses and a last-level cache holds
STRIP_PX = 1 << 18  # ... on their way into fewer ones: 2 MB in all, which a core's own cache nearly holds; a fifth faster than 2 Mpx
WHITE = 255  # outside the slide (DICOM and OpenSlide leave it open; background of bright-field slides is white)
SUPPORT = 2  # pixels (the larger of in and out) that the filters reach to each side: Pillow's HAMMING 1, BICUBIC 2
REDUCE_FROM = 4.0  # from this factor on, whole pixels are averaged first, to a remaining factor of 2 to 3, as Pillow's thumbnails do
WHOLE_DRIFT = 0.05  # level px; a factor is whole if a whole one places the slide's last pixel this exactly: far below what is seen

OnError = Callable[[Rejected], None]


def read_scaled(
    slide: Slide,
    level: int,
    factor: tuple[float, float],
    x: int,
    y: int,
    width: int,
    height: int,
    limit_px: int = BLOCK_PX,
    on_error: OnError | None = None,
) -> np.ndarray:
    """(height, width, 3) uint8 RGB of the plane whose pixels are ``factor`` (x, y) pixels of ``level`` large.

    x, y, width, height : pixels of the scaled plane; what lies outside the slide is white
    limit_px : level pixels, and pixels of an intermediate, held at once
    on_error : where given, a block that cannot be read is reported to it and stays white
    Raises `Rejected` as the reader does.
    """
    own = slide.levels[level]
    if factor == (1.0, 1.0):
        return _read_blocks(slide, level, x, y, width, height, limit_px, on_error)
    out = np.full((height, width, 3), WHITE, np.uint8)
    inside_x = max(0, x), min(x + width, ceil(own.width_px / factor[0] - 1e-6))
    inside_y = max(0, y), min(y + height, ceil(own.height_px / factor[1] - 1e-6))
    (by_x, rest_x), (by_y, rest_y) = _steps(factor[0], own.width_px), _steps(factor[1], own.height_px)
    reduce_by, rest = (by_x, by_y), (rest_x, rest_y)
    if rest == (1.0, 1.0) and inside_x[0] < inside_x[1] and inside_y[0] < inside_y[1]:
        means = _read_reduced(slide, level, reduce_by, inside_x[0], inside_y[0], inside_x[1], inside_y[1], limit_px, on_error)
        out[inside_y[0] - y : inside_y[1] - y, inside_x[0] - x : inside_x[1] - x] = means
        return out
    side = max(16, floor((min(limit_px, STRIP_PX) / max(1.0, rest[0] * rest[1])) ** 0.5) - 4 * SUPPORT)
    for y0 in range(inside_y[0], inside_y[1], side):
        y1 = min(y0 + side, inside_y[1])
        for x0 in range(inside_x[0], inside_x[1], side):
            x1 = min(x0 + side, inside_x[1])
            out[y0 - y : y1 - y, x0 - x : x1 - x] = _resample(slide, level, reduce_by, rest, (x0, y0, x1, y1), limit_px, on_error)
    return out


def _steps(factor: float, length: int) -> tuple[int, float]:
    """Along an axis of ``length`` level pixels: how many are averaged first, and the factor that is left to a filter (1.0: none)."""
    whole = max(1, round(factor))
    same_end = ceil(length / whole) == ceil(length / factor - 1e-6)
    if same_end and abs(factor - whole) * length / factor <= WHOLE_DRIFT:
        return whole, 1.0
    reduce_by = floor(factor / 2) if factor >= REDUCE_FROM else 1
    return reduce_by, factor / reduce_by


def _resample(
    slide: Slide,
    level: int,
    reduce_by: tuple[int, ...],
    rest: tuple[float, float],
    box: tuple[int, int, int, int],
    limit_px: int,
    on_error: OnError | None,
) -> np.ndarray:
    """One output rectangle ``box`` (x0, y0, x1, y1) of the scaled plane."""
    from PIL import Image

    own = slide.levels[level]
    size = ceil(own.width_px / reduce_by[0]), ceil(own.height_px / reduce_by[1])
    spans, starts = [], []
    for axis in (0, 1):
        low, high, margin = box[axis] * rest[axis], box[axis + 2] * rest[axis], SUPPORT * max(1.0, rest[axis]) + 1
        start = max(0, floor(low - margin))
        starts.append(start)
        spans.append((start, min(size[axis], ceil(high + margin)), low - start, high - start))
    source = _read_reduced(slide, level, reduce_by, spans[0][0], spans[1][0], spans[0][1], spans[1][1], limit_px, on_error)
    # The last pixel of the scaled plane may reach beyond the slide: it shows the slide's last pixels, not white.
    beyond = [max(0, ceil(spans[axis][3]) - (spans[axis][1] - spans[axis][0])) for axis in (0, 1)]
    if any(beyond):
        source = np.pad(source, ((0, beyond[1]), (0, beyond[0]), (0, 0)), mode="edge")
    wanted = box[2] - box[0], box[3] - box[1]
    within = (spans[0][2], spans[1][2], spans[0][3], spans[1][3])
    # HAMMING averages the area, nearly as sharp as BICUBIC at half, and LANCZOS at 40 % of the cost; it is not meant for enlarging.
    method = Image.Resampling.HAMMING if min(rest) >= 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(source).resize(wanted, method, box=within))


def _read_reduced(
    slide: Slide, level: int, by: tuple[int, ...], x0: int, y0: int, x1: int, y1: int, limit_px: int, on_error: OnError | None
) -> np.ndarray:
    """Pixels x0..x1, y0..y1 of the level reduced by whole factors: each the mean of by[1] x by[0] level pixels (fewer at the end)."""
    own = slide.levels[level]
    l_x0, l_x1 = x0 * by[0], min(x1 * by[0], own.width_px)
    if by == (1, 1):
        return _read_blocks(slide, level, l_x0, y0, l_x1 - l_x0, min(y1, own.height_px) - y0, limit_px, on_error)
    out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    side = isqrt(min(limit_px, STRIP_PX))
    cols, rows = max(1, _whole_tiles(side, own.tile_width_px) // by[0]), max(1, _whole_tiles(side, own.tile_height_px) // by[1])
    for top in range(y0, y1, rows):
        bottom = min(top + rows, y1)
        for left in range(x0, x1, cols):
            right = min(left + cols, x1)
            l_top, l_bottom = top * by[1], min(bottom * by[1], own.height_px)
            l_left, l_right = left * by[0], min(right * by[0], own.width_px)
            block = _read_blocks(slide, level, l_left, l_top, l_right - l_left, l_bottom - l_top, limit_px, on_error)
            out[top - y0 : bottom - y0, left - x0 : right - x0] = block_mean(block, by[0], by[1])
    return out


def _whole_tiles(side: int, tile: int | None) -> int:
    """The largest multiple of ``tile`` up to ``side``, where there is one: every stored tile is then decoded about once."""
    return side - side % tile if tile and tile <= side else side


def block_mean(array: np.ndarray, by_x: int, by_y: int) -> np.ndarray:
    """(ceil(rows / by_y), ceil(cols / by_x), 3) uint8 means of blocks, rounded; incomplete blocks at the end are means of what is there."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).reduce((by_x, by_y)))


def _read_blocks(slide: Slide, level: int, x: int, y: int, width: int, height: int, limit_px: int, on_error: OnError | None) -> np.ndarray:
    """(height, width, 3) uint8 of the level itself, read in pieces of at most ``limit_px``."""
    if width * height <= limit_px and on_error is None:
        return slide.read(level, x, y, width, height)
    out = np.full((height, width, 3), WHITE, np.uint8)
    cols = min(width, max(1, limit_px))
    rows = max(1, limit_px // max(1, cols))
    for top in range(0, height, rows):
        for left in range(0, width, cols):
            size = min(cols, width - left), min(rows, height - top)
            try:
                out[top : top + size[1], left : left + size[0]] = slide.read(level, x + left, y + top, *size)
            except Rejected as rejected:
                if on_error is None:
                    raise
                on_error(rejected)
                _read_tiles(slide, level, x + left, y + top, out[top : top + size[1], left : left + size[0]])
    return out


def _read_tiles(slide: Slide, level: int, x: int, y: int, out: np.ndarray) -> None:
    """Fills ``out`` tile by tile; what cannot be read keeps its white."""
    own = slide.levels[level]
    step_x, step_y = own.tile_width_px or 256, own.tile_height_px or 256
    for top in range(y - y % step_y, y + out.shape[0], step_y):
        for left in range(x - x % step_x, x + out.shape[1], step_x):
            y0, y1, x0, x1 = max(top, y), min(top + step_y, y + out.shape[0]), max(left, x), min(left + step_x, x + out.shape[1])
            try:
                out[y0 - y : y1 - y, x0 - x : x1 - x] = slide.read(level, x0, y0, x1 - x0, y1 - y0)
            except Rejected:
                continue
