"""Measures of one image or one series, from the crops that a feed cut of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from medspark.scores import counts as measure
from medspark.scores.counts import Counts
from medspark.scores.lesions import Detection, components, detect
from medspark.scores.surface import hausdorff_mm
from medspark.train.gathered import Crop

OVERLAP = {
    "dice": measure.dice,
    "iou": measure.iou,
    "iou_065": measure.good_iou,
    "sensitivity": measure.sensitivity,
    "specificity": measure.specificity,
    "precision": measure.precision,
    "volume_error": measure.volume_error,
    "false_alarm": measure.false_alarm,
}
"""What is said of every image and series and of all pixels of a subject; ``volume_error`` of an image is that of its area."""
POOLED = ("dice", "iou", "sensitivity", "specificity", "precision", "volume_error")
"""Those that mean something for all pixels of a subject, or of a slide, together."""
Box = tuple[slice, ...]


def images(crops: Sequence[Crop]) -> Iterator[tuple[str, list[Crop]]]:
    """(image_id, its crops), by k; for crops of one parent in `Gathered`'s order."""
    for (_, image_id), found in groupby(crops, key=lambda crop: (crop.place.k, crop.place.image_id)):
        yield image_id, list(found)


def frame(crops: Sequence[Crop], deep: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(first corner, shape) of the box that holds all crops, in the feed's pixels; (k, row, col) of volumes, and of slices if ``deep``."""
    corners = [_corner(crop, deep) for crop in crops]
    first = np.min(corners, axis=0)
    last = np.max([np.add(corner, _size(crop, deep)) for corner, crop in zip(corners, crops, strict=True)], axis=0)
    return tuple(first.tolist()), tuple((last - first).tolist())


def pasted(crops: Sequence[Crop], labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """truth, predicted : (L, *space) bool; known : (*space) bool, of their `frame`; outside of the crops nothing is known.

    Crops of two dimensions must be of one image; where they overlap the later one counts. Crops of volumes stand at their k.
    """
    first, shape = frame(crops)
    truth, predicted, known = np.zeros((labels, *shape), bool), np.zeros((labels, *shape), bool), np.zeros(shape, bool)
    for crop in crops:
        box = _box(np.subtract(_corner(crop), first), crop.space)
        of_truth, of_predicted, seen = crop.planes(labels)
        truth[(slice(None), *box)], predicted[(slice(None), *box)], known[box] = of_truth, of_predicted, seen
    return truth, predicted, known


def stacked(crops: Sequence[Crop], label: int, labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """truth, predicted, known : (K, rows, cols) bool of one label of a series whose crops are slices; slices that the feed lacks are unknown."""
    first, shape = frame(crops, deep=True)
    truth, predicted, known = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    for crop in crops:
        k, *box = _box(np.subtract(_corner(crop, deep=True), first), _size(crop, deep=True))
        place = (k.start, *box)
        of_truth, of_predicted, seen = crop.planes(labels)
        truth[place], predicted[place], known[place] = of_truth[label], of_predicted[label], seen
    return truth, predicted, known


def _corner(crop: Crop, deep: bool = False) -> tuple[int, ...]:
    at = (crop.place.row0, crop.place.col0)
    if len(crop.space) == 2:
        return (crop.place.k, *at) if deep else at
    return (crop.place.k - crop.space[0] // 2, *at)  # image_id and k are the middle slice's


def _size(crop: Crop, deep: bool) -> tuple[int, ...]:
    return (1, *crop.space) if deep and len(crop.space) == 2 else crop.space


def _box(start: np.ndarray, size: Sequence[int]) -> Box:
    return tuple(slice(int(at), int(at + side)) for at, side in zip(start, size, strict=True))


def overlap(truth: np.ndarray, predicted: np.ndarray, known: np.ndarray) -> tuple[Counts, dict[str, float | None]]:
    """Counts, and `OVERLAP`'s measures of them; all None where nothing is known."""
    counts = measure.count(truth, predicted, known)
    return counts, {name: of(counts) for name, of in OVERLAP.items()}


def distance(truth: np.ndarray, predicted: np.ndarray, known: np.ndarray, spacing_mm: Sequence[float]) -> float | None:
    """95th-percentile Hausdorff distance in mm where the truth is known."""
    return hausdorff_mm(truth & known, predicted & known, spacing_mm) if known.any() else None


def lesions(
    truth: np.ndarray, predicted: np.ndarray, known: np.ndarray, objects: np.ndarray | None = None
) -> tuple[Detection, dict[str, float | None]]:
    """Which lesions were found. objects : int array, the number of the object at each pixel; None: connected components of the truth."""
    found = detect(_numbered(truth & known, objects), predicted & known)
    return found, {"lesion_sensitivity": found.sensitivity, "lesion_precision": found.precision, "lesion_f1": found.f1}


def _numbered(truth: np.ndarray, objects: np.ndarray | None) -> np.ndarray:
    """Each lesion's number; truth that belongs to no object in connected components."""
    if objects is None:
        return components(truth)
    kept = np.where(truth, objects, 0)
    rest = components(truth & (objects == 0))
    return np.where(rest > 0, rest + kept.max(), kept)
