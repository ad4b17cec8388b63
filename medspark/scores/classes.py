"""Labels of whole images, scored: every measure with its interval over subjects, from what `stream.Called` kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medspark.scores import confusion as matrices
from medspark.scores import counts as measure
from medspark.scores.calibration import Placed, Reliability
from medspark.scores.counts import Counts
from medspark.scores.intervals import REPLICATES, Estimate, bootstrap
from medspark.scores.ranking import Ranked, auc, average_precision
from medspark.scores.stream import Called

BY_COUNTS = {
    "accuracy": measure.accuracy,
    "balanced_accuracy": measure.balanced_accuracy,
    "f1": measure.f1,
    "sensitivity": measure.sensitivity,
    "specificity": measure.specificity,
    "precision": measure.precision,
}
"""Of one label against the rest, from its counts at the threshold."""
Statistic = Callable[[np.ndarray | None], float | None]


def counts_at(truth: np.ndarray, probability: np.ndarray, threshold: float) -> Counts:
    return measure.count(truth, probability >= threshold)


def score_label(called: Called, threshold: float, seed: int, name: str, replicates: int = REPLICATES) -> dict[str, Estimate]:
    """auc, average_precision, ece, brier and those of `BY_COUNTS`, each over all images, with intervals over subjects.

    threshold : fixed on validation; a label counts as present where its probability reaches it
    """
    truth, probability = called.truth, called.probability
    subjects, subject = np.unique(called.subject, return_inverse=True)
    ranked = Ranked.of(truth, probability)
    present = probability >= threshold
    cells = np.stack([truth & present, ~truth & present, truth & ~present, ~truth & ~present])
    per_subject = np.stack([np.bincount(subject, cell, len(subjects)) for cell in cells]) if len(truth) else np.zeros((4, 0))

    placed = Placed.of(truth, probability)

    def of_images(times: np.ndarray | None) -> np.ndarray | None:
        return None if times is None else times[subject]

    def calibrated(times: np.ndarray | None) -> Reliability:
        return placed(np.ones(len(subject)) if times is None else times[subject])

    def by_counts(metric: str) -> Statistic:
        def statistic(times: np.ndarray | None) -> float | None:
            tp, fp, fn, tn = (int(total) for total in (per_subject.sum(1) if times is None else per_subject @ times))
            return BY_COUNTS[metric](Counts(tp, fp, fn, tn))

        return statistic

    statistics: dict[str, Statistic] = {
        "auc": lambda times: auc(ranked, of_images(times)),
        "average_precision": lambda times: average_precision(ranked, of_images(times)),
        "ece": lambda times: calibrated(times).ece,
        "brier": lambda times: calibrated(times).brier,
        **{metric: by_counts(metric) for metric in BY_COUNTS},
    }
    return {
        metric: bootstrap(statistic, len(subjects), seed, name, metric, replicates=replicates) for metric, statistic in statistics.items()
    }


def score_classes(
    truth: np.ndarray, predicted: np.ndarray, subject: np.ndarray, labels: Sequence[str], seed: int, replicates: int = REPLICATES
) -> tuple[dict[str, Estimate], np.ndarray]:
    """({accuracy, balanced_accuracy, macro_f1}, confusion matrix) of exclusive labels.

    truth, predicted : (n,) places in ``labels``; subject : (n,) ints
    """
    subjects, number = np.unique(subject, return_inverse=True)

    def statistic(of: Callable[[np.ndarray], float | None]) -> Statistic:
        return lambda times: of(matrices.confusion(truth, predicted, len(labels), None if times is None else times[number]))

    found = {
        name: bootstrap(statistic(of), len(subjects), seed, "classes", name, replicates=replicates)
        for name, of in (
            ("accuracy", matrices.accuracy),
            ("balanced_accuracy", matrices.balanced_accuracy),
            ("macro_f1", matrices.macro_f1),
        )
    }
    return found, matrices.confusion(truth, predicted, len(labels))
