"""Batches on their way into the network: fetched ahead on a thread of their own, and looked at."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from medspark.errors import MedsparkError
from medspark.feed.reader import Batch, Reader

AHEAD = 2  # batches that wait while the network works: one would do if all took equally long
LOOK_S = 0.2  # how often a thread that cannot go on looks whether anybody still wants its batches


class Unusable(MedsparkError):
    """A row that no network can learn from; the message names it."""


class Readers(Protocol):
    """Opens a rank's share of a part; pickles, so that ranks get it by closure."""

    def __call__(self, part: str, batch_size: int, rank: int, ranks: int, seed: int, augment: bool) -> Reader: ...


@dataclass
class Waited:
    """Seconds that the network waited for batches."""

    seconds: float = 0.0


def ahead(batches: Iterator[Batch], waited: Waited) -> Iterator[Batch]:
    """The same batches, fetched while the last one is worked on; an error of the reader rises here."""
    line: queue.Queue[Any] = queue.Queue(AHEAD)
    gone = threading.Event()
    end = object()

    def give(item: Any) -> bool:
        while not gone.is_set():
            try:
                line.put(item, timeout=LOOK_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not give(batch):
                    return
            give(end)
        except BaseException as error:  # whatever it is, it belongs to the thread that trains
            give(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            started = time.monotonic()
            item = line.get()
            waited.seconds += time.monotonic() - started
            if item is end:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()
        thread.join(timeout=10 * LOOK_S)


def sound(batch: Batch, rule: Literal["stop", "skip"], bad: dict[str, str]) -> Batch:
    """The batch without values that are no numbers. A row that has some is named in ``bad``; it raises `Unusable` or takes no part, by ``rule``."""
    floats = np.issubdtype(batch.images.dtype, np.floating)
    fine = np.isfinite(batch.weights) & (batch.weights >= 0)
    if floats:
        fine &= np.isfinite(batch.images).all(axis=tuple(range(1, batch.images.ndim)))
    if fine.all():
        return batch
    for place in np.flatnonzero(~fine):
        weight = float(batch.weights[place])
        reason = "its image holds values that are no numbers" if np.isfinite(weight) and weight >= 0 else f"its weight is {weight}"
        bad[batch.row_ids[place]] = reason
        if rule == "stop":
            raise Unusable(
                f"row {batch.row_ids[place]} of the feed cannot be used ({reason}); rebuild the feed without it, or --set train.bad_rows=skip"
            )
    images, targets, weights = batch.images.copy(), batch.targets.copy(), batch.weights.copy()
    images[~fine], targets[~fine], weights[~fine] = 0, np.nan, 0.0
    known = None
    if batch.known is not None:
        known = batch.known.copy()
        known[~fine] = 0
    return replace(batch, images=images, targets=targets, weights=weights, known=known)
