"""kernels.c, called through ctypes: each function as numpy arrays see it, or None where set-up could not compile it."""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

COMPILED = Path(__file__).with_name("kernels" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))
MIDDLE = 1 << 15  # unsigned values are summed as value - MIDDLE, which a signed word holds
TileSums = Callable[[np.ndarray], list[int]]
ShortSums = Callable[[np.ndarray, tuple[int, int] | None], tuple[int, int, int, int, int]]
_Found = ctypes.c_int64 * 5


@cache
def _library(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


@cache
def tile_sums(path: Path = COMPILED) -> TileSums | None:
    """(rows, cols, 3) uint8 -> sums of red, green, blue; sum and sum of squares of the luminance's 4-neighbour Laplacian, borders left out."""
    library = _library(path)
    if library is None:
        return None
    function = library.tile_sums
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int, _Found]
    function.restype = ctypes.c_int

    def sums(array: np.ndarray) -> list[int]:
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise ValueError(f"a tile of {array.dtype}{array.shape}")  # C believes what it is told
        if array.strides[1:] != (3, 1):
            array = np.ascontiguousarray(array)
        found = _Found()
        if function(array.ctypes.data, array.strides[0], array.shape[0], array.shape[1], found):
            raise MemoryError
        return list(found)

    return sums


@cache
def short_sums(path: Path = COMPILED) -> ShortSums | None:
    """(int16 or uint16 array, (low, high) to be left out or None) -> count, least, most, sum, sum of squares of what is left; whole numbers.

    Where nothing is left the count is 0 and the rest means nothing.
    """
    library = _library(path)
    if library is None:
        return None
    function = library.short_sums
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int, ctypes.c_int, _Found]
    function.restype = None

    def sums(array: np.ndarray, padding: tuple[int, int] | None) -> tuple[int, int, int, int, int]:
        if array.dtype not in (np.int16, np.uint16) or not array.dtype.isnative:
            raise ValueError(f"values of {array.dtype}")
        array = np.ascontiguousarray(array)
        moved = MIDDLE if array.dtype == np.uint16 else 0
        low, high = (1, 0) if padding is None else (max(min(padding) - moved, -MIDDLE), min(max(padding) - moved, MIDDLE - 1))
        if low > high:
            low, high = 1, 0
        found = _Found()
        function(array.ctypes.data, array.size, int(moved > 0), low, high, found)
        count, least, most, total, squares = found
        return count, least + moved, most + moved, total + count * moved, squares + 2 * moved * total + count * moved * moved

    return sums
