"""explode, as a Spark task sees it: units in, Parquet files out. Pixels never cross into the JVM.

Payload rows go straight into files of the table ``pixels`` (exact row groups, contiguous runs of one parent); narrow rows go into the
batch's stage, one small file per table and task. What returns to the driver is a few records per task: file names, counts, rejections.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from medspark.config import Config
from medspark.errors import Rejected, Unavailable, unexpected
from medspark.keys import Ids
from medspark.lake.files import INDEXED_COLUMNS, PRIVATE, DataFile, OpenFile, locate, write_parquet
from medspark.lake.scan import local_copy
from medspark.lake.tasks import Watcher
from medspark.series.dicomweb import Access
from medspark.tables.catalog import PIXELS, TABLES
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import Kind, Unit

GROUP_BYTES = 3 << 20  # row groups of 2 to 4 MB: a reader fetches 8 to 16 CT slices or some 256 tiles at once
FILE_BYTES = 256 << 20  # payload files of 128 to 512 MB
STAGE_BYTES = 32 << 20  # narrow rows held in memory before they are flushed to the stage
_SMALL = [column.name for column in PIXELS.columns if column.dtype == "string" and column.name != "image_id"]


@dataclass
class TaskResult:
    """What one task made.

    payload : files of the table ``pixels``, uncommitted
    stage : table -> paths of staged narrow rows, in the order of the units
    images : source_id -> images stored; parents, subjects : ids that occur in the rows
    absent : source_id -> why it could not be brought; there is no row of it
    """

    partition: int
    payload: list[DataFile] = field(default_factory=list)
    stage: dict[str, list[str]] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    parents: set[str] = field(default_factory=set)
    subjects: set[str] = field(default_factory=set)
    rejections: list[Rejection] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


class PayloadWriter:
    """Files of ``pixels``: exact row groups, rolled by size, never committed by the task itself."""

    def __init__(self, filesystem: pafs.FileSystem, root: str, batch_id: str) -> None:
        self.filesystem, self.folder, self.batch_id = filesystem, f"{root}/pixels", batch_id
        self.files: list[DataFile] = []
        self._file: OpenFile | None = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = self._file_bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends payload rows; whole row groups go out as they fill."""
        sizes = batch.column("n_bytes").to_pylist()
        start = 0
        for place, size in enumerate(sizes):
            self._pending_bytes += size
            if self._pending_bytes >= GROUP_BYTES:
                self._pending.append(batch.slice(start, place + 1 - start))
                start = place + 1
                self._flush()
        if start < len(sizes):
            self._pending.append(batch.slice(start))

    def _flush(self) -> None:
        if self._pending:
            table, size = pa.Table.from_batches(self._pending), self._pending_bytes
            self._pending, self._pending_bytes = [], 0
            self._group(table, size)

    def write_group(self, table: pa.Table) -> None:
        """These rows as one row group, whatever its size: a file whose groups are to stay as they were."""
        self._flush()
        if table.num_rows:
            self._group(table.cast(PIXELS.arrow()), table.nbytes)

    def _group(self, table: pa.Table, size: int) -> None:
        if self._file is None:
            name = f"part-{self.batch_id}-{uuid.uuid4().hex[:12]}.parquet"
            self._file = OpenFile(
                self.filesystem,
                f"{self.folder}/{name}",
                name,
                PIXELS.arrow(),
                PIXELS.names[:INDEXED_COLUMNS],
                compression={leaf: "none" if leaf == "bytes" else "zstd" for leaf in _leaves()},
                use_dictionary=_SMALL,
                write_statistics=["image_id", "parent_id", "dataset", "run_id", "batch_id", "n_bytes"],
            )
        self._file.write(table)
        self._file_bytes += size
        if self._file_bytes >= FILE_BYTES:
            self._roll()

    def _roll(self) -> None:
        if self._file is not None:
            self.files.append(self._file.close())
            self._file, self._file_bytes = None, 0

    def close(self) -> list[DataFile]:
        self._flush()
        self._roll()
        return self.files


def _leaves() -> list[str]:
    """Paths of the Parquet columns of ``pixels`` (its nested ones have two or three steps)."""
    paths = {"shape": ["shape.list.element"], "params": ["params.key_value.key", "params.key_value.value"]}
    return [leaf for name in PIXELS.names for leaf in paths.get(name, [name])]


@dataclass
class StageWriter:
    """Narrow rows of one task, by table."""

    filesystem: pafs.FileSystem
    folder: str
    partition: int
    result: TaskResult
    _batches: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)
    _bytes: Counter[str] = field(default_factory=Counter)

    def write(self, table: str, batch: pa.RecordBatch) -> None:
        self._batches.setdefault(table, []).append(batch)
        self._bytes[table] += batch.nbytes
        if self._bytes[table] >= STAGE_BYTES:
            self._flush(table)

    def _flush(self, table: str) -> None:
        batches = self._batches.pop(table, [])
        if not batches:
            return
        name = f"{table}-{self.partition:06d}-{uuid.uuid4().hex[:12]}.parquet"
        data = pa.Table.from_batches(batches, TABLES[table].arrow())
        write_parquet(self.filesystem, f"{self.folder}/{name}", data, name, ())
        self.result.stage.setdefault(table, []).append(f"{self.folder}/{name}")
        self._bytes[table] = 0

    def close(self) -> None:
        for table in list(self._batches):
            self._flush(table)


