"""Stitched windows: what holds for every size, window and overlap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medspark.feed import stitch

sides = st.tuples(st.integers(1, 40), st.integers(1, 40))
windows = st.tuples(st.integers(1, 17), st.integers(1, 17))


@given(sides, windows, st.sampled_from([0.0, 0.25, 0.5, 0.9]), st.integers(1, 5))
@settings(max_examples=120, deadline=None)
def test_stitching_a_pointwise_network_is_the_network_on_the_whole(
    size: tuple[int, int], window: tuple[int, int], overlap: float, batch: int
) -> None:
    image = np.random.default_rng(size[0] * 41 + size[1]).normal(size=(*size, 2)).astype(np.float32)

    def pointwise(some: np.ndarray) -> np.ndarray:
        assert some.shape[1:] == (*window, 2) and len(some) <= batch
        return np.stack([some[..., 0] + some[..., 1], np.tanh(some[..., 0]), some[..., 1] ** 2], axis=-1)

    found = stitch.stitched(image, window, pointwise, overlap, batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pointwise_whole(image), rtol=1e-5, atol=1e-5)


def pointwise_whole(image: np.ndarray) -> np.ndarray:
    return np.stack([image[..., 0] + image[..., 1], np.tanh(image[..., 0]), image[..., 1] ** 2], axis=-1)


@given(sides, windows, st.sampled_from([0.0, 0.3, 0.5]))
@settings(max_examples=60, deadline=None)
def test_stripes_cover_each_row_once_and_are_no_taller_than_a_window(
    size: tuple[int, int], window: tuple[int, int], overlap: float
) -> None:
    reached = 0
    for row0, rows in stitch.stripes(np.zeros((*size, 1), np.uint8), window, lambda some: some.astype(np.float32), overlap):
        assert row0 == reached and rows.shape[1:] == (size[1], 1) and 0 < len(rows) <= window[0]
        reached += len(rows)
    assert reached == size[0]


def test_an_image_of_one_window_is_the_network_s_own_answer() -> None:
    image = np.random.default_rng(0).normal(size=(16, 16, 1)).astype(np.float32)
    network = lambda some: some - some.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(stitch.stitched(image, (16, 16), network), network(image[None])[0])


def test_seams_are_smoothed() -> None:
    """A network that answers with the number of its window: the answer must rise from one to the next without a jump."""
    seen = iter(range(100))
    found = stitch.stitched(
        np.zeros((8, 40, 1)), (8, 16), lambda some: np.stack([np.full((8, 16, 1), float(next(seen)))] * len(some)), 0.5, 1
    )
    steps = np.diff(found[0, :, 0])
    assert steps.min() >= 0 and steps.max() < 0.25 and found[0, 0, 0] == 0


def test_rims_count_less_but_never_nothing() -> None:
    weight = stitch.weights((8, 12), (6, 9))
    assert weight.min() > 0 and weight.max() == 1 and weight[0, 6] < weight[4, 6] == 1


def test_an_overlap_of_all_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        stitch.strides((8, 8), 1.0)
