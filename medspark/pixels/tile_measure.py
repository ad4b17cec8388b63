"""Mean colour and sharpness of tiles, as the table ``tiles`` holds them.

One pass in C (kernels.c, compiled by set-up) where it is there, else nine passes of numpy and Pillow over the same integers: 20 and 90 µs for
a tile of 224 px, beside 130 µs for decoding and encoding it.
"""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

SUM_ROWS = 257  # rows of bytes whose sum a uint16 holds: 257 x 255 = 65,535
Measures = tuple[list[float], float | None]
Sums = Callable[[int, int, int, int], list[int]]
COMPILED = Path(__file__).with_name("kernels" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))


def measure(array: np.ndarray) -> Measures:
    """Mean colour (0 to 255) and sharpness of a (rows, cols, 3) uint8 tile, which may be a part of a larger array.

    Sharpness is the variance of the 4-neighbour Laplacian of the luminance (Pech-Pacheco 2000, doi 10.1109/ICPR.2000.903548), the luminance
    rounded to whole numbers; None below 3 x 3.
    """
    sums = kernel()
    return by_numpy(array) if sums is None else by_kernel(sums, array)


@cache
def kernel(path: Path = COMPILED) -> Sums | None:
    """(address of the first byte, bytes from row to row, rows, cols) -> the five sums of kernels.c; None where it is not compiled."""
    try:
        function = ctypes.CDLL(str(path)).tile_sums
    except (OSError, AttributeError):
        return None
    found = ctypes.c_int64 * 5
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int, found]
    function.restype = ctypes.c_int

    def sums(address: int, row_bytes: int, rows: int, cols: int) -> list[int]:
        out = found()
        if function(address, row_bytes, rows, cols, out):
            raise MemoryError
        return list(out)

    return sums


def by_kernel(sums: Sums, array: np.ndarray) -> Measures:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(f"a tile of {array.dtype}{array.shape}")  # the kernel believes what it is told
    if array.strides[1:] != (3, 1):
        array = np.ascontiguousarray(array)
    rows, cols = array.shape[:2]
    red, green, blue, total, squares = sums(array.ctypes.data, array.strides[0], rows, cols)
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
