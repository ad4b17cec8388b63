"""What a training loop asks of a feed: batches. Two implementations (`stream.FeedReader` over `arrow` and over `petastorm`) are tested equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from medspark.errors import MedsparkError
from medspark.feed.card import Card


class BadRow(MedsparkError):
    """A row whose image or mask cannot be decoded."""

    def __init__(self, row_id: str, reason: str) -> None:
        super().__init__(f"row {row_id} of the feed cannot be decoded: {reason}")
        self.row_id = row_id
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadRow], tuple[str, str]]:
        return (BadRow, (self.row_id, self.reason))


class MissingRows(MedsparkError):
    """A file of the feed holds other rows than its card says."""


@dataclass(frozen=True)
class Batch:
    """``B`` samples. ``*space`` is (rows, cols), or (slices, rows, cols) for volumes; ``L`` the card's labels, ``C`` its channels.

    images : (B, *space, C)              the card's dtype, feed values: not normalised yet (the network does that)
    masks : (B, *space, L) uint8 or None      1 inside; None for classification
    known : (B, *space, 1) uint8 or None      1 where the truth is known; the loss leaves out the rest
    targets : (B, L) float32             1, 0, NaN unknown; image-level truth
    weights : (B,) float32
    row_ids : B ids                      rows of the feed
    """

    images: np.ndarray
    masks: np.ndarray | None
    known: np.ndarray | None
    targets: np.ndarray
    weights: np.ndarray
    row_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.row_ids)


class Reader(Protocol):
    """One rank's share of one part of a feed.

    ``steps_per_epoch`` is the same on every rank. Order is a function of (seed, epoch) alone.
    bad : row_id -> reason    rows that could not be decoded, where the reader was opened with ``bad_rows="skip"`` (else they raise `BadRow`): they
    keep their place in the batch, with image 0, masks 0, known 0, weight 0 and target NaN
    """

    card: Card
    part: str
    batch_size: int
    steps_per_epoch: int

    @property
    def bad(self) -> Mapping[str, str]: ...

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """Training batches of epoch ``number`` (from 0), from step ``first_step`` on: `steps_per_epoch` - first_step full batches."""
        ...

    def once(self) -> Iterator[Batch]:
        """Every row of this rank's share exactly once, in the feed's order, unaugmented; the last batch may be short. Raises where rows are missing."""
        ...

    def metrics(self) -> dict[str, float]:
        """What reading cost since the reader was opened: seconds waited for the store and for decoding, rows, bad rows; the cache's hits and bytes."""
        ...

    def close(self) -> None: ...
