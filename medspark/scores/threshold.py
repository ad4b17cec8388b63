"""From which probability on a label counts as present. Chosen on validation data, kept in the model, never chosen on what it is tested on.

Two rules. ``youden``: the cut with the greatest sensitivity + specificity - 1 (Youden 1950), which does not depend on how frequent the label
is; the rule for images. ``f1``: the cut with the greatest F1 = Dice; the rule for pixels. Of equal cuts the one nearest to 0.5 is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Rule = Literal["youden", "f1"]
UNDECIDED = 0.5  # where validation has one class only, nothing can be chosen


def choose(positive: np.ndarray, negative: np.ndarray, cuts: np.ndarray, rule: Rule) -> float:
    """The cut t that is best (present where probability >= t); 0.5 where one class is missing.

    positive, negative : (K,) counts of what shows the label and of what lacks it, with a probability from this cut up to the next
    cuts : (K,) ascending
    """
    tp = np.cumsum(np.asarray(positive, np.float64)[::-1])[::-1]
    fp = np.cumsum(np.asarray(negative, np.float64)[::-1])[::-1]
    if not len(tp) or not tp[0] or not fp[0]:
        return UNDECIDED
    gain = tp / tp[0] - fp / fp[0] if rule == "youden" else 2 * tp / (tp + fp + tp[0])
    best = cuts[gain >= gain.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - UNDECIDED))])


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
