"""Hierarchical storage: row groups of a feed in a far or slow store, copied to a local disk while training runs.

A reader asks for row groups in the order of its plan. What lies on the `shelf.Shelf` comes from there; the rest comes from the store and is
offered to the shelf. Beside it one thread walks ahead, to the end of this epoch and through the next (both orders are known), and stages what
is missing and may stay. What is needed furthest from now leaves first, so that a budget of a part of a feed serves that part of every epoch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from medspark.feed.card import PartFile
from medspark.feed.plan import Plan
from medspark.feed.shelf import Shelf

WAKE_S = 1.0  # the walker looks again at least this often: another process may have made room
Read = Callable[[int, int], pa.Table]
Group = tuple[int, int]  # file of the part, row group of the file


@dataclass(frozen=True)
class Cache:
    """Where copies lie and how many bytes they may take; light, travels to the ranks. Ranks of one node share the folder and the budget.

    stage : whether a thread walks ahead; without it only what was read is kept
    """

    folder: str
    budget_bytes: int
    stage: bool = True

    def follow(self, plan: Plan, files: Sequence[PartFile], read: Read) -> Cached:
        """Serves the reader of ``plan``; ``read`` fetches a row group from the feed's store."""
        return Cached(Shelf(self.folder, self.budget_bytes), plan, files, read, self.stage)


class _Order:
    """In which order a plan needs row groups, epoch by epoch. A time is an epoch and a fraction: 2.5 is the middle of epoch 2.

    A share's row groups follow each other in the part, so that each has a number, and an order is an array: 20 MB for a million of them.
    """

    def __init__(self, plan: Plan) -> None:
        pieces = plan.pieces()
        self.length = len(pieces)
        self._plan = plan
        self._first = np.cumsum([0, *map(len, plan.row_groups)])  # number of each file's first row group in the part
        self._offset = int(self._first[pieces[0].file]) + pieces[0].group if pieces else 0
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # epoch -> (numbers in order, place of each number)

    def group(self, epoch: int, at: int) -> Group:
        number = int(self._epoch(epoch)[0][at]) + self._offset
        file = int(np.searchsorted(self._first, number, "right")) - 1
        return file, number - int(self._first[file])

    def place(self, group: Group, epoch: int) -> int:
        return int(self._epoch(epoch)[1][self._number(*group)])

    def time(self, group: Group, epoch: int) -> float:
        return epoch + self.place(group, epoch) / self.length

    def _number(self, file: int, group: int) -> int:
        return int(self._first[file]) + group - self._offset

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._known:
            pieces = (piece for window in self._plan.epoch(epoch) for piece in window.pieces)
            numbers = np.fromiter((self._number(piece.file, piece.group) for piece in pieces), np.int64)
            # Each once, though a small share is gone through again; row groups that the epoch does not read (it drops a short batch) at its end.
            numbers = np.concatenate([numbers, np.arange(self.length)])
            order = numbers[np.sort(np.unique(numbers, return_index=True)[1])]
            place = np.empty_like(order)
            place[order] = np.arange(self.length)
            self._known[epoch] = order, place
            for old in [known for known in self._known if known < epoch - 2]:
                del self._known[old]
        return self._known[epoch]


