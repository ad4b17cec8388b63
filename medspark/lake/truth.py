"""Reads what annotation files say out of ``regions`` and ``planes``, for tasks that work many files in the order of their ids.

Both tables lie sorted by ``source_id``, but the ids of small files are drawn like lots: each of ten thousand masks is somewhere in a file of all of
them, and statistics of files tell nothing. So a reader learns which row group holds whom, from one column, and keeps the row group that it has read
last: files that are asked for in the order of their ids cost one reading of each row group together, not one of the whole table each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.tables.catalog import TABLES


@dataclass
class TruthReader:
    """Rows of one of the two tables by annotation file. Final; holds one row group and, for every file, which ids its row groups have."""

    filesystem: pafs.FileSystem
    table: str
    groups_read: int = 0
    _groups: dict[str, dict[str, list[int]]] = field(default_factory=dict, repr=False)
    _last: tuple[str, int] = field(default=("", -1), repr=False)
    _rows: pa.Table | None = field(default=None, repr=False)

    def __call__(self, paths: Sequence[str], source_id: str, where: pc.Expression) -> Iterator[pa.Table]:
        """The rows of an annotation file that meet ``where``, in their order, one row group at a time; none is empty.

        paths : files of the table whose statistics admit the annotation file
        """
        for path in paths:
            for group in self._holding(path).get(source_id, ()):
                rows = self._read(path, group).filter(where & (pc.field("source_id") == source_id))
                if rows.num_rows:
                    yield rows

    def whole(self, paths: Sequence[str], source_id: str, where: pc.Expression) -> pa.Table:
        """The same in one table."""
        return pa.concat_tables([self._schema().empty_table(), *self(paths, source_id, where)])

    def _schema(self) -> pa.Schema:
        return pa.schema([field.with_nullable(True) for field in TABLES[self.table].arrow()])

    def _holding(self, path: str) -> dict[str, list[int]]:
        """source_id -> row groups of a file."""
        if path not in self._groups:
            found: dict[str, list[int]] = {}
            with self.filesystem.open_input_file(path) as stream:
                file = pq.ParquetFile(stream)
                for group in range(file.num_row_groups):
                    for source_id in file.read_row_group(group, columns=["source_id"]).column(0).unique().to_pylist():
                        found.setdefault(source_id, []).append(group)
            self._groups[path] = found
        return self._groups[path]

    def _read(self, path: str, group: int) -> pa.Table:
        if self._rows is None or self._last != (path, group):
            self._rows = None  # before the next one is read
            with self.filesystem.open_input_file(path) as stream:
                rows = pq.ParquetFile(stream).read_row_group(group)
            self._rows, self._last = self._complete(rows), (path, group)
            self.groups_read += 1
        return self._rows

    def _complete(self, rows: pa.Table) -> pa.Table:
        """In the table's schema; columns that an older release did not write are null."""
        columns = [
            rows.column(field.name).cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
            for field in self._schema()
        ]
        return pa.Table.from_arrays(columns, schema=self._schema())
