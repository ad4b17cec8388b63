"""The reference source: row groups by pyarrow, payloads as views of Arrow's buffers (nothing is copied before it is decoded)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.feed.card import Card
from medspark.feed.decode import Rows
from medspark.feed.plan import Piece, Plan
from medspark.feed.stream import checked, targets_of

if TYPE_CHECKING:
    from medspark.feed.cache import Cache

COLUMNS = ["row_id", "target", "weight", "mask", "image"]  # what a batch needs; the rest of `rows.SCHEMA` is for people and SQL
FOOTERS_KEPT = 2048  # of files of at most 48 MB: some 30 KB each, 60 MB in all; a forgotten one costs a request more
LOADS_AT_ONCE = 4  # hides a store's latency; a row group of 4 MB at 50 ms a request: 320 MB/s


class ArrowSource:
    """Row groups of one part's files."""

    threads = LOADS_AT_ONCE

    def __init__(self, card: Card, part: str, filesystem: pafs.FileSystem, root: str, plan: Plan, cache: Cache | None = None) -> None:
        self._card = card
        self._files = card.files_of(part)
        self._filesystem = filesystem
        self._root = root
        self._far = not isinstance(filesystem, pafs.LocalFileSystem)  # one request a row group; on a disk it would be one more copy
        self._cached = None if cache is None else cache.follow(plan, self._files, self.read)
        self._footer = lru_cache(FOOTERS_KEPT)(self._read_footer)

    def load(self, piece: Piece, epoch: int | None) -> Rows:
        file = self._files[piece.file]
        if self._cached is None:
            table = self.read(piece.file, piece.group)
        else:
            table = self._cached.table(piece.file, piece.group, epoch)
        return checked(rows_of(table, len(self._card.labels)), piece, file.row_groups[piece.group], file.path)

    def read(self, file: int, group: int) -> pa.Table:
        """A row group from the feed's own store."""
        path = f"{self._root}/{self._files[file].path}"
        with self._filesystem.open_input_file(path) as stream:
            read = pq.ParquetFile(stream, metadata=self._footer(path), pre_buffer=self._far)
            return read.read_row_group(group, COLUMNS, use_threads=False)

    def _read_footer(self, path: str) -> pq.FileMetaData:
        with self._filesystem.open_input_file(path) as stream:
            return pq.read_metadata(stream)

    def metrics(self) -> Mapping[str, float]:
        return {} if self._cached is None else self._cached.metrics()

    def close(self) -> None:
        if self._cached is not None:
            self._cached.close()


def rows_of(table: pa.Table, labels: int) -> Rows:
    """The rows of a table with `COLUMNS`."""
    table = table.combine_chunks()
    columns = {name: _one(table.column(name)) for name in COLUMNS}
    target = columns["target"].flatten().to_numpy(zero_copy_only=False)
    return Rows(
        columns["row_id"].to_pylist(),
        targets_of(target, labels, table.num_rows),
        columns["weight"].to_numpy(zero_copy_only=False),
        _views(columns["mask"]),
        _views(columns["image"]),
    )


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.array([], column.type)


def _views(array: pa.Array) -> list[memoryview]:
    """A binary array's values, not copied."""
    _, offsets, data = array.buffers()
    if data is None:
        return [memoryview(b"")] * len(array)
    ends = np.frombuffer(offsets, np.int32, len(array) + 1, array.offset * 4).tolist()
    view = memoryview(data).cast("B")  # Arrow says signed
    return [view[start:stop] for start, stop in pairwise(ends)]
