"""Mean colour and sharpness of tiles, as the table ``tiles`` holds them.

One pass in C (kernels.c, compiled by set-up) where it is there, else nine passes of numpy and Pillow over the same integers: 20 and 90 µs for
a tile of 224 px, beside 130 µs for decoding and encoding it.
"""

from __future__ import annotations

import numpy as np

from medspark.pixels import native

SUM_ROWS = 257  # rows of bytes whose sum a uint16 holds: 257 x 255 = 65,535
Measures = tuple[list[float], float | None]


def measure(array: np.ndarray) -> Measures:
    """Mean colour (0 to 255) and sharpness of a (rows, cols, 3) uint8 tile, which may be a part of a larger array.

    Sharpness is the variance of the 4-neighbour Laplacian of the luminance (Pech-Pacheco 2000, doi 10.1109/ICPR.2000.903548), the luminance
    rounded to whole numbers; None below 3 x 3.
    """
    sums = native.tile_sums()
    return by_numpy(array) if sums is None else by_kernel(sums, array)


def by_kernel(sums: native.TileSums, array: np.ndarray) -> Measures:
    red, green, blue, total, squares = sums(array)
    rows, cols = array.shape[:2]
    count = rows * cols
    sharpness = _variance(total, squares, (rows - 2) * (cols - 2)) if min(rows, cols) > 2 else None
    return [red / count, green / count, blue / count], sharpness


def _variance(total: float, squares: float, count: int) -> float:
    average = total / count
    return max(0.0, squares / count - average * average)


def by_numpy(array: np.ndarray) -> Measures:
    from PIL import Image

    array = np.ascontiguousarray(array)
    rows, cols = array.shape[:2]
    lines = array.reshape(rows, cols * 3)
    parts = [lines[top : top + SUM_ROWS].sum(axis=0, dtype=np.uint16) for top in range(0, rows, SUM_ROWS)]
    mean = (np.sum(parts, axis=0, dtype=np.uint32).reshape(cols, 3).sum(axis=0) / (rows * cols)).tolist()
    if min(rows, cols) < 3:
        return mean, None
    y = np.asarray(Image.fromarray(array).convert("L")).astype(np.int16).ravel()  # ITU-R 601 luma
    # As one line, whose neighbours are whole rows away: first and last column of the result mean nothing.
    laplacian = y[cols:-cols] * np.int16(-4)
    for neighbour in (y[: -2 * cols], y[2 * cols :], y[cols - 1 : -cols - 1], y[cols + 1 : rows * cols - cols + 1]):
        laplacian += neighbour
    values = laplacian.reshape(rows - 2, cols)[:, 1:-1].astype(np.float32).ravel()
    return mean, _variance(float(values.sum()), float(values @ values), values.size)
