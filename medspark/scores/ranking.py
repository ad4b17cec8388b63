"""How well probabilities order positives before negatives: ROC and precision-recall curves, and the areas under them. Weights allowed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranked:
    """Probabilities in falling order, ties together: sorted once, then scored under any weights (a bootstrap asks thousands of times).

    order : (n,) places of the samples; ends : (groups,) last place of each group of equal probabilities; cuts : (groups,) their probability
    """

    truth: np.ndarray
    order: np.ndarray
    ends: np.ndarray
    cuts: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, probability: np.ndarray) -> Ranked:
        """truth : (n,) bool; probability : (n,), any scale. ValueError for NaN."""
        probability = np.asarray(probability)
        if np.isnan(probability).any():
            raise ValueError("a probability is NaN")
        order = np.argsort(-probability, kind="stable")
        falling = probability[order]
        ends = np.flatnonzero(np.r_[falling[1:] != falling[:-1], True]) if len(falling) else np.zeros(0, np.int64)
        return cls(np.asarray(truth, bool)[order], order, ends, falling[ends])

    def cumulated(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(true positives, false positives) if everything down to each cut is called positive, both (groups,) float64."""
        if weights is None:
            return np.cumsum(self.truth)[self.ends].astype(float), np.cumsum(~self.truth)[self.ends].astype(float)
        ordered = np.asarray(weights, float)[self.order]
        return np.cumsum(ordered * self.truth)[self.ends], np.cumsum(ordered * ~self.truth)[self.ends]


def auc(ranked: Ranked, weights: np.ndarray | None = None) -> float | None:
    """Area under the ROC curve = chance that a positive is above a negative, ties half (Hanley and McNeil 1982). None with one class only."""
    tp, fp = ranked.cumulated(weights)
    if not len(tp) or tp[-1] <= 0 or fp[-1] <= 0:
        return None
    up, right = np.r_[0.0, tp], np.r_[0.0, fp]
    return float(np.sum(np.diff(right) * (up[1:] + up[:-1]) / 2) / (tp[-1] * fp[-1]))


def average_precision(ranked: Ranked, weights: np.ndarray | None = None) -> float | None:
    """Sum over the cuts of precision × gained recall, without interpolation (scikit-learn's definition). None without positives."""
    tp, fp = ranked.cumulated(weights)
    if not len(tp) or tp[-1] <= 0:
        return None
    gained = np.diff(np.r_[0.0, tp])
    return float(np.sum(np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0) * gained) / tp[-1])


def roc_curve(ranked: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """(false positive rate, true positive rate) from (0, 0) to (1, 1). ValueError with one class only."""
    tp, fp = ranked.cumulated()
    if not len(tp) or not tp[-1] or not fp[-1]:
        raise ValueError("a ROC curve needs positives and negatives")
    return np.r_[0.0, fp / fp[-1]], np.r_[0.0, tp / tp[-1]]


def precision_recall_curve(ranked: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision) at each cut, from the highest probability down. ValueError without positives."""
    tp, fp = ranked.cumulated()
    if not len(tp) or not tp[-1]:
        raise ValueError("a precision-recall curve needs positives")
    return tp / tp[-1], tp / (tp + fp)
