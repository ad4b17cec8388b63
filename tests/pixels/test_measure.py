"""Measures against scikit-image's regionprops and the definitions themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import measure as oracle

from medspark.pixels.measure import LUMINANCE, measures

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))


@given(masks, st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_agrees_with_regionprops(mask: np.ndarray, seed: int) -> None:
    values = np.random.default_rng(seed).normal(40.0, 300.0, mask.shape)
    found = measures(mask, values)
    assert found["area_px"] == mask.sum()
    if not mask.any():
        assert found["bbox"] is None and found["centroid_row"] is None and found["value_mean"] is None
        assert found["n_components"] == found["boundary_px"] == 0
        return
    (props,) = oracle.regionprops(mask.astype(np.uint8), values)
    assert tuple(found["bbox"].values()) == props.bbox
    assert (found["centroid_row"], found["centroid_col"]) == pytest.approx(props.centroid)
    assert found["n_components"] == oracle.label(mask, connectivity=2).max()
    assert found["value_mean"] == pytest.approx(props.intensity_mean)
    assert found["value_std"] == pytest.approx(props.intensity_std, abs=1e-9)
    assert (found["value_min"], found["value_max"]) == (props.intensity_min, props.intensity_max)
    around = np.pad(mask, 1)
    outside = ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])
    assert found["boundary_px"] == (mask & outside).sum()


@given(masks, st.integers(0, 50), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_a_crop_measures_as_the_whole(mask: np.ndarray, row0: int, col0: int) -> None:
    whole = np.zeros((80, 80), bool)
    whole[row0 : row0 + mask.shape[0], col0 : col0 + mask.shape[1]] = mask
    found, expected = measures(mask, row0=row0, col0=col0), measures(whole)
    assert found.pop("bbox") == expected.pop("bbox")
    assert found == pytest.approx(expected)


def test_colour_counts_as_luminance() -> None:
    rng = np.random.default_rng(3)
    colour, mask = rng.integers(0, 256, (9, 7, 3), np.uint8), rng.random((9, 7)) < 0.5
    found, gray = measures(mask, colour), measures(mask, colour.astype(float) @ LUMINANCE)
    assert {name: found[name] for name in found if name != "bbox"} == pytest.approx({name: gray[name] for name in gray if name != "bbox"})


def test_large_values_keep_their_digits() -> None:
    values = np.full((4, 4), 2**31 - 1, np.int32)
    found = measures(np.ones((4, 4), bool), values)
    assert found["value_mean"] == 2**31 - 1 and found["value_std"] == 0.0
