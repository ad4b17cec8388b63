"""Exclusive classes against each other: the confusion matrix and what follows from it."""

from __future__ import annotations

import numpy as np

from medspark.scores.counts import Counts, f1


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """(classes, classes) float64: row = truth, column = prediction; truth, predicted : (n,) ints below ``classes``."""
    place = np.asarray(truth, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(place, weights, classes * classes).reshape(classes, classes).astype(float)


def accuracy(matrix: np.ndarray) -> float | None:
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else None


def balanced_accuracy(matrix: np.ndarray) -> float | None:
    """Mean sensitivity of the classes that occur; None where fewer than two do."""
    there = matrix.sum(1) > 0
    if there.sum() < 2:
        return None
    return float(np.mean(np.diag(matrix)[there] / matrix.sum(1)[there]))


def macro_f1(matrix: np.ndarray) -> float | None:
    """Mean F1 of the classes that occur in truth or prediction; None without samples."""
    found = [f1(counts) for counts in one_against_rest(matrix)]
    told = [value for value in found if value is not None]
    return float(np.mean(told)) if told else None


def one_against_rest(matrix: np.ndarray) -> list[Counts]:
    total = int(matrix.sum())
    counts = []
    for place in range(len(matrix)):
        tp, predicted, true = int(matrix[place, place]), int(matrix[:, place].sum()), int(matrix[place].sum())
        counts.append(Counts(tp, predicted - tp, true - tp, total - predicted - true + tp))
    return counts