class Cached:
    """Row groups for one reader, through a shelf."""

    def __init__(self, shelf: Shelf, plan: Plan, files: Sequence[PartFile], read: Read, stage: bool) -> None:
        self._shelf = shelf
        self._files = files
        self._read = read
        self._order = _Order(plan)
        self._changed = threading.Condition()
        self._fetching: set[Group] = set()  # by this process
        self._asked: tuple[int, int] | None = None  # epoch, and place in its order, of what the reader asked for last
        self._passed = 0  # row groups that passes in order asked for
        self._counts = dict.fromkeys(("hits", "late_hits", "misses", "staged", "kept", "store_bytes", "disk_bytes"), 0)
        self._store_s = 0.0
        self._closed = False
        self._size = max((file.bytes // max(1, len(file.row_groups)) for file in files), default=0)
        self._walker = threading.Thread(target=self._walk, name="stage", daemon=True) if stage else None

    def table(self, file: int, group: int, epoch: int | None) -> pa.Table:
        """A row group. epoch : that it is read for; None: a pass in the feed's order"""
        place = (file, group)
        now, due = self._when(place, epoch)
        late = self._claim(place)
        try:
            data = self._shelf.get(self._key(place), due)
            if data is not None:
                self._count(late_hits=late, hits=not late, disk_bytes=len(data))
                return pa.ipc.open_stream(pa.py_buffer(data)).read_all()
            table, data = self._fetch(place)
            self._count(misses=1, kept=self._shelf.put(self._key(place), data, due, now))
            return table
        finally:
            self._release(place)

    def metrics(self) -> Mapping[str, float]:
        """Since the reader was opened. A late hit waited for the walker, which had begun to fetch it; store_s : seconds of fetching, of all threads."""
        with self._changed:
            counts, store_s = dict(self._counts), self._store_s
        asked = counts["hits"] + counts["late_hits"] + counts["misses"]
        return {
            "cache/hit_rate": (counts["hits"] + counts["late_hits"]) / asked if asked else 0.0,
            "cache/store_s": store_s,
            "cache/evicted": float(self._shelf.evicted),
            "cache/damaged": float(self._shelf.damaged),
            "cache/failed": float(self._shelf.failed),
            **{f"cache/{name}": float(value) for name, value in counts.items()},
        }

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._walker is not None and self._walker.is_alive():
            self._walker.join()
        self._shelf.close()

    def _when(self, place: Group, epoch: int | None) -> tuple[float, float]:
        """(time of this need, time of the next), and the walker learns how far the reader is."""
        with self._changed:
            if epoch is None:
                first = 0 if self._asked is None else self._asked[0] + 1
                now = first + self._passed / self._order.length
                self._passed += 1
                return now, now + 1
            now, due = self._order.time(place, epoch), self._order.time(place, epoch + 1)
            self._asked = epoch, self._order.place(place, epoch)
            if self._walker is not None and self._walker.ident is None:
                self._walker.start()
            self._changed.notify_all()
        return now, due

    def _walk(self) -> None:
        """Stages row groups in the order in which they will be asked for, from behind the reader's place to the end of the next epoch."""
        asked: tuple[int, int] | None = None
        epoch, at = -1, 0
        while True:
            with self._changed:
                if self._closed:
                    return
                asked = self._asked or (0, 0)
                if (epoch, at) <= asked or epoch > asked[0] + 2:  # the reader is ahead, or was sent back
                    epoch, at = asked[0], asked[1] + 1
                if at >= self._order.length:
                    epoch, at = epoch + 1, 0
                done = epoch > asked[0] + 1
                if not done:
                    place = self._order.group(epoch, at)
                    due, now = epoch + at / self._order.length, asked[0] + asked[1] / self._order.length
                else:
                    self._changed.wait(WAKE_S)
            if done:
                continue
            try:
                staged = self._stage(place, due, now)
            except (OSError, pa.ArrowException):  # the reader will meet the same trouble when it comes here, and raise it
                staged = False
            if staged:
                at += 1
                continue
            with self._changed:
                if not self._closed:
                    self._changed.wait(WAKE_S)

    def _stage(self, place: Group, due: float, now: float) -> bool:
        """Whether the row group is on the shelf now; False where there is no room for it yet."""
        key = self._key(place)
        if self._shelf.has(key, due, now):
            return True
        if not self._shelf.room(self._size, due, now):
            return False
        if self._claim(place):  # the reader came first
            self._release(place)
            return True
        try:
            _, data = self._fetch(place)
            kept = self._shelf.put(key, data, due, now)
            self._count(staged=kept)
            return kept
        finally:
            self._release(place)

    def _fetch(self, place: Group) -> tuple[pa.Table, bytes]:
        started = time.perf_counter()
        table = self._read(*place)
        seconds = time.perf_counter() - started
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        with self._changed:
            self._store_s += seconds
            self._counts["store_bytes"] += len(data)
        return table, data

    def _claim(self, place: Group) -> bool:
        """This thread alone may fetch the row group; True where another of this process was at it meanwhile."""
        waited = False
        with self._changed:
            while place in self._fetching:
                waited = True
                self._changed.wait()
            self._fetching.add(place)
        return waited

    def _release(self, place: Group) -> None:
        with self._changed:
            self._fetching.discard(place)
            self._changed.notify_all()

    def _count(self, **more: int | bool) -> None:
        with self._changed:
            for name, value in more.items():
                self._counts[name] += int(value)

    def _key(self, place: Group) -> str:
        """By content: the same row group of any version or copy of the feed."""
        file, group = place
        return f"{self._files[file].sha256[:32]}-{group}"
