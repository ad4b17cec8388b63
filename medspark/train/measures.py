"""What an epoch has counted: confusion per label, and scores by bins, from which curves and thresholds follow. Sums, so that ranks add up.

These steer training (curves, early stopping). Thresholds are chosen by `medspark.scores.threshold`; the measures that are reported per image and subject, with
intervals, are the rest of `medspark.scores`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 2048  # of the scores of one label: even, so that a bin begins at probability 0.5
LOGIT_RANGE = 16.0  # bins reach from -16 to 16 (probabilities of 1e-7 and less from certainty); what lies beyond falls into the outermost


def edges() -> np.ndarray:
    """(BINS,) float64: the probability at which each bin begins."""
    return 1.0 / (1.0 + np.exp(-(np.arange(BINS) / BINS * 2.0 - 1.0) * LOGIT_RANGE))


def confusion(decided: Any, truth: Any, seen: Any) -> Any:
    """(L, 4) int64, in the graph: true positives, false positives, false negatives, true negatives of each label, where truth is known.

    decided, truth : (..., L) bool        seen : the same, or one channel
    """
    import tensorflow as tf

    known = tf.logical_and(seen > 0, tf.ones_like(truth))
    pairs = ((decided, truth), (decided, ~truth), (~decided, truth), (~decided, ~truth))
    axes = list(range(len(truth.shape) - 1))
    return tf.stack([tf.reduce_sum(tf.cast(a & b & known, tf.int64), axes) for a, b in pairs], -1)


def histogram(probability: Any, truth: Any, seen: Any) -> Any:
    """(L, 2, BINS) int64, in the graph: known scores by bin; [:, 0] of what lacks the label, [:, 1] of what shows it. Arguments as `confusion`."""
    import tensorflow as tf

    labels = truth.shape[-1]
    p = tf.clip_by_value(tf.cast(probability, tf.float32), 1e-9, 1.0 - 1e-7)
    place = tf.cast((tf.math.log(p) - tf.math.log1p(-p)) * (BINS / (2.0 * LOGIT_RANGE)) + BINS // 2, tf.int32)
    place = tf.clip_by_value(place, 0, BINS - 1)
    index = (tf.range(labels) * 2 + tf.cast(truth, tf.int32)) * BINS + place
    known = tf.logical_and(seen > 0, tf.ones_like(truth))
    beyond = labels * 2 * BINS  # what is not known is counted there, and dropped
    counts = tf.math.bincount(tf.reshape(tf.where(known, index, beyond), [-1]), minlength=beyond + 1, maxlength=beyond + 1)
    return tf.cast(tf.reshape(counts[:beyond], (labels, 2, BINS)), tf.int64)


def dice(counts: np.ndarray) -> np.ndarray:
    """(L,) float64 from `confusion`: 2 TP / (2 TP + FP + FN) over all pixels of a part; NaN where a label neither occurs nor is predicted."""
    tp, fp, fn, _ = np.asarray(counts, np.float64).T
    with np.errstate(invalid="ignore"):
        return 2 * tp / (2 * tp + fp + fn)


def accuracy(counts: np.ndarray, exclusive: bool) -> float:
    """Part of the samples that are right: of the most probable class where they exclude each other, else mean over labels."""
    tp, fp, fn, tn = np.asarray(counts, np.float64).T
    total = tp + fp + fn + tn
    if not total.any():
        return float("nan")
    if exclusive:
        return float(tp.sum() / total.max())
    return float(np.mean(((tp + tn) / np.maximum(total, 1.0))[total > 0]))


def auc(scores: np.ndarray) -> np.ndarray:
    """(L,) float64: area under the ROC curve of each label, ties counted half; NaN where one side is missing. scores : `histogram`"""
    negative, positive = np.asarray(scores, np.float64).transpose(1, 0, 2)
    below = np.cumsum(negative, -1) - negative
    pairs = positive.sum(-1) * negative.sum(-1)
    with np.errstate(invalid="ignore"):
        return np.sum(positive * (below + 0.5 * negative), -1) / pairs
