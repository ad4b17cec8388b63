"""Files of narrow tables: row groups that a look-up reads one or two of, files of 32 to 64 MB."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs as pafs

from medspark.lake.files import INDEXED_COLUMNS, DataFile, OpenFile
from medspark.tables.schema import Table

SMALL_BYTES = 32 << 20  # a narrow file below this is merged with others
LARGE_BYTES = 64 << 20  # no file grows much past this
GROUP_ROWS = 16_384  # rows of a row group: a look-up of one series reads one or two of these
GROUP_BYTES = 64 << 20  # in memory; rows with thumbnails or masks make a group long before GROUP_ROWS


@dataclass(frozen=True)
class Limits:
    """``file_bytes`` of a file on the disk; ``group_rows`` and ``group_bytes`` (in memory) of a row group."""

    file_bytes: int = LARGE_BYTES
    group_rows: int = GROUP_ROWS
    group_bytes: int = GROUP_BYTES


class NarrowWriter:
    """Sorted rows in, Parquet files out, none of them committed. A file's end is its last whole row group.

    rows : how many there will be: what is too much for one file is spread evenly, so that no small one is left over
    """

    def __init__(self, filesystem: pafs.FileSystem, root: str, table: Table, batch_id: str, rows: int, limits: Limits) -> None:
        self.filesystem, self.folder, self.table, self.batch_id, self.limits = filesystem, f"{root}/{table.name}", table, batch_id, limits
        self.files: list[DataFile] = []
        self._schema = table.arrow()
        self._file: OpenFile | None = None
        self._rows, self._left, self._bytes = 0, rows, 0

    def write(self, batches: Iterable[pa.RecordBatch]) -> list[DataFile]:
        """Writes all rows; returns the files."""
        for group in groups(batches, self.limits):
            self._group(group)
        self._close()
        return self.files

    def _group(self, group: pa.Table) -> None:
        if self._file is None:
            name = f"part-{self.batch_id}-{uuid.uuid4().hex[:12]}.parquet"
            indexed = self.table.names[:INDEXED_COLUMNS]
            self._file = OpenFile(self.filesystem, f"{self.folder}/{name}", name, self._schema, indexed, compression="zstd")
        self._file.write(group.select(self._schema.names).cast(self._schema))
        self._rows += group.num_rows
        self._left -= group.num_rows
        here = self._file.size
        rest = here + self._left * (self._bytes + here) / self._rows  # of this file and those to come, if rows go on as they have been
        if self._left > 0 and here >= rest / files_for(rest, self.limits.file_bytes):
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self.files.append(self._file.close())
            self._file, self._bytes = None, self._bytes + self.files[-1].size


def files_for(size: float, most: int) -> int:
    """How many files so many bytes should fill: of three quarters of ``most`` each, none above it, and none below half of it where there are two."""
    return max(math.ceil(size / most), round(size / (0.75 * most)), 1)


def groups(batches: Iterable[pa.RecordBatch], limits: Limits) -> Iterator[pa.Table]:
    """Rows of whole row groups, bounded by rows and by bytes."""
    pending: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, limits.group_rows - rows)
            start += piece.num_rows
            pending.append(piece)
            rows += piece.num_rows
            size += piece.nbytes
            if rows >= limits.group_rows or size >= limits.group_bytes:
                yield pa.Table.from_batches(pending)
                pending, rows, size = [], 0, 0
    if pending:
        yield pa.Table.from_batches(pending)
