"""Whether probabilities mean what they say: expected calibration error, Brier score, reliability. A stream of any length in fixed memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 15  # of equal width, as in Guo et al. 2017 (arXiv 1706.04599)


@dataclass
class Reliability:
    """Sums per bin of probability. Bin b holds (b / BINS, (b + 1) / BINS], the first one 0 too.

    n, said, true : (BINS,) samples, sum of probabilities, positives; squares : sum of squared errors
    """

    n: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    said: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    true: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    squares: float = 0.0

    def add(self, truth: np.ndarray, probability: np.ndarray, weights: np.ndarray | None = None) -> None:
        """truth : bool, probability : 0 to 1, any equal shapes; weights : how often each sample counts. ValueError outside 0..1."""
        truth, probability = np.ravel(truth).astype(bool), np.ravel(probability).astype(np.float64)
        if not len(probability):
            return
        if not (probability.min() >= 0.0 and probability.max() <= 1.0):
            raise ValueError("a probability is outside 0..1")
        placed = Placed.of(truth, probability)
        found = placed(np.ones(len(truth)) if weights is None else np.ravel(weights).astype(float))
        self.n += found.n
        self.said += found.said
        self.true += found.true
        self.squares += found.squares

    def sums(self) -> np.ndarray:
        """(3 BINS + 1,) float64: everything that was added, in numbers that add up over units; `Reliability.of` is the way back."""
        return np.concatenate([self.n, self.said, self.true, [self.squares]])

    @classmethod
    def of(cls, sums: np.ndarray) -> Reliability:
        n, said, true = np.split(np.asarray(sums[:-1], float), 3)
        return cls(n, said, true, float(sums[-1]))

    @property
    def ece(self) -> float | None:
        """Mean over the samples of |how often true - how probable it was said| of their bin, 0 to 1; None without samples."""
        total = self.n.sum()
        return float(np.abs(self.true - self.said).sum() / total) if total else None

    @property
    def brier(self) -> float | None:
        """Mean squared error of the probability, 0 to 1 (Brier 1950); None without samples."""
        total = self.n.sum()
        return self.squares / float(total) if total else None


@dataclass(frozen=True)
class Placed:
    """Samples that know their bin: placed once, summed under any weights (a bootstrap asks thousands of times).

    place : (n,) bin;  probability, truth, squares : (n,) float64
    """

    place: np.ndarray
    probability: np.ndarray
    truth: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, probability: np.ndarray) -> Placed:
        """truth : (n,) bool, probability : (n,), 0 to 1"""
        probability, truth = np.asarray(probability, np.float64), np.asarray(truth, np.float64)
        place = np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)
        return cls(place, probability, truth, (probability - truth) ** 2)

    def __call__(self, weights: np.ndarray) -> Reliability:
        n, said, true = (np.bincount(self.place, times, BINS) for times in (weights, weights * self.probability, weights * self.truth))
        return Reliability(n, said, true, float(weights @ self.squares))


def reliability(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray | None = None) -> Reliability:
    found = Reliability()
    found.add(truth, probability, weights)
    return found
