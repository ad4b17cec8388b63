"""A sort of any number of narrow files, in Arrow within Spark's tasks: sample the keys, cut their range, scatter the rows into runs, gather each range.

1. `Sampler` reads the key's columns of every file and returns some of the keys; the driver cuts their range into cells (`ranges.cuts`).
2. `Scatter` reads files, collects `Bounds.run_bytes` of rows, sorts them and writes them as one *run*: a file of the job's private folder in
   which each cell's rows are an Arrow stream of their own (LZ4), at a known offset.
3. `Gather` takes consecutive cells: reads their pieces of all runs, sorts them (they fit memory) and writes the table's files.

Every row is decoded and encoded twice, and read exactly twice. Rows that fit one task take the short way (`Direct`) without runs.

The sort is stable: rows of equal key stay in the order of files, then of rows. Nulls come behind every value. A task holds at most
twice ``run_bytes`` or ``load_bytes`` (less than one and a half times where no column has half of the bytes), and two row groups of the file
that it writes; a load is larger only where one cell is: rows much larger than the first ones of their file, or more rows of one key in one
file than that. The driver holds a key for every ``sample_bytes`` and an offset for every cell of every run.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.lake.files import DataFile, locate
from medspark.lake.tasks import Watcher
from medspark.lake.upkeep.narrow import Limits, NarrowWriter
from medspark.lake.upkeep.ranges import Place, Sample, edges, rank
from medspark.tables.schema import Table

READ_ROWS = 16_384  # rows of a batch that is read, fewer where they are large (`Bounds.read_bytes`)
KEY_ROWS = 65_536  # keys that are sampled at a time
TRIED_ROWS = 1_024  # rows of a file that tell how large its rows are in memory
PIECE_BYTES = 8 << 20  # of the sorted rows that are copied at a time


@dataclass(frozen=True)
class Bounds:
    """Bytes of rows in memory. ``cell_bytes`` is aimed at from samples, ``load_bytes`` is held from what the runs say."""

    read_bytes: int = 16 << 20
    run_bytes: int = 256 << 20
    cell_bytes: int = 96 << 20
    load_bytes: int = 192 << 20
    sample_bytes: int = 1 << 20


@dataclass(frozen=True)
class Origin:
    """A file of the group: its number in it, its path relative to the table's folder, its bytes on the disk."""

    number: int
    path: str
    size: int


@dataclass(frozen=True)
class Piece:
    """One cell's rows of one run: where they lie, how many, and their bytes in memory."""

    path: str
    offset: int
    length: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Run:
    """``task`` and ``number`` order the runs as their rows' files are ordered; ``pieces``: cell -> `Piece`."""

    task: int
    number: int
    pieces: dict[int, Piece]


@dataclass(frozen=True)
class Job:
    """What every task of a group is told. ``by``: the columns that sort it; ``folder``: its private one, on the lake's file system."""

    uri: str
    table: Table
    by: tuple[str, ...]
    batch_id: str
    folder: str
    bounds: Bounds
    limits: Limits

    def where(self) -> tuple[pafs.FileSystem, str]:
        filesystem, root, _ = locate(self.uri)
        return filesystem, root

    def schema(self) -> pa.Schema:
        """The table's columns, all nullable: files of an older release lack some."""
        return pa.schema([field.with_nullable(True) for field in self.table.arrow()])

    def read(self, filesystem: pafs.FileSystem, root: str, path: str) -> Iterator[pa.RecordBatch]:
        """A file's rows in the table's columns, about `Bounds.read_bytes` at a time."""
        schema = self.schema()
        with filesystem.open_input_file(f"{root}/{self.table.name}/{path}") as stream:
            file = pq.ParquetFile(stream)
            there = [name for name in schema.names if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=_batch_rows(file.metadata, self.bounds.read_bytes), columns=there):
                yield _conform(batch, schema)


@dataclass(frozen=True)
class Sampler:
    """Yields samples of the places of all rows, one for every `Bounds.sample_bytes`, and one at least for every `KEY_ROWS`."""

    job: Job

    def __call__(self, items: Iterable[Origin], watch: Watcher, partition: int) -> Iterator[Sample]:
        filesystem, root = self.job.where()
        by = list(self.job.by)
        for origin in items:
            first = next(self.job.read(filesystem, root, origin.path), None)
            if first is None:
                continue
            row_bytes = first.slice(0, TRIED_ROWS).nbytes / min(first.num_rows, TRIED_ROWS)
            with filesystem.open_input_file(f"{root}/{self.job.table.name}/{origin.path}") as stream:
                for batch in pq.ParquetFile(stream).iter_batches(batch_size=KEY_ROWS, columns=by):
                    rows = batch.num_rows
                    count = min(rows, max(1, round(rows * row_bytes / self.job.bounds.sample_bytes)))
                    middle = pa.array([int((one + 0.5) * rows / count) for one in range(count)], pa.int64())
                    chosen = pa.Table.from_batches([batch]).select(by).take(_sorted(batch, by).take(middle))
                    for key in zip(*(column.to_pylist() for column in chosen.columns), strict=True):
                        yield Sample((rank(key), origin.number), rows * row_bytes / count)


