"""The SQL functions' kernels: laws, and numpy, scikit-image and pycocotools as oracles."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from medspark.pixels import encode, masks
from medspark.pixels.functions import FUNCTIONS, Function
from medspark.pixels.window import windowed

BY_NAME = {function.name: function for function in FUNCTIONS}
SIDES = st.integers(1, 40)
SHAPES = st.tuples(SIDES, SIDES)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


def call(name: str, *values: object):  # type: ignore[no-untyped-def]
    return BY_NAME[name](*values)


@given(PAIRS)
@settings(deadline=None)
def test_set_functions_agree_with_numpy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    left, right = pair
    a, b, size = masks.pack(left), masks.pack(right), left.shape
    assert call("mask_area", a, *size) == left.sum()
    for name, wanted in (("mask_union", left | right), ("mask_intersect", left & right), ("mask_diff", left & ~right)):
        assert np.array_equal(masks.unpack(call(name, a, b, *size), *size), wanted)
    both, either, sizes = (left & right).sum(), (left | right).sum(), left.sum() + right.sum()
    assert call("mask_iou", a, b, *size) == (both / either if either else None)
    dice = call("mask_dice", a, b, *size)
    assert dice == (2 * both / sizes if sizes else None)
    if dice is not None:
        iou = call("mask_iou", a, b, *size)
        assert dice == pytest.approx(2 * iou / (1 + iou))
    parts = [call("mask_area", call(name, a, b, *size), *size) for name in ("mask_intersect", "mask_diff")]
    assert sum(parts) == left.sum()


@given(SHAPES.flatmap(lambda shape: hnp.arrays(bool, shape)), st.data())
@settings(deadline=None)
def test_a_pixel_is_in_the_mask_where_numpy_says_so(mask: np.ndarray, data: st.DataObject) -> None:
    row, col = data.draw(st.integers(-2, mask.shape[0] + 1)), data.draw(st.integers(-2, mask.shape[1] + 1))
    inside = 0 <= row < mask.shape[0] and 0 <= col < mask.shape[1]
    assert call("mask_at", masks.pack(mask), *mask.shape, row, col) is bool(inside and mask[row, col])


@given(SHAPES.flatmap(lambda shape: hnp.arrays(bool, shape)))
@settings(deadline=None)
def test_components_agree_with_scikit_image(mask: np.ndarray) -> None:
    from skimage.measure import label

    assert call("mask_components", masks.pack(mask), *mask.shape) == label(mask, connectivity=2).max()


@given(SHAPES.flatmap(lambda shape: hnp.arrays(bool, shape)))
@settings(deadline=None)
def test_coco_run_lengths_are_pycocotools_own(mask: np.ndarray) -> None:
    from pycocotools import mask as coco

    said = json.loads(call("mask_to_coco_rle", masks.pack(mask), *mask.shape))
    assert said["size"] == list(mask.shape)
    assert said["counts"].encode() == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert np.array_equal(coco.decode({"size": said["size"], "counts": said["counts"].encode()}), mask)


@given(SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape)))
@settings(deadline=None)
def test_fractional_masks_count_from_one_half(fractions: np.ndarray) -> None:
    packed = masks.pack_u8(fractions)
    assert np.array_equal(masks.inside(packed, *fractions.shape), fractions > 127)
    assert call("mask_area", packed, *fractions.shape) == (fractions > 127).sum()


def test_the_codecs_of_one_pixel_are_told_apart() -> None:
    for value in (False, True):
        assert masks.inside(masks.pack(np.full((1, 1), value)), 1, 1)[0, 0] == value
        assert masks.inside(masks.pack_u8(np.full((1, 1), 255 * value)), 1, 1)[0, 0] == value


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_null_in_null_out(function: Function) -> None:
    for place in range(function.needed):
        values: list[object] = [b""] * len(function.arguments)
        values[place] = None
        assert function(*values) is None


def test_a_wrong_size_is_said_with_the_right_ones() -> None:
    packed = masks.pack(np.ones((30, 30), bool))
    with pytest.raises(ValueError, match=r"holds 113 bytes; 30 x 31 pixels are 117 bytes as bits or 930 as fractions"):
        call("mask_area", packed, 30, 31)
    with pytest.raises(ValueError, match="no pixel"):
        call("mask_area", packed, 0, 30)
    with pytest.raises(ValueError, match="zstd"):
        call("mask_area", b"nothing", 3, 3)
    with pytest.raises(ValueError, match=r"5 arguments for mask_iou\(a, b, rows, cols\)"):
        BY_NAME["mask_iou"].check(5)


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@given(hnp.arrays(np.int16, (5, 7)), st.floats(-1e4, 1e4), st.floats(0.5, 1e4))
@settings(deadline=None)
def test_a_windowed_image_keeps_order_and_limits(stored: np.ndarray, centre: float, width: float) -> None:
    data = encode(stored, "blosc2")
    grey = picture(call("pixel_window", data, "blosc2", "int16", [5, 7], centre, width))
    assert grey.dtype == np.uint8 and grey.shape == stored.shape
    order = np.argsort(stored.ravel(), kind="stable")
    assert (np.diff(grey.ravel()[order].astype(int)) >= 0).all()
    assert (grey[stored <= centre - width / 2] == 0).all() and (grey[stored >= centre + width / 2] == 255).all()


def test_windows_of_the_standard() -> None:
    """PS3.3 C.11.2.1.2.1: for centre 2048, width 4096 the linear function ends at 0 and 4095; C.11.2.1.3.2 gives the exact one."""
    values = np.array([[0, 4095, 2047.5]])
    assert windowed(values, 2048, 4096, "LINEAR").tolist() == [[0, 255, 128]]
    assert windowed(np.array([[0, 4096, 2048]]), 2048, 4096, "LINEAR_EXACT").tolist() == [[0, 255, 128]]
    assert windowed(np.array([[0.0, 1.0]]), 1.0, 1.0, "LINEAR").tolist() == [[0, 255]]
    assert windowed(np.array([[-1e9, 0.0, 1e9, np.nan]]), 0.0, 10.0, "SIGMOID").tolist() == [[0, 128, 255, 0]]
    for function, width in (("LINEAR", 0.5), ("LINEAR_EXACT", 0.0), ("SIGMOID", -1.0)):
        with pytest.raises(ValueError, match="width"):
            windowed(values, 0.0, width, function)
    with pytest.raises(ValueError, match="CUBIC"):
        windowed(values, 0.0, 1.0, "CUBIC")


def test_colour_is_neither_windowed_nor_lost() -> None:
    colour = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    data = encode(colour, "png")
    assert np.array_equal(picture(call("pixel_window", data, "png", "uint8", [4, 6, 3], 1.0, 2.0)), colour)
    assert call("value_at", data, "png", "uint8", [4, 6, 3], 2, 3) == pytest.approx(colour[2, 3] @ [0.299, 0.587, 0.114])


def test_a_value_is_the_stored_one() -> None:
    stored = np.arange(-10, 10, dtype=np.int16).reshape(4, 5)
    data = encode(stored, "blosc2")
    assert call("value_at", data, "blosc2", "int16", [4, 5], 1, 2, None) == stored[1, 2]
    assert call("value_at", data, "blosc2", "int16", [4, 5], 4, 0) is None
    with pytest.raises(ValueError, match="shape"):
        call("value_at", data, "blosc2", "int16", [4, 6], 0, 0)
