"""Functions of SQL over label masks and payload, one value at a time: plain Python in, plain Python out. No Spark, no DuckDB.

`FUNCTIONS` lists them as data; the wrappers in ``medspark.lake`` register the same kernels with Spark and with DuckDB, where a null argument
gives null and a kernel's ValueError becomes the query's error. A mask is ``labels.mask`` (either codec, told apart by its length), ``rows``
and ``cols`` stand beside it. ``bytes, codec, dtype, shape`` and ``params`` are columns of ``pixels``; values are the stored ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medspark.pixels.codecs import decode, encode
from medspark.pixels.masks import inside, pack
from medspark.pixels.measure import LUMINANCE, components
from medspark.pixels.window import windowed

Params = Mapping[str, str] | None


@dataclass(frozen=True)
class Function:
    """One SQL function.

    arguments : (name, type in Spark SQL's words)
    optional : how many arguments at the end may be left out; a null there is no null of the answer
    """

    name: str
    kernel: Callable[..., Any]
    arguments: tuple[tuple[str, str], ...]
    returns: str
    doc: str
    optional: int = 0

    def __call__(self, *values: Any) -> Any:
        """The kernel's answer; None where an argument that is needed is None."""
        return None if any(value is None for value in values[: self.needed]) else self.kernel(*values)

    @property
    def needed(self) -> int:
        return len(self.arguments) - self.optional

    def check(self, given: int) -> None:
        """Refuses a call with too few or too many arguments."""
        if not self.needed <= given <= len(self.arguments):
            raise ValueError(f"{given} arguments for {self.signature()}")

    def signature(self) -> str:
        names = [name if place < self.needed else f"[{name}]" for place, (name, _) in enumerate(self.arguments)]
        return f"{self.name}({', '.join(names)})"


def mask_area(mask: bytes, rows: int, cols: int) -> int:
    return int(np.count_nonzero(inside(mask, rows, cols)))


def mask_iou(a: bytes, b: bytes, rows: int, cols: int) -> float | None:
    left, right = inside(a, rows, cols), inside(b, rows, cols)
    either = np.count_nonzero(left | right)
    return float(np.count_nonzero(left & right) / either) if either else None


def mask_dice(a: bytes, b: bytes, rows: int, cols: int) -> float | None:
    left, right = inside(a, rows, cols), inside(b, rows, cols)
    both = np.count_nonzero(left) + np.count_nonzero(right)
    return float(2 * np.count_nonzero(left & right) / both) if both else None


def mask_union(a: bytes, b: bytes, rows: int, cols: int) -> bytes:
    return pack(inside(a, rows, cols) | inside(b, rows, cols))


def mask_intersect(a: bytes, b: bytes, rows: int, cols: int) -> bytes:
    return pack(inside(a, rows, cols) & inside(b, rows, cols))


def mask_diff(a: bytes, b: bytes, rows: int, cols: int) -> bytes:
    return pack(inside(a, rows, cols) & ~inside(b, rows, cols))


def mask_at(mask: bytes, rows: int, cols: int, row: int, col: int) -> bool:
    found = inside(mask, rows, cols)
    return bool(0 <= row < rows and 0 <= col < cols and found[row, col])


def mask_components(mask: bytes, rows: int, cols: int) -> int:
    return components(inside(mask, rows, cols))


def mask_to_coco_rle(mask: bytes, rows: int, cols: int) -> str:
    from pycocotools import mask as coco

    found = coco.encode(np.asfortranarray(inside(mask, rows, cols), np.uint8))
    return json.dumps({"size": [rows, cols], "counts": found["counts"].decode("ascii")}, separators=(",", ":"))


def pixel_window(data: bytes, codec: str, dtype: str, shape: Sequence[int], centre: float, width: float, params: Params = None) -> bytes:
    stored = decode(data, codec, dtype, shape, params)
    if stored.ndim == 3 and stored.dtype == np.uint8:
        return encode(stored, "png")
    return encode(windowed(stored, centre, width), "png")


def value_at(data: bytes, codec: str, dtype: str, shape: Sequence[int], row: int, col: int, params: Params = None) -> float | None:
    stored = decode(data, codec, dtype, shape, params)
    if not (0 <= row < stored.shape[0] and 0 <= col < stored.shape[1]):
        return None
    value = stored[row, col]
    return float(value @ LUMINANCE) if stored.ndim == 3 else float(value)


_MASK = (("mask", "binary"), ("rows", "int"), ("cols", "int"))
_TWO = (("a", "binary"), ("b", "binary"), ("rows", "int"), ("cols", "int"))
_PIXELS = (("bytes", "binary"), ("codec", "string"), ("dtype", "string"), ("shape", "array<int>"))
_PARAMS = (("params", "map<string,string>"),)

FUNCTIONS = (
    Function("mask_area", mask_area, _MASK, "long", "pixels in the mask"),
    Function(
        "mask_at", mask_at, (*_MASK, ("row", "int"), ("col", "int")), "boolean", "whether a pixel is in the mask; false outside the image"
    ),
    Function("mask_components", mask_components, _MASK, "int", "8-connected pieces of the mask"),
    Function("mask_iou", mask_iou, _TWO, "double", "intersection over union; null where both masks are empty"),
    Function("mask_dice", mask_dice, _TWO, "double", "twice the intersection over the sum of areas; null where both masks are empty"),
    Function("mask_union", mask_union, _TWO, "binary", "pixels in either mask, as a mask (bits-zstd)"),
    Function("mask_intersect", mask_intersect, _TWO, "binary", "pixels in both masks, as a mask (bits-zstd)"),
    Function("mask_diff", mask_diff, _TWO, "binary", "pixels in the first mask and not in the second, as a mask (bits-zstd)"),
    Function(
        "mask_to_coco_rle", mask_to_coco_rle, _MASK, "string", "COCO’s compressed run lengths, as the JSON that stands under `segmentation`"
    ),
    Function(
        "pixel_window",
        pixel_window,
        (*_PIXELS, ("centre", "double"), ("width", "double"), *_PARAMS),
        "binary",
        "the image in a window (in stored values) as an 8-bit grey PNG; 8-bit colour comes as it is, as an RGB PNG",
        optional=1,
    ),
    Function(
        "value_at",
        value_at,
        (*_PIXELS, ("row", "int"), ("col", "int"), *_PARAMS),
        "double",
        "the stored value of a pixel, of colour its luminance; null outside the image",
        optional=1,
    ),
)
