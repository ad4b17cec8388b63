"""How sure a measure is: bootstrap over *subjects*. Images of one subject resemble each other, so that resampling images would promise too much.

A replicate draws as many subjects as there are, with replacement, and scores all their images as often as their subject was drawn (the
cluster bootstrap, Field and Welsh 2007, doi 10.1111/j.1467-9868.2007.00593.x); the interval are the 2.5th and 97.5th percentiles. It is a function of the
seed and the subjects' order alone. With fewer than `LEAST_SUBJECTS` there is no interval: so few say nothing about their spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medspark.keys import rng

LEAST_SUBJECTS = 5
REPLICATES = 1000
LEVEL = 0.95
LEAST_DEFINED = 0.9  # share of replicates in which the measure must be defined (one drawn without positives has no AUC)


@dataclass(frozen=True)
class Estimate:
    """A measure with its interval. n : subjects it is over; low, high : None where there is no interval (fewer than five subjects)."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def said(self) -> str:
        """For people: ``0.912 (0.880 to 0.941)``, or ``0.912 (no interval: 3 subjects)``."""
        if self.value is None:
            return "not defined"
        if self.low is None or self.high is None:
            why = f"{self.n} subject{'s' if self.n != 1 else ''}" if self.n < LEAST_SUBJECTS else "not defined in many samples"
            return f"{self.value:.3f} (no interval: {why})"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap(
    statistic: Callable[[np.ndarray | None], float | None],
    subjects: int,
    seed: int,
    *names: object,
    replicates: int = REPLICATES,
    least: int = LEAST_SUBJECTS,
) -> Estimate:
    """An estimate of ``statistic`` with its interval.

    statistic : how often each subject counts, (subjects,) float64, or None for once each -> the measure, or None where it is not defined
    names : of what is measured, so that each measure has its own random stream
    """
    value = statistic(None)
    if subjects < least or value is None:
        return Estimate(value, None, None, subjects)
    random = rng(seed, "bootstrap", *names)
    found = []
    for _ in range(replicates):
        one = statistic(np.bincount(random.integers(0, subjects, subjects), minlength=subjects).astype(float))
        if one is not None:
            found.append(one)
    if len(found) < LEAST_DEFINED * replicates:
        return Estimate(value, None, None, subjects)
    low, high = np.percentile(found, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(value, float(low), float(high), subjects)


def of_mean(sums: np.ndarray, counts: np.ndarray, seed: int, *names: object, replicates: int = REPLICATES) -> Estimate:
    """The mean over all images, from each subject's sum of values and number of values; subjects without values do not take part."""
    there = np.asarray(counts) > 0
    sums, counts = np.asarray(sums, float)[there], np.asarray(counts, float)[there]

    def mean(times: np.ndarray | None) -> float | None:
        if not len(counts):
            return None
        return float(sums.sum() / counts.sum()) if times is None else float(times @ sums / (times @ counts))

    return bootstrap(mean, len(counts), seed, *names, replicates=replicates)
