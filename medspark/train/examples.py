"""A few samples of an evaluation to look at: the worst ones, and some drawn at random. Holds these and no others."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import numpy as np

from medspark.feed.card import Card
from medspark.feed.reader import Batch
from medspark.scores.counts import count, dice
from medspark.train import pictures

KEPT = 8  # of each kind: what a sheet shows without scrolling


@dataclass(frozen=True)
class _Sample:
    image: np.ndarray
    masks: np.ndarray | None
    known: np.ndarray | None
    target: np.ndarray
    row_id: str
    probability: np.ndarray


@dataclass
class Examples:
    """Collects samples. seed : of the random ones"""

    card: Card
    seed: int = 0
    _worst: list[tuple[float, int, _Sample]] = field(default_factory=list)  # a heap whose first entry is the best of the worst
    _random: list[_Sample] = field(default_factory=list)
    _seen: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def add(self, batch: Batch, probabilities: np.ndarray, decided: np.ndarray) -> None:
        """probabilities, decided : (B, *space, L) or (B, L)"""
        for place in range(len(batch)):
            self._seen += 1
            score = goodness(batch, place, probabilities[place], decided[place])
            slot = len(self._random) if len(self._random) < KEPT else self._chance.randrange(self._seen)
            worse = score is not None and (len(self._worst) < KEPT or -score > self._worst[0][0])
            if not worse and slot >= KEPT:
                continue
            sample = _sample(batch, place, probabilities[place])
            if slot < KEPT:
                self._random[slot : slot + 1] = [sample]
            if worse and score is not None:
                entry = (-score, -self._seen, sample)  # of equal ones the first stays
                if len(self._worst) < KEPT:
                    heapq.heappush(self._worst, entry)
                else:
                    heapq.heapreplace(self._worst, entry)

    def sheets(self, title: str) -> dict[str, bytes]:
        """File name -> PNG; none where no sample was seen."""
        worst = [sample for _, _, sample in sorted(self._worst, key=lambda entry: entry[:2], reverse=True)]
        mark = "WITHIN-SUBJECT  " if self.card.within_subject else ""
        wanted = (("worst.png", worst, f"{mark}worst of {title}"), ("random.png", self._random, f"{mark}random ones of {title}"))
        return {name: self._sheet(samples, said) for name, samples, said in wanted if samples}

    def _sheet(self, samples: list[_Sample], title: str) -> bytes:
        masks = None if samples[0].masks is None else np.stack([one.masks for one in samples if one.masks is not None])
        known = None if samples[0].known is None else np.stack([one.known for one in samples if one.known is not None])
        images, targets = np.stack([one.image for one in samples]), np.stack([one.target for one in samples])
        batch = Batch(images, masks, known, targets, np.ones(len(samples), np.float32), tuple(one.row_id for one in samples))
        drawn = pictures.sheet(pictures.Samples(batch), np.stack([one.probability for one in samples]), self.card, title)
        return pictures.png(drawn)


def goodness(batch: Batch, place: int, probability: np.ndarray, decided: np.ndarray) -> float | None:
    """1 is best: the mean Dice of the labels that are there or drawn; of classes 1 - the largest error of a probability. None where nothing can be said."""
    if batch.masks is None or batch.known is None:
        error = np.abs(probability - batch.targets[place])
        return None if np.isnan(error).all() else 1.0 - float(np.nanmax(error))
    known = batch.known[place, ..., 0] > 0
    truth = batch.masks[place] > 0
    found = [dice(count(truth[..., label], decided[..., label], known)) for label in range(truth.shape[-1])]
    told = [value for value in found if value is not None]
    return float(np.mean(told)) if told else None


def _sample(batch: Batch, place: int, probability: np.ndarray) -> _Sample:
    """Copies: a view would keep the whole batch."""
    masks = None if batch.masks is None else batch.masks[place].copy()
    known = None if batch.known is None else batch.known[place].copy()
    return _Sample(batch.images[place].copy(), masks, known, batch.targets[place].copy(), batch.row_ids[place], probability.copy())
