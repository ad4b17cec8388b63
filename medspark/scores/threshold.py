"""From which probability on a label counts as present. Chosen on validation data, kept in the model, never chosen on what it is tested on.

Two rules. ``youden``: the cut with the greatest sensitivity + specificity - 1 (Youden 1950), which does not depend on how frequent the label
is; the rule for images. ``f1``: the cut with the greatest F1 = Dice; the rule for pixels. Of equal cuts the one nearest to 0.5 is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from medspark.scores.ranking import Ranked

Rule = Literal["youden", "f1"]
UNDECIDED = 0.5  # where validation has one class only, nothing can be chosen


def choose(truth: np.ndarray, probability: np.ndarray, rule: Rule) -> float:
    """The threshold t (present where probability >= t), halfway between two probabilities that occur; 0.5 where one class is missing.

    truth : (n,) bool; probability : (n,) 0 to 1
    """
    ranked = Ranked.of(truth, probability)
    tp, fp = ranked.cumulated()
    if not len(tp) or not tp[-1] or not fp[-1]:
        return UNDECIDED
    below = np.r_[ranked.cuts[1:], 0.0]
    return _best(tp, fp, (ranked.cuts.astype(float) + below) / 2, rule)


def present(probabilities: np.ndarray, thresholds: Sequence[float], exclusive: bool, background: bool) -> np.ndarray:
    """(..., L) bool: which labels count as present. The one place where evaluation and prediction decide.

    probabilities : (..., L); thresholds : L
    exclusive : the most probable label is present and no other, whatever the thresholds; with ``background`` (pixels) what is left to 1 is a class of its
        own, and where it is the most probable none is present. Of equal ones the first, background before all.
    """
    if not exclusive:
        return np.asarray(probabilities >= np.asarray(thresholds, probabilities.dtype))
    rest = [1.0 - probabilities.sum(axis=-1, keepdims=True)] if background else []
    first = np.concatenate([*rest, probabilities], axis=-1).argmax(axis=-1) - len(rest)
    return np.asarray(first[..., None] == np.arange(probabilities.shape[-1]))


def _best(tp: np.ndarray, fp: np.ndarray, cuts: np.ndarray, rule: Rule) -> float:
    if rule == "youden":
        gain = tp / tp[-1] - fp / fp[-1]
    else:
        gain = 2 * tp / (tp + fp + tp[-1])
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - UNDECIDED))]])
