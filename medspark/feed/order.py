"""In which order samples lie in a feed: pure arithmetic over input groups, output groups and files.

Input row groups of ``pixels`` are dealt, in a random order, into pools of ``runs``; the samples of a pool are shuffled together and follow those of
the pool before it. So each output group draws from ``runs`` input groups (two pools at a border), and an input group is read once, by the one task
that has its pool (by two, where a file ends within it). Readers mix further.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medspark.keys import rng

GROUP_BYTES = 3 << 20  # aimed at: row groups of 2 to 4 MB, 8 to 16 CT slices or some 256 tiles
FILE_BYTES = 48 << 20  # of one file, which its task holds in memory to name it by its content
FILE_GROUPS = 16


@dataclass(frozen=True)
class Layout:
    """Row groups of one part: ``groups`` of them for ``rows`` rows, in files of ``per_file`` groups.

    Groups differ by one row at most: the first ``rows % groups`` have one more.
    """

    rows: int
    groups: int
    per_file: int

    @property
    def small(self) -> int:
        return self.rows // self.groups

    @property
    def larger(self) -> int:
        """How many groups have ``small + 1`` rows."""
        return self.rows % self.groups

    @property
    def files(self) -> int:
        return -(-self.groups // self.per_file)

    def group_of(self, position: int) -> int:
        """The group of the row at ``position``."""
        border = self.larger * (self.small + 1)
        return position // (self.small + 1) if position < border else self.larger + (position - border) // self.small


def layout(rows: int, row_bytes: float, world: int) -> Layout:
    """Row groups for ``rows`` samples of about ``row_bytes``: near `GROUP_BYTES`, and a multiple of ``world`` where there are rows enough."""
    per_group = max(1, round(GROUP_BYTES / max(row_bytes, 1.0)))
    groups = max(1, -(-rows // per_group))
    if rows >= world:
        groups = -(-groups // world) * world
        if groups > rows:
            groups = rows // world * world
    group_bytes = max(1.0, row_bytes * rows / groups)
    return Layout(rows, groups, int(max(1, min(FILE_GROUPS, FILE_BYTES // group_bytes))))


def pools(counts: np.ndarray, runs: int, seed: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(pool of each input group, first position of each pool's samples).

    counts : (n,) samples whose (middle) image lies in each input group, in the groups' own order
    """
    n = len(counts)
    order = rng(seed, "groups", part).permutation(n)
    pool = np.empty(n, np.int64)
    pool[order] = np.arange(n) // runs
    sizes = np.bincount(pool, weights=counts, minlength=-(-n // runs)).astype(np.int64)
    return pool, np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
