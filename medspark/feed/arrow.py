"""The reference source: row groups by pyarrow, payloads as views of Arrow's buffers (nothing is copied before it is decoded)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.feed.card import Card, PartFile
from medspark.feed.decode import Rows
from medspark.feed.plan import Piece
from medspark.feed.reader import MissingRows
from medspark.feed.rows import BATCHED, NARROW, PAYLOADS
from medspark.feed.stream import checked, targets_of

if TYPE_CHECKING:
    from medspark.feed.cache import Cached, Read

FOOTERS_KEPT = 2048  # of files of at most 48 MB: some 30 KB each, 60 MB in all; a forgotten one costs a request more
LOADS_AT_ONCE = 4  # hides a store's latency; a row group of 4 MB at 50 ms a request: 320 MB/s


class ArrowSource:
    """Row groups of one part's files."""

    threads = LOADS_AT_ONCE

    def __init__(
        self,
        card: Card,
        part: str,
        filesystem: pafs.FileSystem,
        root: str,
        follow: Callable[[Sequence[PartFile], Read], Cached] | None = None,
    ) -> None:
        """follow : of a `cache.Cache`, for the plan that is read by; None: no cache"""
        self._card = card
        self._files = card.files_of(part)
        self._filesystem = filesystem
        self._root = root
        self._far = not isinstance(filesystem, pafs.LocalFileSystem)  # one request a row group; on a disk it would be one more copy
        self._cached = None if follow is None else follow(self._files, self.read)
        self.footer = lru_cache(FOOTERS_KEPT)(self._read_footer)

    def load(self, piece: Piece, epoch: int | None) -> Rows:
        file = self._files[piece.file]
        if self._cached is None:
            table = self.read(piece.file, piece.group)
        else:
            table = self._cached.table(piece.file, piece.group, epoch)
        return checked(rows_of(table, len(self._card.labels)), piece, file.row_groups[piece.group], file.path)

    def read(self, file: int, group: int) -> pa.Table:
        """A row group from the feed's own store."""
        footer = self.footer(file)
        with self._damage_named(file), self._open(file) as stream:
            read = pq.ParquetFile(stream, metadata=footer, pre_buffer=self._far)
            return read.read_row_group(group, list(BATCHED), use_threads=False)

    def _read_footer(self, file: int) -> pq.FileMetaData:
        with self._damage_named(file), self._open(file) as stream:
            return pq.read_metadata(stream)

    @contextmanager
    def _damage_named(self, file: int) -> Iterator[None]:
        """A store that fails is an OSError; a file that is not what it was, a `MissingRows`."""
        listed = self._files[file]
        try:
            yield
        except FileNotFoundError:
            raise MissingRows(f"{listed.path} is gone: build the feed again") from None
        except pa.ArrowInvalid as error:
            size = self._filesystem.get_file_info(f"{self._root}/{listed.path}").size
            raise MissingRows(
                f"{listed.path} is damaged ({error}; {size} bytes, the card says {listed.bytes}): build the feed again"
            ) from None

    def _open(self, file: int) -> pa.NativeFile:
        return self._filesystem.open_input_file(f"{self._root}/{self._files[file].path}")

    def metrics(self) -> Mapping[str, float]:
        return {} if self._cached is None else self._cached.metrics()

    def close(self) -> None:
        if self._cached is not None:
            self._cached.close()


def rows_of(table: pa.Table, labels: int) -> Rows:
    """The rows of a table with `rows.BATCHED`."""
    row_ids, target, weight = (_one(table.column(name)) for name in NARROW)
    values = target.flatten().to_numpy(zero_copy_only=False)
    return Rows(
        row_ids.to_pylist(),
        targets_of(values, labels, table.num_rows),
        weight.to_numpy(zero_copy_only=False),
        *(_views(_one(table.column(name))) for name in PAYLOADS),
    )


def _one(column: pa.ChunkedArray) -> pa.Array:
    """The whole column as one array."""
    chunks = column.chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], column.type)


def _views(array: pa.Array) -> list[memoryview]:
    """A binary array's values, not copied."""
    _, offsets, data = array.buffers()
    if data is None:
        return [memoryview(b"")] * len(array)
    ends = np.frombuffer(offsets, np.int32, len(array) + 1, array.offset * 4).tolist()
    view = memoryview(data).cast("B")  # Arrow says signed
    return [view[start:stop] for start, stop in pairwise(ends)]
