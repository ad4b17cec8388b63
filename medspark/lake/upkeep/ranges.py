"""Where a sort of many files is cut: ranges of the key that fit memory, loads of ranges, tasks of loads. Pure; all rows are counted in bytes.

A row stands at a *place*: its key, then the number of the file that it comes from. The file's number makes places of rows with equal keys
differ, so that even a key that half of the table has in common is cut; and it keeps the sort stable.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Place = tuple[tuple[tuple[bool, Any], ...], int]
"""(key as `rank` orders it, number of the file)."""


def rank(key: Iterable[Any]) -> tuple[tuple[bool, Any], ...]:
    """A key that compares as Arrow sorts it: column by column, nulls behind every value."""
    return tuple((value is None, value) for value in key)


@dataclass(frozen=True)
class Sample:
    """A row of a file, and the bytes (of Arrow, in memory) of the rows that it stands for, half of them before it and half behind it."""

    place: Place
    bytes: float


def cuts(samples: Iterable[Sample], cell_bytes: float) -> list[Place]:
    """Ascending, distinct places that part the rows into cells of about ``cell_bytes``: a row belongs to cell ``bisect_right(cuts, its place)``.

    Exact where a file's samples stand for equal numbers of rows; a cell is off by at most what one sample stands for, for every file.
    """
    found: list[Place] = []
    filled = 0.0
    for sample in sorted(samples, key=lambda sample: sample.place):
        if filled + sample.bytes / 2 >= cell_bytes and (not found or found[-1] < sample.place):
            found.append(sample.place)
            filled = 0.0
        filled += sample.bytes
    return found


def edges(cut: Sequence[Place], rows: int, place: Callable[[int], Place]) -> list[int]:
    """Where each cell ends among ``rows`` sorted rows, of which the i-th stands at ``place(i)``: len(cut) + 1 ascending numbers, the last is ``rows``."""
    ends: list[int] = []
    start = 0
    for one in cut:
        start = bisect_left(range(rows), one, lo=start, key=place)
        ends.append(start)
    return [*ends, rows]


def loads(sizes: Sequence[float], most: float) -> Iterator[range]:
    """Runs of consecutive cells that are together at most ``most``; a cell that is larger is a load of its own."""
    start, filled = 0, 0.0
    for cell, size in enumerate(sizes):
        if cell > start and filled + size > most:
            yield range(start, cell)
            start, filled = cell, 0.0
        filled += size
    if start < len(sizes):
        yield range(start, len(sizes))


def shares(sizes: Sequence[float], count: int) -> Iterator[range]:
    """At most ``count`` runs of consecutive loads of about equal size: the work of the tasks."""
    total, done, start, given = sum(sizes), 0.0, 0, 1
    for load, size in enumerate(sizes):
        if load > start and done + size / 2 >= total * given / count and given < count:
            yield range(start, load)
            start, given = load, given + 1
        done += size
    if start < len(sizes):
        yield range(start, len(sizes))
