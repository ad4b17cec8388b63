"""The samples of a phantom feed as a reader that holds them in memory: the protocol's plainest implementation. And small cards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medspark.config import Train
from medspark.feed.card import Card, ImageSpec, PartCounts
from medspark.feed.reader import Batch
from medspark.keys import rng
from tests.phantoms.feeds import Made, Sample, write_feed

TINY = Train(width=8, depth=2, blocks=1, learning_rate=5e-3, pictures=4, report_updates=2, warmup_epochs=0.2, threads=1, augment=False)
"""Settings that a small core trains within seconds."""


def card(
    task: str = "segmentation",
    labels: tuple[str, ...] = ("disc",),
    exclusive: bool = False,
    shape: tuple[int, ...] = (16, 16, 1),
    parts: dict[str, PartCounts] | None = None,
) -> Card:
    kind = "volume" if len(shape) == 4 else "image"
    return Card(
        name="made",
        task=task,  # type: ignore[arg-type]
        labels=labels,
        exclusive=exclusive,
        image=ImageSpec(kind, shape, "uint8", "png", tuple(map(str, range(shape[-1])))),  # type: ignore[arg-type]
        query="",
        tables={},
        split={},
        within_subject=False,
        seed=0,
        options={},
        recipe={},
        parts=parts or {"train": PartCounts(8, 8, 8)},
        mean=(120.0,) * shape[-1],
        std=(20.0,) * shape[-1],
        files=(),
    )


def batch_of(samples: list[tuple[str, Sample]]) -> Batch:
    def stacked(name: str) -> np.ndarray | None:
        found = [getattr(sample, name) for _, sample in samples]
        return None if found[0] is None else np.stack(found)

    images, targets = stacked("image"), stacked("target")
    assert images is not None and targets is not None
    weights = np.array([sample.weight for _, sample in samples], np.float32)
    return Batch(images, stacked("masks"), stacked("known"), targets, weights, tuple(row_id for row_id, _ in samples))


@dataclass
class MemoryReader:
    """Rank ``rank``'s rows are every ``ranks``-th of a shuffled part; what does not fill a step on every rank is left out of the epoch."""

    card: Card
    part: str
    batch_size: int
    rows: list[tuple[str, Sample]]
    rank: int = 0
    ranks: int = 1
    seed: int = 0
    before: Callable[[int, int], None] = lambda epoch, step: None
    bad: dict[str, str] = field(default_factory=dict)
    closed: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return len(self.rows) // (self.batch_size * self.ranks)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        order = rng(self.seed, "epoch", number).permutation(len(self.rows))[self.rank :: self.ranks]
        for step in range(first_step, self.steps_per_epoch):
            self.before(number, step)
            places = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield batch_of([self.rows[place] for place in places])

    def once(self) -> Iterator[Batch]:
        mine = self.rows[self.rank :: self.ranks]
        for start in range(0, len(mine), self.batch_size):
            yield batch_of(mine[start : start + self.batch_size])

    def metrics(self) -> dict[str, float]:
        return {"reader/rows": float(len(self.rows))}

    def close(self) -> None:
        self.closed = True


@dataclass
class MemoryReaders:
    """`feeding.Readers` over a phantom feed."""

    made: Made
    before: Callable[[int, int], None] = lambda epoch, step: None

    def __call__(self, part: str, batch_size: int, rank: int, ranks: int, seed: int, augment: bool) -> MemoryReader:
        rows = [(row_id, self.made.truth[row_id]) for row_id in self.made.order[part]]
        before = self.before if part == "train" else (lambda epoch, step: None)
        return MemoryReader(self.made.card, part, batch_size, rows, rank, ranks, seed, before)


def phantom(folder: Path, **said: object) -> Made:
    """A feed of small discs: 32 training samples of 24 px."""
    given = {"parts": {"train": 32, "val": 8}, "side": 24, **said}
    return write_feed(folder, **given)  # type: ignore[arg-type]
