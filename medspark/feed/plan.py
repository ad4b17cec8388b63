"""Who reads which rows when: integers only, the same on every machine. Readers follow it; nothing here opens a file.

A part's rows are numbered in the feed's order. Rank r of W has the rows [N·r/W, N·(r+1)/W): shares differ by one row at most, so that all ranks
take the same number of steps, and at most W - 1 row groups are read by two ranks. A share stays the same in every epoch (so that local copies
serve the next one); its order changes: row groups are shuffled, and rows are drawn from `MIX_GROUPS` of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from medspark.errors import BadRequest
from medspark.keys import rng

MIX_GROUPS = 8  # row groups that batches are mixed from: 16 to 32 MB of encoded samples, 100 rows (CT) to 2,000 (tiles)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [start, stop) of a row group; ``file`` counts the part's files."""

    file: int
    group: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """Pieces that are held together, and the order in which their rows are taken.

    order : (rows,) int64    places in the concatenated pieces
    """

    pieces: tuple[Piece, ...]
    order: np.ndarray


@dataclass(frozen=True)
class Plan:
    """One rank's share of a part.

    steps : of one epoch, equal on every rank; an epoch is steps · batch_size rows
    """

    row_groups: tuple[tuple[int, ...], ...]
    rank: int
    ranks: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks or self.batch_size < 1:
            raise BadRequest(f"rank {self.rank} of {self.ranks} with batches of {self.batch_size}: no such share")

    @property
    def total(self) -> int:
        return sum(map(sum, self.row_groups))

    @property
    def bounds(self) -> tuple[int, int]:
        """First row of the share, and the first behind it."""
        return self.total * self.rank // self.ranks, self.total * (self.rank + 1) // self.ranks

    @property
    def rows(self) -> int:
        low, high = self.bounds
        return high - low

    @property
    def steps(self) -> int:
        """At least one, so that parts smaller than a batch can be trained on: their rows repeat."""
        return max(1, self.total // (self.ranks * self.batch_size))

    def pieces(self) -> list[Piece]:
        """The share, in the feed's order."""
        low, high = self.bounds
        found, first = [], 0
        for file, groups in enumerate(self.row_groups):
            for group, rows in enumerate(groups):
                start, stop = max(low - first, 0), min(high - first, rows)
                if start < stop:
                    found.append(Piece(file, group, start, stop))
                first += rows
        return found

    def once(self) -> Iterator[Window]:
        """The share in the feed's order, a row group at a time."""
        for piece in self.pieces():
            yield Window((piece,), np.arange(piece.rows))

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Window]:
        """Windows whose rows, taken ``batch_size`` at a time, are the steps from ``first_step`` on of epoch ``number``; no row beyond.

        A function of (seed, ranks, rank, number). Windows that ``first_step`` skips are not yielded, and so never read. Where a share has fewer
        rows than an epoch takes, it is gone through again in another order.
        """
        if not 0 <= first_step <= self.steps:
            raise BadRequest(f"epoch {number} has {self.steps} steps: it cannot go on from step {first_step}")
        skip, left = first_step * self.batch_size, (self.steps - first_step) * self.batch_size
        pieces = self.pieces()
        if left and not pieces:
            raise BadRequest(f"{self.total} rows cannot be shared by {self.ranks} ranks")
        for lap in count():
            random = rng(self.seed, "order", self.ranks, self.rank, number, lap)
            shuffled = random.permutation(len(pieces))
            for at in range(0, len(pieces), MIX_GROUPS):
                if not left:
                    return
                held = tuple(pieces[place] for place in shuffled[at : at + MIX_GROUPS])
                order = random.permutation(sum(piece.rows for piece in held))[skip : skip + left]
                skip = max(0, skip - sum(piece.rows for piece in held))
                left -= len(order)
                if len(order):
                    yield Window(held, order)

    def said(self) -> dict[str, int]:
        """What an epoch leaves out and repeats, over all ranks; for logs and the run's parameters."""
        taken = self.steps * self.batch_size
        shares = [self.total * (rank + 1) // self.ranks - self.total * rank // self.ranks for rank in range(self.ranks)]
        edges = {self.total * rank // self.ranks for rank in range(1, self.ranks)}
        starts = set(np.cumsum([0, *(rows for groups in self.row_groups for rows in groups)]).tolist())
        return {
            "rows": self.total,
            "steps_per_epoch": self.steps,
            "rows_dropped_per_epoch": sum(max(0, share - taken) for share in shares),  # others in every epoch
            "rows_repeated_per_epoch": sum(max(0, taken - share) for share in shares),
            "row_groups_read_by_two_ranks": len(edges - starts),
        }


def plans(row_groups: Sequence[Sequence[int]], ranks: int, batch_size: int, seed: int = 0) -> list[Plan]:
    """Every rank's plan.

    row_groups : per file of the part, the rows of its groups (`card.PartFile.row_groups`)
    """
    fixed = tuple(tuple(groups) for groups in row_groups)
    return [Plan(fixed, rank, ranks, batch_size, seed) for rank in range(ranks)]
