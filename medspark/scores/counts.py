"""Four numbers and everything that follows from them: Dice, IoU, sensitivity, accuracy, ...

Counts add up: over crops of an image, slices of a volume, images of a subject. So streams of any length need four numbers a unit.

The rule for empty masks (that of nnU-Net, doi 10.1038/s41592-020-01008-z): where the truth *and* the prediction are empty there is nothing to
overlap, and overlap measures are undefined (None), not 1; they are left out of means. Where only one of them is empty they are 0. Whether
something was drawn on an image without truth is told apart, by `false_alarm`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GOOD_IOU = 0.65  # below this an overlap counts as failed: the thresholded Jaccard index of ISIC 2018 (arXiv 1902.03368)


@dataclass(frozen=True)
class Counts:
    """Pixels (or images) by truth and prediction: true and false positives, false and true negatives."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    @classmethod
    def of(cls, sums: np.ndarray) -> Counts:
        """From (tp, fp, fn, tn) as they are summed over units."""
        tp, fp, fn, tn = (int(number) for number in sums)
        return cls(tp, fp, fn, tn)

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def n(self) -> int:
        return self.tp + self.fp + self.fn + self.tn

    @property
    def positives(self) -> int:
        return self.tp + self.fn

    @property
    def negatives(self) -> int:
        return self.fp + self.tn

    @property
    def predicted(self) -> int:
        return self.tp + self.fp


def count(truth: np.ndarray, predicted: np.ndarray, known: np.ndarray | None = None) -> Counts:
    """Counts of two bool arrays of one shape; elements that are not ``known`` count nowhere. ValueError where the shapes differ."""
    if truth.shape != predicted.shape or (known is not None and known.shape != truth.shape):
        raise ValueError(f"truth {truth.shape}, prediction {predicted.shape}, known {None if known is None else known.shape}")
    truth, predicted = np.asarray(truth, bool), np.asarray(predicted, bool)
    n = truth.size
    if known is not None:
        known = np.asarray(known, bool)
        truth, predicted = truth & known, predicted & known
        n = int(np.count_nonzero(known))
    tp = int(np.count_nonzero(truth & predicted))
    fp, fn = int(np.count_nonzero(predicted)) - tp, int(np.count_nonzero(truth)) - tp
    return Counts(tp, fp, fn, n - tp - fp - fn)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def dice(counts: Counts) -> float | None:
    """2 TP / (2 TP + FP + FN), 0 to 1; None where truth and prediction are empty. Equal to F1. Dice 1945, doi 10.2307/1932409."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def iou(counts: Counts) -> float | None:
    """TP / (TP + FP + FN), 0 to 1; None where truth and prediction are empty. The Jaccard index."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def good_iou(counts: Counts) -> float | None:
    """The IoU where it reaches `GOOD_IOU`, else 0; None where truth and prediction are empty."""
    found = iou(counts)
    return None if found is None else found if found >= GOOD_IOU else 0.0


def volume_error(counts: Counts) -> float | None:
    """(predicted - true) / true, signed: -1 all missed, 0 as large as it should be; None where the truth is empty."""
    return _ratio(counts.predicted - counts.positives, counts.positives)


def false_alarm(counts: Counts) -> float | None:
    """1 where something was drawn although the truth is empty, 0 where nothing was; None where the truth is not empty (or nothing is known)."""
    return None if counts.positives or not counts.n else float(counts.predicted > 0)


def sensitivity(counts: Counts) -> float | None:
    """TP / (TP + FN), recall; None without positives."""
    return _ratio(counts.tp, counts.positives)


def specificity(counts: Counts) -> float | None:
    """TN / (TN + FP); None without negatives."""
    return _ratio(counts.tn, counts.negatives)


def precision(counts: Counts) -> float | None:
    """TP / (TP + FP); None where nothing was predicted."""
    return _ratio(counts.tp, counts.predicted)


def accuracy(counts: Counts) -> float | None:
    return _ratio(counts.tp + counts.tn, counts.n)


def balanced_accuracy(counts: Counts) -> float | None:
    """Mean of sensitivity and specificity; None where the truth has one class only."""
    if not counts.positives or not counts.negatives:
        return None
    return (counts.tp / counts.positives + counts.tn / counts.negatives) / 2


def f1(counts: Counts) -> float | None:
    """Harmonic mean of precision and sensitivity: `dice` under its other name."""
    return dice(counts)
