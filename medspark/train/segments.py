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


def pasted(crops: Sequence[Crop], labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """truth, predicted : (L, *space) bool; known : (*space) bool, of the box that holds all crops; outside of them nothing is known.

    Crops of two dimensions must be of one image; where they overlap the later one counts. Crops of volumes stand at their k.
    """
    corners = [_corner(crop) for crop in crops]
    first = np.min(corners, axis=0)
    last = np.max([np.add(corner, crop.space) for corner, crop in zip(corners, crops, strict=True)], axis=0)
    shape = tuple((last - first).tolist())
    truth, predicted, known = np.zeros((labels, *shape), bool), np.zeros((labels, *shape), bool), np.zeros(shape, bool)
    for corner, crop in zip(corners, crops, strict=True):
        _paste(crop, labels, _box(np.subtract(corner, first), crop.space), truth, predicted, known)
    return truth, predicted, known


def stacked(crops: Sequence[Crop], label: int, labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """truth, predicted, known : (K, rows, cols) bool of one label of a series whose crops are slices; slices that the feed lacks are unknown."""
    corners = np.array([(crop.place.k, crop.place.row0, crop.place.col0) for crop in crops])
    sizes = np.array([(1, *crop.space) for crop in crops])
    first, last = corners.min(axis=0), (corners + sizes).max(axis=0)
    volume = tuple((last - first).tolist())
    truth, predicted, known = np.zeros(volume, bool), np.zeros(volume, bool), np.zeros(volume, bool)
    for corner, size, crop in zip(corners, sizes, crops, strict=True):
        k, box = int(corner[0] - first[0]), _box(corner - first, size)[1:]
        of_truth, of_predicted, seen = crop.planes(labels)
        truth[k][box], predicted[k][box], known[k][box] = of_truth[label], of_predicted[label], seen
    return truth, predicted, known


def _corner(crop: Crop) -> tuple[int, ...]:
    at = (crop.place.row0, crop.place.col0)
    return at if len(crop.space) == 2 else (crop.place.k - crop.space[0] // 2, *at)  # image_id and k are the middle slice's


def _box(start: np.ndarray, size: Sequence[int]) -> Box:
    return tuple(slice(int(at), int(at + side)) for at, side in zip(start, size, strict=True))


def _paste(crop: Crop, labels: int, box: Box, truth: np.ndarray, predicted: np.ndarray, known: np.ndarray) -> None:
    of_truth, of_predicted, seen = crop.planes(labels)
    truth[(slice(None), *box)], predicted[(slice(None), *box)], known[box] = of_truth, of_predicted, seen


def overlap(truth: np.ndarray, predicted: np.ndarray, known: np.ndarray) -> tuple[Counts, dict[str, float | None]]:
    """Counts, and `OVERLAP`'s measures of them; all None where nothing is known."""
    counts = measure.count(truth, predicted, known)
    return counts, {name: of(counts) for name, of in OVERLAP.items()}


def distance(truth: np.ndarray, predicted: np.ndarray, known: np.ndarray, spacing_mm: Sequence[float]) -> float | None:
    """95th-percentile Hausdorff distance in mm where the truth is known."""
    return hausdorff_mm(truth & known, predicted & known, spacing_mm) if known.any() else None


def lesions(truth: np.ndarray, predicted: np.ndarray, known: np.ndarray) -> tuple[Detection, dict[str, float | None]]:
    """Connected components of the truth, and which of them were found."""
    found = detect(components(truth & known), predicted & known)
    return found, {"lesion_sensitivity": found.sensitivity, "lesion_precision": found.precision, "lesion_f1": found.f1}
