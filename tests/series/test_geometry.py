"""Geometry: laws of the affine and of the gaps, and the limits of contract.md §5."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medspark.series import geometry
from tests.phantoms.series import AXIAL, tilted

ANGLES = st.floats(-40, 40)


def turned(a: float, b: float, c: float) -> np.ndarray:
    """Six cosines of a plane turned about the three axes."""
    (ca, cb, cc), (sa, sb, sc) = np.cos([a, b, c]), np.sin([a, b, c])
    rotation = (
        np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
        @ np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
        @ np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    )
    return np.concatenate([rotation[:, 0], rotation[:, 1]])


@given(st.tuples(*[st.floats(-3, 3)] * 3), st.floats(0.2, 10), ANGLES, st.integers(2, 9), st.randoms())
def test_affine_maps_every_pixel_centre_and_order_is_irrelevant(turns, gap, tilt, count, random):
    cosines = turned(*turns)
    axis = np.array(geometry.normal(cosines))
    step = gap * (axis + np.tan(np.radians(tilt)) * cosines[3:])
    origins = np.array([7.0, -3.0, 11.0]) + np.arange(count)[:, None] * step
    shuffled = list(range(count))
    random.shuffle(shuffled)
    stack = geometry.stack(origins[shuffled], cosines, (0.5, 0.75))
    assert stack.affine is not None
    matrix = np.array(stack.affine).reshape(4, 4)
    for k in (0, count - 1):
        expected = origins[k] + 3 * 0.75 * cosines[:3] + 2 * 0.5 * cosines[3:]  # col 3, row 2
        np.testing.assert_allclose(matrix @ [3, 2, k, 1], [*expected, 1], atol=1e-6)
    assert stack.spacing_mm == pytest.approx(gap, abs=1e-6)
    assert stack.tilt_deg == pytest.approx(abs(tilt), abs=1e-4)
    assert np.dot(axis, stack.step_mm) == pytest.approx(gap, abs=1e-6)


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=30))
def test_ranks_are_dense_and_monotone(positions):
    along = np.array(positions)
    ranks = geometry.distinct_places(along)
    assert sorted(set(ranks.tolist())) == list(range(ranks.max() + 1))
    order = np.argsort(along, kind="stable")
    assert (np.diff(ranks[order]) >= 0).all()
    assert len(geometry.slice_gaps(along)) == ranks.max()


@pytest.mark.parametrize(
    ("gaps", "irregular", "missing"),
    [
        ([1, 1, 1], False, 0),
        ([1, 1, 1.1], False, 0),  # 0.1 mm is still even
        ([1, 1, 1.11], True, 0),
        ([5, 5, 5.25], False, 0),  # 5 %
        ([5, 5, 5.26], True, 0),
        ([0.75, 0.75, 1.5], True, 1),
        ([1, 1, 1, 3.05], True, 2),
        ([1, 1, 1, 1.85], True, 0),  # nothing is 15 % short of two medians
        ([4] * 13 + [1.08] + [7] * 13, True, 0),
        ([2.0], False, 0),
        ([], False, 0),
    ],
)
def test_limits_of_the_verdicts(gaps, irregular, missing):
    array = np.array(gaps, np.float64)
    assert geometry.irregular(array) is irregular
    assert geometry.missing(array) == missing


def test_uneven_steps_have_no_affine_but_a_tilt():
    cosines = geometry.unit_orientation(tilted(18.5))
    z = np.array([0, 4, 8, 15.0])
    origins = np.stack([np.zeros(4), np.zeros(4), z / np.cos(np.radians(18.5))], axis=1)
    stack = geometry.stack(origins, cosines, (1, 1))
    assert stack.affine is None
    assert stack.spacing_mm == pytest.approx(4.0)
    assert stack.tilt_deg == pytest.approx(18.5)
    np.testing.assert_allclose(stack.gaps_mm, [4, 4, 7])


@pytest.mark.parametrize("wrong", [None, [1, 0, 0, 0, 1], [0] * 6, [1, 0, 0, 1, 0, 0], [2, 0, 0, 0, 1, 0], [1, 0, 0, 0.5, 0.9, 0]])
def test_no_orientation(wrong):
    assert geometry.unit_orientation(wrong) is None


def test_noise_does_not_split_a_series_but_a_degree_does():
    noisy = [value + 3e-6 for value in AXIAL]
    assert geometry.orientation_key(noisy) == geometry.orientation_key([-0.0 if value == 0 else value for value in AXIAL])
    assert geometry.orientation_key(tilted(1.0)) != geometry.orientation_key(AXIAL)
    assert geometry.orientation_key(None) == ""
