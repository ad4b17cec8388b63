"""Distances in mm against SimpleITK's distance maps, and what is said of empty masks."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from medspark.scores import surface as surfaces
from medspark.scores.surface import hausdorff_mm, surface


def blobs(seed: int, shape: tuple[int, ...], border: int = 1) -> np.ndarray:
    """A random mask that leaves the border free (ITK's contour leaves out pixels on it)."""
    random = np.random.default_rng(seed)
    inner = tuple(side - 2 * border for side in shape)
    mask = np.zeros(shape, bool)
    mask[tuple(slice(border, side - border) for side in shape)] = random.random(inner) < random.uniform(0.05, 0.95)
    return mask


def itk_percentile_mm(truth: np.ndarray, predicted: np.ndarray, spacing_mm: tuple[float, ...], percentile: float) -> float:
    """The larger of both directed percentiles, by ITK's contour and its Maurer distance map."""

    def image(mask: np.ndarray) -> SimpleITK.Image:
        made = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
        made.SetSpacing(tuple(reversed(spacing_mm)))
        return made

    contours = [SimpleITK.BinaryContour(image(mask), fullyConnected=False) for mask in (truth, predicted)]
    maps = [
        SimpleITK.GetArrayFromImage(SimpleITK.Abs(SimpleITK.SignedMaurerDistanceMap(contour, squaredDistance=False, useImageSpacing=True)))
        for contour in contours
    ]
    masks = [SimpleITK.GetArrayFromImage(contour).astype(bool) for contour in contours]
    return max(np.percentile(maps[0][masks[1]], percentile), np.percentile(maps[1][masks[0]], percentile))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(9, 14), (6, 9, 11)]), st.sampled_from([50.0, 95.0, 100.0]))
@settings(max_examples=60, deadline=None)
def test_agrees_with_simpleitk(seed: int, shape: tuple[int, ...], percentile: float) -> None:
    spacing = (2.5, 0.7, 0.4)[-len(shape) :]
    truth, predicted = blobs(seed, shape), blobs(seed + 1, shape)
    if truth.any() and predicted.any():
        assert hausdorff_mm(truth, predicted, spacing, percentile) == pytest.approx(
            itk_percentile_mm(truth, predicted, spacing, percentile), rel=1e-5, abs=1e-5
        )


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_map_and_tree_agree(seed: int) -> None:
    truth, predicted = blobs(seed, (7, 9, 8), 0), blobs(seed + 1, (7, 9, 8), 0)
    if not truth.any() or not predicted.any():
        return
    of_truth, of_predicted = surface(truth), surface(predicted)
    dense, sparse = (
        [by(start, end, (3.0, 0.5, 0.5)) for start, end in ((of_predicted, of_truth), (of_truth, of_predicted))]
        for by in (surfaces._by_map, surfaces._by_tree)
    )
    for one, other in zip(dense, sparse, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_a_shift_along_a_thick_axis_counts_its_millimetres() -> None:
    truth = np.zeros((10, 20, 20), bool)
    truth[3:6, 5:15, 5:15] = True
    assert hausdorff_mm(truth, np.roll(truth, 1, 0), (5.0, 1.0, 1.0)) == pytest.approx(5.0)
    assert hausdorff_mm(truth, np.roll(truth, 1, 2), (5.0, 1.0, 1.0)) == pytest.approx(1.0)
    assert hausdorff_mm(truth, truth, (5.0, 1.0, 1.0)) == 0.0


def test_a_missing_mask_costs_the_diagonal() -> None:
    truth = np.zeros((30, 40), bool)
    assert hausdorff_mm(truth, truth, (1.0, 1.0)) is None
    truth[4, 5] = True
    assert hausdorff_mm(truth, ~truth & False, (1.0, 1.0)) == hausdorff_mm(~truth & False, truth, (1.0, 1.0)) == 50.0


def test_the_border_of_the_image_is_surface() -> None:
    assert surface(np.ones((4, 5), bool)).sum() == 14
    assert surface(np.ones((1, 5), bool)).all()
    assert surface(np.ones((3, 4, 5), bool)).sum() == 60 - 6


def test_spacing_of_other_axes_is_refused() -> None:
    with pytest.raises(ValueError, match="spacing"):
        hausdorff_mm(np.ones((3, 3), bool), np.ones((3, 3), bool), (1.0, 1.0, 1.0))