@dataclass(frozen=True)
class Exploder:
    """The work of an explode task; travels to the executors by closure, the key within ``ids``."""

    kind: Kind
    ids: Ids
    settings: Config
    lake_uri: str
    run_id: str
    batch_id: str
    access: Access
    only: frozenset[str] | None = None
    """Image ids of which the payload is made again, and nothing else (`medspark.lake.upkeep.mend`); None: everything."""

    def __call__(self, units: Iterable[Unit], watch: Watcher, partition: int) -> Iterator[TaskResult]:
        filesystem, root, _ = locate(self.lake_uri)
        folder = f"{root}/{PRIVATE}/{self.batch_id}"
        result = TaskResult(partition)
        payload = PayloadWriter(filesystem, root, self.batch_id)
        stage = StageWriter(filesystem, folder, partition, result)
        for unit in units:
            for item in self._explode(unit, watch, result):
                if isinstance(item, Rejection):
                    result.rejections.append(item)
                elif self.only is not None:
                    if item.table == "pixels" and len(wanted := chosen(item, self.only)):
                        payload.write(with_checksums(wanted).to_arrow(self.run_id, self.batch_id))
                elif item.table == "pixels":
                    payload.write(with_checksums(item).to_arrow(self.run_id, self.batch_id))
                    result.rows["pixels"] += len(item)
                else:
                    batch = item.to_arrow(self.run_id, self.batch_id)
                    stage.write(item.table, batch)
                    _count(result, item.table, batch, unit)
        result.payload = payload.close()
        stage.close()
        yield result

    def _explode(self, unit: Unit, watch: Watcher, result: TaskResult) -> Iterator[Rows | Rejection]:
        try:
            with ExitStack() as copies:
                yield from self.kind.explode(self._local(unit, copies, watch, result), self.ids, self.settings, watch)
        except Rejected as error:
            yield from self._lost(unit, error.code, error.reason)
        except Exception as error:  # what no decoder foresaw costs its unit, not the job
            yield from self._lost(unit, "DECODE_FAILED", unexpected(error))

    def _local(self, unit: Unit, copies: ExitStack, watch: Watcher, result: TaskResult) -> Unit:
        """The unit with its remote sources brought to this machine for as long as it is worked on, without those that do not come.

        Members of archives are brought when they are opened, one at a time: a unit's members together may be larger than memory, and more
        than a process may hold open.
        """
        if all(source.uri.startswith("file://") and source.member is None for source in unit.sources):
            return unit
        brought = []
        for source in unit.sources:
            if source.member is not None:
                brought.append(dataclasses.replace(source, bring=partial(local_copy, source, self.access)))
                continue
            if not source.uri.startswith("file://"):
                watch.done()  # bringing it may take longer than a decoder may
            try:
                brought.append(dataclasses.replace(source, path=copies.enter_context(local_copy(source, self.access))))
            except Unavailable as error:
                result.absent[source.source_id] = str(error)
            except Rejected as error:
                result.rejections.append(Rejection(source.source_id, source.uri, "explode", error.code, error.reason))
        return dataclasses.replace(unit, sources=tuple(brought))

    @staticmethod
    def _lost(unit: Unit, code: str, reason: str) -> Iterator[Rejection]:
        for source in unit.sources:
            yield Rejection(source.source_id, source.uri, "explode", code, reason, unit.images if len(unit.sources) == 1 else 1)


def chosen(rows: Rows, image_ids: frozenset[str]) -> Rows:
    """The rows of the images named."""
    keep = [place for place, image_id in enumerate(rows.columns["image_id"]) if image_id in image_ids]

    def take(values: Any) -> Any:
        return values.take(pa.array(keep, pa.int64())) if isinstance(values, pa.Array) else [values[place] for place in keep]

    return Rows(rows.table, {name: take(values) for name, values in rows.columns.items()})


def with_checksums(rows: Rows) -> Rows:
    """Adds ``crc32c`` and ``n_bytes`` of each payload."""
    import google_crc32c

    value = google_crc32c.value
    payloads = rows.columns["bytes"]
    if isinstance(payloads, pa.Array):
        payloads = payloads.to_pylist()
    extra = {"crc32c": [value(payload) for payload in payloads], "n_bytes": [len(payload) for payload in payloads]}
    return Rows("pixels", {**rows.columns, "bytes": payloads, **extra})


_PARENT = {"tiles": "slide_id", "slices": "series_id", "photos": "source_id", "regions": "source_id", "planes": "source_id"}


def _count(result: TaskResult, table: str, batch: pa.RecordBatch, unit: Unit) -> None:
    result.rows[table] += batch.num_rows
    if table not in _PARENT:
        return
    result.parents.update(batch.column(_PARENT[table]).unique().to_pylist())
    if "subject_key" in batch.schema.names:
        result.subjects.update(batch.column("subject_key").unique().to_pylist())
    if "source_id" in batch.schema.names:
        for entry in batch.column("source_id").value_counts().to_pylist():
            result.images[entry["values"]] += entry["counts"]
    else:
        result.images[unit.sources[0].source_id] += batch.num_rows
