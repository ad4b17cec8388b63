"""The batch's stage: narrow rows that the tasks wrote, on their way into the tables.

Read once per table and streamed, so that the driver's memory is bounded whatever the batch holds; `Stage.files` writes the table's files in
the order of the units (runs of one parent), so that min/max statistics prune before any clustering.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.dataset as pads

from medspark.lake.explode import TaskResult
from medspark.lake.files import NARROW_FILE_BYTES, PRIVATE, DataFile, batches_of
from medspark.lake.store import Lake
from medspark.tables.catalog import TABLES
from medspark.tables.rows import Rows

Patch = Callable[[pa.Table], pa.Table]
WRITERS = 2  # files of a table that are written at a time, each some 100 MB in memory


@dataclass
class Stage:
    """Staged rows by table: ``paths`` from the tasks, ``extra`` from the driver (plan rows, derived rows)."""

    lake: Lake
    run_id: str
    batch_id: str
    paths: dict[str, list[str]] = field(default_factory=dict)
    extra: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)

    @classmethod
    def of(cls, lake: Lake, run_id: str, batch_id: str, results: Iterable[TaskResult]) -> Stage:
        stage = cls(lake, run_id, batch_id)
        for result in sorted(results, key=lambda result: result.partition):
            for table, paths in result.stage.items():
                stage.paths.setdefault(table, []).extend(paths)
        return stage

    def add(self, rows: Rows) -> None:
        if len(rows):
            self.extra.setdefault(rows.table, []).append(rows.to_arrow(self.run_id, self.batch_id))

    def tables(self) -> list[str]:
        return sorted({*self.paths, *self.extra})

    def narrow(self, table: str, columns: list[str]) -> pa.Table:
        """Some columns of all staged rows."""
        schema = TABLES[table].arrow()
        picked = pa.schema([schema.field(name) for name in columns])
        parts = [pa.Table.from_batches([batch]).select(columns) for batch in self.extra.get(table, [])]
        if self.paths.get(table):
            dataset = pads.dataset(self.paths[table], schema=schema, format="parquet", filesystem=self.lake.filesystem)
            parts.append(dataset.to_table(columns=columns))
        return pa.concat_tables([part.cast(picked) for part in parts]) if parts else picked.empty_table()

    def _stream(self, table: str) -> Iterator[pa.Table]:
        for batch in self.extra.get(table, []):
            yield pa.Table.from_batches([batch])
        for batch in batches_of(self.lake.filesystem, self.paths.get(table, [])):
            yield pa.Table.from_batches([batch])

    def files(self, table: str, patch: Patch | None = None) -> list[DataFile]:
        """Writes the table's files (uncommitted), each sorted by the table's clustering columns; ``patch`` sees every piece of rows.

        Reading the stage and sorting and writing files run side by side (Arrow lets go of the interpreter); a few files are in memory at a time.
        """
        by = [(name, "ascending") for name in TABLES[table].cluster_by]

        def write(data: pa.Table) -> DataFile | None:
            data = data.cast(TABLES[table].arrow())
            return self.lake.write_file(table, data.sort_by(by) if by else data, f"part-{self.batch_id}-{uuid.uuid4().hex[:12]}.parquet")

        files: list[DataFile | None] = []
        jobs: deque[Future[DataFile | None]] = deque()
        with ThreadPoolExecutor(WRITERS) as pool:
            for pieces in self._file_sized(table):
                data = pa.concat_tables(pieces)
                jobs.append(pool.submit(write, data if patch is None else patch(data)))  # a patch may remember what it has seen
                if len(jobs) > WRITERS:
                    files.append(jobs.popleft().result())
            files += [job.result() for job in jobs]
        return [file for file in files if file]

    def _file_sized(self, table: str) -> Iterator[list[pa.Table]]:
        """The staged rows in portions for one file each."""
        pending: list[pa.Table] = []
        size = 0
        for piece in self._stream(table):
            pending.append(piece)
            size += piece.nbytes
            if size >= 2 * NARROW_FILE_BYTES:  # in memory; on disk about half of it
                yield pending
                pending, size = [], 0
        if pending:
            yield pending

    def clear(self) -> None:
        self.lake.filesystem_delete(self.lake.folder(PRIVATE, self.batch_id))
