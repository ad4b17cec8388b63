"""The reader: a plan's windows, loaded ahead from a source and decoded ahead into batches. What is read when is `plan`'s; from where, the source's."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Protocol

import numpy as np

from medspark.feed.card import Card
from medspark.feed.decode import Decoder, Pending, Rows, joined
from medspark.feed.plan import MIX_GROUPS, Piece, Plan, Window
from medspark.feed.reader import Batch, MissingRows

PIECES_AHEAD = MIX_GROUPS  # row groups that are loaded beyond the window in use: the next window is there when this one is used up
NO_TARGETS = np.empty((0, 1), np.float32)
BATCHES_AHEAD = 2  # batches that are decoded while the network works on one: one ready, one in work


class Source(Protocol):
    """Where encoded rows come from. threads : loads that may run at once."""

    threads: int

    def load(self, piece: Piece, epoch: int | None) -> Rows:
        """All rows of the piece, in order. epoch : for which they are needed; None: for a pass in order."""
        ...

    def metrics(self) -> Mapping[str, float]: ...

    def close(self) -> None: ...


class _Ahead:
    """Windows with their rows, loaded by the pool before they are asked for."""

    def __init__(self, pool: ThreadPoolExecutor, source: Source, windows: Iterator[tuple[int | None, Window]]) -> None:
        self._pool = pool
        self._source = source
        self._windows = windows
        self._queue: deque[tuple[Window, list[Future[Rows]]]] = deque()
        self._loading = 0
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[tuple[Window, list[Rows]]]:
        while True:
            while self._loading <= PIECES_AHEAD or not self._queue:
                named = next(self._windows, None)
                if named is None:
                    break
                epoch, window = named
                self._queue.append((window, [self._pool.submit(self._source.load, piece, epoch) for piece in window.pieces]))
                self._loading += len(window.pieces)
            if not self._queue:
                return
            window, futures = self._queue.popleft()
            self._loading -= len(futures)
            started = time.perf_counter()
            loaded = [future.result() for future in futures]
            self.waited_s += time.perf_counter() - started
            yield window, loaded

    def cancel(self) -> None:
        for _, futures in self._queue:
            for future in futures:
                future.cancel()


class FeedReader:
    """A `reader.Reader`: one rank's share of one part."""

    def __init__(self, card: Card, part: str, plan: Plan, source: Source, decoder: Decoder) -> None:
        self.card = card
        self.part = part
        self.batch_size = plan.batch_size
        self.steps_per_epoch = plan.steps
        self.plan = plan
        self._source = source
        self._decoder = decoder
        self._pool = ThreadPoolExecutor(source.threads, "load")
        self._next: tuple[int, Iterator[tuple[Window, list[Rows]]], _Ahead] | None = None  # the epoch that is being loaded already
        self._stalled_s = 0.0
        self._waited_decode_s = 0.0
        self._rows = 0

    @property
    def bad(self) -> Mapping[str, str]:
        return self._decoder.bad

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """While its last batches are used, the first row groups of the next epoch are loaded."""
        ready, self._next = self._next, None
        if ready is not None and (ready[0], 0) == (number, first_step):
            _, windows, ahead = ready
        else:
            if ready is not None:
                ready[2].cancel()
            named = ((n, w) for n in count(number) for w in self.plan.epoch(n, first_step if n == number else 0))
            ahead = _Ahead(self._pool, self._source, named)
            windows = iter(ahead)
        rows = (self.steps_per_epoch - first_step) * self.batch_size
        try:
            yield from self._batches(windows, ahead, rows, number)
        except BaseException:
            ahead.cancel()
            raise
        self._next = (number + 1, windows, ahead)

    def once(self) -> Iterator[Batch]:
        ahead = _Ahead(self._pool, self._source, ((None, window) for window in self.plan.once()))
        seen = 0
        try:
            for batch in self._batches(iter(ahead), ahead, self.plan.rows, None):
                seen += len(batch)
                yield batch
        except BaseException:
            ahead.cancel()
            raise
        if seen != self.plan.rows:
            raise MissingRows(f"part {self.part} of feed {self.card.name}: {seen} rows were read, this rank's share is {self.plan.rows}")

    def _batches(self, windows: Iterator[tuple[Window, list[Rows]]], ahead: _Ahead, rows: int, epoch: int | None) -> Iterator[Batch]:
        """``rows`` rows in batches; a short one at the end where they do not divide."""
        pending: deque[Pending] = deque()
        held, first = Rows((), NO_TARGETS, NO_TARGETS[:, 0], (), ()), 0  # a window's rows in their new order, and how many of them are used
        before_s = ahead.waited_s
        try:
            while rows > 0 or pending:
                while rows > 0 and len(pending) <= BATCHES_AHEAD:
                    wanted, parts = min(self.batch_size, rows), []
                    rows -= wanted
                    while wanted:
                        if first == len(held):
                            window, loaded = next(windows)
                            held, first = joined(loaded).drawn(window.order), 0
                        parts.append(held.part(first, min(first + wanted, len(held))))
                        first += len(parts[-1])
                        wanted -= len(parts[-1])
                    pending.append(self._decoder.start(joined(parts), epoch))
                started = time.perf_counter()
                batch = pending.popleft().finish()
                self._waited_decode_s += time.perf_counter() - started
                self._rows += len(batch)
                yield batch
        finally:
            self._stalled_s += ahead.waited_s - before_s
            for batch_in_work in pending:
                batch_in_work.cancel()

    def metrics(self) -> dict[str, float]:
        mine = {
            "reader/rows": float(self._rows),
            "reader/stall_s": self._stalled_s,
            "reader/wait_decode_s": self._waited_decode_s,
        }
        return {**mine, **self._decoder.metrics(), **self._source.metrics()}

    def close(self) -> None:
        if self._next is not None:
            self._next[2].cancel()
            self._next = None
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._decoder.close()
        self._source.close()


def checked(rows: Rows, piece: Piece, group_rows: int, where: str) -> Rows:
    """The piece of a whole row group; raises `MissingRows` where the group holds other rows than the card says."""
    if len(rows) != group_rows:
        raise MissingRows(f"{where}: row group {piece.group} holds {len(rows)} rows, the card says {group_rows}")
    if piece.rows == group_rows:
        return rows
    return rows.part(piece.start, piece.stop)


def shares(card: Card, part: str, batch_size: int, rank: int, ranks: int, seed: int) -> Plan:
    """The rank's plan; raises `BadRequest` for an unknown part."""
    return Plan(tuple(file.row_groups for file in card.files_of(part)), rank, ranks, batch_size, seed)


def targets_of(values: np.ndarray, labels: int, rows: int) -> np.ndarray:
    """(rows, labels) float32 from a list column's values."""
    if values.size != rows * labels:
        raise MissingRows(f"{values.size} targets for {rows} rows of {labels} labels")
    return np.asarray(values, np.float32).reshape(rows, labels)
