"""How the learning rate goes and when training ends: pure functions of the step, and two small states that checkpoints keep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from medspark.config import Train

PROGRESS = 1e-4  # a measure that grows by less has not grown: differences of this size come and go with the order of sums
HALVING = 0.5  # what a plateau does to the rate


@dataclass(frozen=True)
class Rate:
    """Learning rate of each update.

    peak : reached after warm-up; already scaled with the world's size
    floor : fraction of ``peak`` that the schedule ends at
    """

    peak: float
    start: float
    floor: float
    warmup: int
    total: int
    shape: Literal["constant", "cosine", "plateau"]

    def at(self, update: int, halvings: int = 0) -> float:
        """Of the update that comes after ``update`` updates; ``halvings`` by `Plateau`."""
        if update < self.warmup:
            return self.start + (self.peak - self.start) * (update + 1) / self.warmup
        if self.shape == "constant":
            return self.peak
        if self.shape == "plateau":
            return max(self.floor * self.peak, self.peak * HALVING**halvings)
        done = min(1.0, (update - self.warmup) / max(1, self.total - self.warmup))
        return self.peak * (self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done)))


def rate(train: Train, epochs: int, updates_per_epoch: int, world: int) -> Rate:
    """The rate of a run: scaled with the ranks, warmed up from the rate of a single one (Goyal et al. 2017, arXiv:1706.02677)."""
    factor = {"none": 1.0, "sqrt": math.sqrt(world), "linear": float(world)}[train.scaling]
    warmup = round(train.warmup_epochs * updates_per_epoch)
    start = train.learning_rate if world > 1 and factor > 1.0 else 0.0
    return Rate(train.learning_rate * factor, start, train.min_rate, warmup, epochs * updates_per_epoch, train.schedule)


@dataclass
class Watch:
    """Best value of a measure so far, and for how many epochs it has not been beaten."""

    higher: bool
    best: float | None = None
    best_epoch: int = -1
    since: int = 0
    halvings: int = 0
    since_halving: int = 0

    def see(self, value: float, epoch: int, patience: int = 0) -> bool:
        """True where ``value`` is the best so far. ``patience`` : epochs without progress before `halvings` grows by one; 0 never."""
        better = self.best is None or (value - self.best if self.higher else self.best - value) > PROGRESS
        if better:
            self.best, self.best_epoch, self.since, self.since_halving = value, epoch, 0, 0
            return True
        self.since += 1
        self.since_halving += 1
        if patience and self.since_halving >= patience:
            self.halvings, self.since_halving = self.halvings + 1, 0
        return False

    def over(self, stop_after: int) -> bool:
        """Whether training has gone ``stop_after`` epochs without progress; 0: never."""
        return bool(stop_after) and self.since >= stop_after
