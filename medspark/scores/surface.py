"""How far apart two outlines are, in mm.

A mask's surface are its pixels with a 4-neighbour (6-neighbour in volumes) outside it; the image's border counts as outside. Distances run
between pixel centres, with the spacing of each axis. This is MONAI's and medpy's definition; the 95th percentile is taken of each
direction, then the larger of the two (Huttenlocher 1993, doi 10.1109/34.232073; Metrics Reloaded, doi 10.1038/s41592-023-02151-z).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PERCENTILE = 95.0
MAP_SHARE = 0.1  # surface pixels of a box from which on a distance map of it is faster than a tree of its surface points
MAP_PIXELS = 1 << 25  # the largest box that gets a map: it takes some 16 bytes a pixel while it is made, 0.5 GB


def hausdorff_mm(truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float], percentile: float = PERCENTILE) -> float | None:
    """The 95th-percentile Hausdorff distance of two masks.

    truth, predicted : (rows, cols) or (k, row, col) bool; spacing_mm : one per axis, in the same order
    None where both are empty. Where one is empty there is no distance: the longest one that the image allows, its diagonal in mm, stands for it,
    so that a missed structure is worse than any drawn one and never left out.
    """
    if truth.shape != predicted.shape or truth.ndim != len(spacing_mm):
        raise ValueError(f"truth {truth.shape}, prediction {predicted.shape}, spacing {tuple(spacing_mm)}")
    there = bounds(truth | predicted)
    if there is None:
        return None
    truth_in, predicted_in = truth[there], predicted[there]
    if not truth_in.any() or not predicted_in.any():
        return float(np.linalg.norm(np.asarray(truth.shape) * np.asarray(spacing_mm, float)))
    to_truth, to_predicted = surface_distances_mm(truth_in, predicted_in, spacing_mm)
    return float(max(np.percentile(to_truth, percentile), np.percentile(to_predicted, percentile)))


def surface_distances_mm(truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(from each surface pixel of the prediction to the truth's surface, from each of the truth to the prediction's), mm; neither is empty."""
    of_truth, of_predicted = surface(truth), surface(predicted)
    if of_truth.size <= MAP_PIXELS and np.count_nonzero(of_truth | of_predicted) >= MAP_SHARE * of_truth.size:
        return _by_map(of_predicted, of_truth, spacing_mm), _by_map(of_truth, of_predicted, spacing_mm)
    return _by_tree(of_predicted, of_truth, spacing_mm), _by_tree(of_truth, of_predicted, spacing_mm)


def _by_map(start: np.ndarray, end: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(~end, sampling=spacing_mm)[start])


def _by_tree(start: np.ndarray, end: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    from scipy.spatial import cKDTree

    scale = np.asarray(spacing_mm, float)
    found: Any = cKDTree(np.argwhere(end) * scale).query(np.argwhere(start) * scale)
    return np.asarray(found[0])


def surface(mask: np.ndarray) -> np.ndarray:
    """The mask's pixels with a direct neighbour outside; the border of the array counts as outside."""
    mask = np.asarray(mask, bool)
    inner = mask.copy()
    for axis in range(mask.ndim):
        for edge, shifted in ((slice(0, 1), (slice(1, None), slice(None, -1))), (slice(-1, None), (slice(None, -1), slice(1, None)))):
            first: list[slice] = [slice(None)] * mask.ndim
            first[axis] = edge
            inner[tuple(first)] = False
            here, there = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
            here[axis], there[axis] = shifted
            inner[tuple(here)] &= mask[tuple(there)]
    return mask & ~inner


def bounds(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds the mask; None where it is empty. What is measured of masks inside is what is measured of the whole image."""
    slices = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not hit.size:
            return None
        slices.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(slices)
