"""Mean colour and sharpness: the compiled pass and numpy's agree, on every shape and place in memory."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medspark.pixels import native, tile_measure


@pytest.fixture(scope="module")
def compiled(kernels):
    return native.tile_sums(kernels)


def sharpness_of(array):
    """Variance of the Laplacian in whole numbers; Pillow's luminance."""
    if min(array.shape[:2]) < 3:
        return None
    y = np.asarray(Image.fromarray(np.ascontiguousarray(array)).convert("L")).astype(np.int64)
    return (y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1]).var()


@pytest.mark.parametrize("shape", [(224, 224), (256, 256), (1, 1), (2, 9), (3, 3), (9, 10), (7, 11), (600, 70), (5, 3000)])
@pytest.mark.parametrize("picture", ["noise", "white", "extreme"])
def test_both_agree(compiled, shape, picture):
    rng = np.random.default_rng([3, *shape])
    array = rng.integers(0, 256, (*shape, 3), np.uint8)
    if picture == "white":
        array[:] = 255
    elif picture == "extreme":  # a chessboard has the largest Laplacian that there is
        array[:] = 255 * ((np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 2)[..., None]).astype(np.uint8)
    wanted = sharpness_of(array)
    for (mean, sharpness), close in (
        (tile_measure.by_kernel(compiled, array), 1e-12),
        (tile_measure.by_numpy(array), 1e-3),  # its squares are summed in float32
    ):
        assert mean == pytest.approx(array.reshape(-1, 3).mean(axis=0), rel=1e-12)
        assert sharpness == (wanted if wanted is None else pytest.approx(wanted, rel=close, abs=1e-6))


def test_parts_of_an_array_wherever_they_lie(compiled):
    strip = np.random.default_rng(4).integers(0, 256, (64, 500, 3), np.uint8)
    for view in (strip[5:], strip[:, 1:65], strip[::-1], strip[:, ::-1], strip[3:, 436:]):
        mean, sharpness = tile_measure.by_kernel(compiled, view)
        assert mean == pytest.approx(view.reshape(-1, 3).mean(axis=0), rel=1e-12)
        assert sharpness == pytest.approx(sharpness_of(view), rel=1e-12)


@pytest.mark.parametrize("array", [np.zeros((4, 10, 4), np.uint8), np.zeros((4, 10), np.uint8), np.zeros((4, 10, 3), np.uint16)])
def test_what_is_no_tile_is_refused(compiled, array):
    with pytest.raises(ValueError, match="a tile of"):
        compiled(array)


def test_without_a_kernel_numpy_measures(monkeypatch, tmp_path):
    assert native.tile_sums(tmp_path / "none.so") is None
    monkeypatch.setattr(native, "tile_sums", lambda: None)
    assert tile_measure.measure(np.full((8, 8, 3), 7, np.uint8)) == ([7.0, 7.0, 7.0], 0.0)
