"""What is kept of a long evaluation: sums per subject and label for masks, thirteen bytes an image and label for classes. Never pixels."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medspark.scores.intervals import REPLICATES, Estimate, bootstrap, of_mean


@dataclass
class Subjects:
    """Numbers subjects by first appearance."""

    keys: list[str] = field(default_factory=list)
    _number: dict[str, int] = field(default_factory=dict)

    def number(self, key: str) -> int:
        found = self._number.get(key)
        if found is None:
            found = self._number[key] = len(self.keys)
            self.keys.append(key)
        return found


@dataclass
class Means:
    """Per subject and (label, metric): the sum of the values and how many there were. Undefined values (None) take no part."""

    subjects: Subjects = field(default_factory=Subjects)
    _sums: dict[tuple[str, str], dict[int, list[float]]] = field(default_factory=dict)

    def add(self, subject: str, label: str, values: Mapping[str, float | None]) -> None:
        number = self.subjects.number(subject)
        for metric, value in values.items():
            kept = self._sums.setdefault((label, metric), {})
            if value is not None:
                cell = kept.setdefault(number, [0.0, 0.0])
                cell[0] += value
                cell[1] += 1

    def names(self) -> list[tuple[str, str]]:
        """(label, metric), in the order of their first appearance."""
        return list(self._sums)

    def of_subjects(self, label: str, metric: str) -> dict[str, tuple[float, int]]:
        """subject_key -> (mean, number of values)."""
        cells = self._sums.get((label, metric), {})
        return {self.subjects.keys[number]: (total / n, int(n)) for number, (total, n) in cells.items()}

    def over_all(self, label: str, metric: str, seed: int, replicates: int = REPLICATES) -> Estimate:
        """The mean over all values, its interval over subjects; the subjects in the order of their keys, so that the reading order plays no part."""
        cells = sorted((self.subjects.keys[number], cell) for number, cell in self._sums.get((label, metric), {}).items())
        sums, counts = np.array([cell[0] for _, cell in cells]), np.array([cell[1] for _, cell in cells])
        return of_mean(sums, counts, seed, label, metric, replicates=replicates)


@dataclass
class Totals:
    """Per subject and label: sums of a few numbers (pixels by truth and prediction, lesions found, bins of calibration), and measures of all of them together."""

    subjects: Subjects = field(default_factory=Subjects)
    _sums: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)

    def add(self, subject: str, label: str, numbers: Sequence[float] | np.ndarray) -> None:
        kept = self._sums.setdefault(label, {})
        number = self.subjects.number(subject)
        kept[number] = kept[number] + np.asarray(numbers, np.float64) if number in kept else np.array(numbers, np.float64)

    def labels(self) -> list[str]:
        return list(self._sums)

    def _order(self, label: str) -> list[tuple[str, int]]:
        return sorted((self.subjects.keys[number], number) for number in self._sums.get(label, {}))

    def of_subjects(self, label: str) -> dict[str, np.ndarray]:
        return {self.subjects.keys[number]: total for number, total in self._sums.get(label, {}).items()}

    def over_all(
        self, label: str, metric: str, of: Callable[[np.ndarray], float | None], seed: int, replicates: int = REPLICATES
    ) -> Estimate:
        """``of`` the sums over all subjects, with its interval over subjects."""
        ordered = [(key, self._sums[label][number]) for key, number in self._order(label)]
        if not ordered:
            return Estimate(None, None, None, 0)
        sums = np.stack([total for _, total in ordered])
        return bootstrap(
            lambda times: of(sums.sum(axis=0) if times is None else times @ sums), len(sums), seed, label, metric, replicates=replicates
        )


@dataclass
class Called:
    """Truth and probability of one label on every image whose truth is known, with the image's subject."""

    _truth: array = field(default_factory=lambda: array("b"))
    _probability: array = field(default_factory=lambda: array("f"))
    _subject: array = field(default_factory=lambda: array("l"))

    def add(self, truth: bool, probability: float, subject: int) -> None:
        self._truth.append(truth)
        self._probability.append(probability)
        self._subject.append(subject)

    def __len__(self) -> int:
        return len(self._truth)

    @property
    def truth(self) -> np.ndarray:
        return np.array(self._truth, np.int8).astype(bool)

    @property
    def probability(self) -> np.ndarray:
        return np.array(self._probability, np.float32)

    @property
    def subject(self) -> np.ndarray:
        return np.array(self._subject, np.int64)
