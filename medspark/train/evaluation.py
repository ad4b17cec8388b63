"""What an evaluation is about, and its rows on their way out: shared by masks and classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np

from medspark.feed.open import Feed
from medspark.feed.reader import Batch, Reader
from medspark.feed.served import Predictor
from medspark.scores.intervals import REPLICATES, Estimate
from medspark.train.examples import Examples
from medspark.train.gathered import Place, places
from medspark.train.objects import Objects

ROWS_AT_ONCE = 20_000  # evaluation rows handed to the sink together


@dataclass(frozen=True)
class Request:
    """spacing_mm : series_id -> (slice, row, col) mm of its slices as they lie in the feed; series without one get no millimetres

    objects : numbered lesions of the truth; None: connected components everywhere
    """

    model_uri: str
    part: str
    seed: int = 0
    replicates: int = REPLICATES
    spacing_mm: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    objects: Objects | None = None


@dataclass
class Result:
    """overall : the rows of unit ``all``; pictures : file name -> PNG; rows : how many were given to the sink"""

    overall: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    rows: int = 0
    images: int = 0
    subjects: int = 0

    def counted(self) -> str:
        return f"{self.images} image{'s' * (self.images != 1)} of {self.subjects} subject{'s' * (self.subjects != 1)}"

    def said(self, within_subject: bool) -> str:
        """A table for people."""
        mark = "WITHIN-SUBJECT: training and test share subjects; do not compare with results on new subjects\n" if within_subject else ""
        lines = [
            f"{row['label'] or 'all labels':24} {row['metric']:24} {Estimate(row['value'], row['low'], row['high'], row['n']).said()}"
            for row in self.overall
        ]
        return mark + "\n".join(lines)


Sink = Callable[[list[dict[str, Any]]], None]


@dataclass
class Work:
    """What both tasks share: rows on their way out."""

    feed: Feed
    model: Predictor
    request: Request
    sink: Sink
    result: Result = field(default_factory=Result)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.examples = Examples(self.feed.card, self.request.seed)

    @property
    def title(self) -> str:
        return f"{self.feed.name}@{self.feed.version}, {self.request.part}: {self.result.counted()}"

    @property
    def thresholds(self) -> list[float]:
        return [self.model.thresholds.get(label, 0.5) for label in self.model.labels]

    def row(self, unit: str, unit_id: str | None, label: str | None, metric: str, estimate: Estimate) -> dict[str, Any]:
        where = (self.request.model_uri, self.feed.name, self.feed.version, self.request.part, unit, unit_id, label, metric)
        return {
            "evaluation_id": hashlib.sha256("\0".join(map(str, where)).encode()).hexdigest()[:32],
            "model_uri": self.request.model_uri,
            "feed": self.feed.name,
            "feed_version": self.feed.version,
            "part": self.request.part,
            "unit": unit,
            "unit_id": unit_id,
            "label": label,
            "metric": metric,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "n": estimate.n,
            "within_subject": self.feed.card.within_subject,
            "evaluated_at": self.now,
        }

    def say(self, unit: str, unit_id: str, label: str, values: Mapping[str, float | None], n: int) -> None:
        self._rows += [self.row(unit, unit_id, label, metric, Estimate(value, None, None, n)) for metric, value in values.items()]
        if len(self._rows) >= ROWS_AT_ONCE:
            self.flush()

    def over_all(self, label: str | None, metric: str, estimate: Estimate) -> None:
        row = self.row("all", None, label, metric, estimate)
        self._rows.append(row)
        self.result.overall.append(row)

    def flush(self) -> None:
        if self._rows:
            self.sink(self._rows)
            self.result.rows += len(self._rows)
            self._rows = []

    def batches(self, reader: Reader) -> Iterator[tuple[list[Place], Batch, np.ndarray]]:
        """(places, batch, probabilities); raises where the reader's order is not the feed's."""
        narrow = places(self.feed, self.request.part)
        for batch in reader.once():
            here = list(islice(narrow, len(batch)))
            if tuple(place.row_id for place in here) != batch.row_ids:
                raise RuntimeError(f"feed {self.feed.name}: the reader does not give the rows of part {self.request.part} in their order")
            yield here, batch, self.model.probabilities(batch.images)
        if next(narrow, None) is not None:
            raise RuntimeError(f"feed {self.feed.name}: the reader ended before part {self.request.part} did")