@dataclass(frozen=True)
class Scatter:
    """Yields the runs that it has written."""

    job: Job
    cuts: Sequence[Place]

    def __call__(self, items: Iterable[Origin], watch: Watcher, partition: int) -> Iterator[Run]:
        filesystem, root = self.job.where()
        batches: list[pa.RecordBatch] = []
        numbers: list[tuple[int, int]] = []  # (file, rows) in the order of the batches
        size = done = 0
        for origin in items:
            for batch in self.job.read(filesystem, root, origin.path):
                batches.append(batch)
                numbers.append((origin.number, batch.num_rows))
                size += batch.nbytes
                if size >= self.job.bounds.run_bytes:
                    yield Run(partition, done, self._write(filesystem, batches, numbers))
                    batches, numbers, size, done = [], [], 0, done + 1
        if batches:
            yield Run(partition, done, self._write(filesystem, batches, numbers))

    def _write(self, filesystem: pafs.FileSystem, batches: list[pa.RecordBatch], numbers: list[tuple[int, int]]) -> dict[int, Piece]:
        of = pa.array(np.repeat([number for number, _ in numbers], [rows for _, rows in numbers]))
        table, indices = _in_order(batches, self.job.schema(), list(self.job.by))
        keys, of = [table.column(name) for name in self.job.by], of.take(indices)
        ends = edges(self.cuts, table.num_rows, lambda row: (rank(key[row].as_py() for key in keys), of[row].as_py()))
        path = f"{self.job.folder}/run-{uuid.uuid4().hex[:12]}.arrow"
        pieces: dict[int, Piece] = {}
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with filesystem.open_output_stream(path) as stream:
            start = 0
            for cell, end in enumerate(ends):
                if end > start:
                    rows, offset = table.slice(start, end - start), stream.tell()
                    with pa.ipc.new_stream(stream, table.schema, options=options) as out:
                        out.write_table(rows)
                    pieces[cell] = Piece(path, offset, stream.tell() - offset, rows.num_rows, rows.nbytes)
                start = end
        return pieces


@dataclass(frozen=True)
class Gather:
    """Yields the files that it has written: sorted, each behind the one before. An item is a load: the pieces of some cells, in the order of the runs."""

    job: Job

    def __call__(self, items: Iterable[Sequence[Piece]], watch: Watcher, partition: int) -> Iterator[DataFile]:
        filesystem, root = self.job.where()
        loads = list(items)
        rows = sum(piece.rows for load in loads for piece in load)
        writer = NarrowWriter(filesystem, root, self.job.table, self.job.batch_id, rows, self.job.limits)
        yield from writer.write(batch for load in loads for batch in self._sorted(filesystem, load))

    def _sorted(self, filesystem: pafs.FileSystem, load: Sequence[Piece]) -> Iterator[pa.RecordBatch]:
        batches: list[pa.RecordBatch] = []
        for piece in load:
            with filesystem.open_input_file(piece.path) as stream:
                batches += pa.ipc.open_stream(stream.read_at(piece.length, piece.offset)).read_all().to_batches()
        yield from _in_pieces(batches, self.job)


@dataclass(frozen=True)
class Direct:
    """Sorts files in one task. Yields a tuple of the files that it has written, or nothing where the rows are more than `Bounds.load_bytes`."""

    job: Job

    def __call__(self, items: Iterable[Origin], watch: Watcher, partition: int) -> Iterator[tuple[DataFile, ...]]:
        filesystem, root = self.job.where()
        batches: list[pa.RecordBatch] = []
        size = 0
        for origin in items:
            for batch in self.job.read(filesystem, root, origin.path):
                batches.append(batch)
                size += batch.nbytes
                if size > self.job.bounds.load_bytes:
                    return
        rows = sum(batch.num_rows for batch in batches)
        writer = NarrowWriter(filesystem, root, self.job.table, self.job.batch_id, rows, self.job.limits)
        yield tuple(writer.write(_in_pieces(batches, self.job)))


# ---- rows in memory


def _batch_rows(metadata: pq.FileMetaData, most_bytes: int) -> int:
    """Rows of a batch by the largest rows of any row group, as Parquet holds them uncompressed (close to memory where rows are large)."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    return int(max(1, min(READ_ROWS, most_bytes / max(largest, 1.0))))


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch in these columns and types; null where it has none."""
    columns = []
    for field in schema:
        place = batch.schema.get_field_index(field.name)
        column = pa.nulls(batch.num_rows, field.type) if place < 0 else batch.column(place)
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _sorted(rows: pa.RecordBatch | pa.Table, by: Sequence[str]) -> pa.Array:
    """Indices that sort rows (Arrow's sort is stable), nulls last."""
    return pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in by], null_placement="at_end")


def _in_order(batches: list[pa.RecordBatch], schema: pa.Schema, by: list[str]) -> tuple[pa.Table, pa.Array]:
    """The rows sorted, and the indices that sorted them. Empties ``batches``: a column is let go when its copy is made."""
    keys = pa.Table.from_batches([batch.select(by) for batch in batches]).combine_chunks()
    indices = _sorted(keys, by)
    chunks = [[batch.column(place) for batch in batches] for place in range(len(schema))]
    batches.clear()
    columns = []
    for place, field in enumerate(schema):
        whole, chunks[place] = pa.chunked_array(chunks[place], field.type).combine_chunks(), []
        columns.append(whole.take(indices))
    return pa.Table.from_arrays(columns, schema=schema), indices


def _in_pieces(batches: list[pa.RecordBatch], job: Job) -> Iterator[pa.RecordBatch]:
    """The rows sorted, in batches of at most `PIECE_BYTES`; empties ``batches``."""
    if not batches:
        return
    size = sum(batch.nbytes for batch in batches)
    table, _ = _in_order(batches, job.schema(), list(job.by))
    step = max(1, int(table.num_rows * PIECE_BYTES / max(size, 1)))
    yield from table.to_batches(max_chunksize=step)
