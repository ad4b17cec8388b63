"""Petastorm as a source, with all its quirks in this file.

- It cannot be told an order: ``make_batch_reader`` reads its row groups as listed, or shuffles them by itself, and shards by whole groups, so that
  ranks take unequal steps. So the reader gets a pool of ours (``Reader(reader_pool=...)``, the seam that it documents) that loads the row
  group that the plan asks for, in the caller's thread. It is otherwise what ``make_batch_reader`` builds: the same reader, the same worker.
- Its thread pool loses rows silently at the end of an epoch (its test for the end races with the thread that hands out work). Ours never ends, and
  every row group's rows are counted against the card.
- It leaves the files that it opens to the garbage collector, and warns of the legacy data sets that it reads by.
- It turns nullable integers into floats: a feed has no nulls. Lists become a matrix, strings numpy strings.
- It takes URLs on a local disk and paths with a file system.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.feed.card import Card
from medspark.feed.decode import Rows
from medspark.feed.plan import Piece
from medspark.feed.rows import BATCHED
from medspark.feed.stream import checked, targets_of


class _Asked:
    """A pool for Petastorm's reader that processes what was asked for, in the caller's thread."""

    workers_count = 1

    def __init__(self) -> None:
        self.wanted = -1  # index among Petastorm's row groups
        self.places: dict[tuple[str, int], int] = {}  # (path, row group) -> index
        self._worker: Any = None
        self._published: list[Any] = []

    def start(self, worker_class: Any, worker_args: Any, ventilator: Any = None) -> None:
        """``ventilator`` would hand out row groups in its own order: it is not started."""
        pieces = worker_args[4]
        self.places = {(piece.path, piece.row_group): at for at, piece in enumerate(pieces)}
        self._worker = worker_class(0, self._published.append, worker_args)

    def ventilate(self, *_: Any, **__: Any) -> None:
        raise AssertionError("the ventilator is never started")

    def get_results(self) -> Any:
        self._worker.process(self.wanted, None, (0, 1))
        return self._published.pop()

    def stop(self) -> None: ...

    def join(self) -> None: ...

    @property
    def diagnostics(self) -> dict[str, Any]:
        return {}


class PetastormSource:
    """Row groups of one part's files through Petastorm's reader, one at a time."""

    threads = 1  # its worker keeps one file open

    def __init__(self, card: Card, part: str, filesystem: pafs.FileSystem, root: str) -> None:
        if not isinstance(filesystem, pafs.LocalFileSystem):
            raise BadRequest("kind petastorm reads feeds of a local or mounted disk; use kind arrow for this store")
        from petastorm.arrow_reader_worker import ArrowReaderWorker
        from petastorm.fs_utils import get_filesystem_and_path_or_paths
        from petastorm.reader import Reader

        self._card = card
        self._files = card.files_of(part)
        self._paths = [f"{root}/{file.path}" for file in self._files]
        self._pool = _Asked()
        self._lock = threading.Lock()
        warnings.filterwarnings("ignore", module=r"petastorm\.")  # of the legacy data sets that it reads by, at every row group
        disk, _ = get_filesystem_and_path_or_paths("file:///")  # paths go in as they are: a URL would not hold every character
        self._reader = Reader(
            disk,
            self._paths,
            schema_fields=[f"^{column}$" for column in BATCHED],
            worker_class=ArrowReaderWorker,
            reader_pool=self._pool,
            shuffle_row_groups=False,
            num_epochs=None,
            is_batched_reader=True,
        )

    def load(self, piece: Piece, epoch: int | None) -> Rows:
        file = self._files[piece.file]
        with self._lock:
            self._pool.wanted = self._pool.places[self._paths[piece.file], piece.group]
            found = next(self._reader)
        rows = Rows(
            [str(row_id) for row_id in found.row_id],
            targets_of(np.asarray(found.target), len(self._card.labels), len(found.row_id)),
            np.asarray(found.weight, np.float32),
            found.mask,
            found.image,
        )
        return checked(rows, piece, file.row_groups[piece.group], file.path)

    def metrics(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        self._reader.stop()
        self._reader.join()
