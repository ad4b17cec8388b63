"""Sums of 16-bit values in C against numpy's whole numbers; the statistics of a slice with and without them."""

from __future__ import annotations

import numpy as np
import pytest

from medspark.pixels import native
from medspark.series import rescale


@pytest.fixture(scope="module")
def sums(kernels):
    return native.short_sums(kernels)


def kept(array, padding):
    values = array.astype(np.int64).ravel()
    return values if padding is None else values[(values < min(padding)) | (values > max(padding))]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 512 * 512 + 5])
@pytest.mark.parametrize(
    "padding", [None, (-2000, -2000), (0, 0), (65535, 70000), (-32768, -1), (100, -100), (-90000, -80000), (32767, 32767)]
)
@pytest.mark.parametrize("picture", ["noise", "least", "most"])
def test_whole_numbers_agree(sums, dtype, size, padding, picture):
    info = np.iinfo(dtype)
    array = np.random.default_rng([5, size]).integers(info.min, info.max, size, dtype, endpoint=True)
    array[::3] = -2000 if dtype == np.int16 else 0
    if picture != "noise":
        array[:] = info.min if picture == "least" else info.max
    values = kept(array, padding)
    count, least, most, total, squares = sums(array, padding)
    assert count == values.size
    if count:
        assert (least, most, total, squares) == (values.min(), values.max(), values.sum(), (values * values).sum())


def test_only_native_words_of_16_bits_are_taken(sums):
    for array in (np.zeros(4, np.int8), np.zeros(4, ">i2"), np.zeros(4, np.float32)):
        with pytest.raises(ValueError, match="values of"):
            sums(array, None)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("padding", [None, (7, 7), (5, 20), (0, 60000)])
def test_statistics_do_not_depend_on_the_kernel(monkeypatch, sums, dtype, padding):
    array = np.random.default_rng(6).integers(7, 3000, (64, 65), dtype)
    array[:9] = 7
    found = []
    for chosen in (sums, None):
        monkeypatch.setattr(native, "short_sums", lambda chosen=chosen: chosen)
        stats = rescale.statistics(array, 2.0, -1024.0, padding)
        found.append((stats.value_min, stats.value_max, stats.value_mean, stats.value_std))
    assert found[0] == pytest.approx(found[1], rel=1e-12)
