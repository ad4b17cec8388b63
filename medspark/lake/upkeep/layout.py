"""compact and cluster: the same rows in fewer, better files. Narrow tables only; `pixels` is laid out by its writers, feeds never change.

Batches come in whatever order they come, so the files of a table overlap in their keys and a look-up opens all of them. ``cluster`` lays
overlapping files anew in the catalogue's order, 32 to 64 MB each, so that min/max statistics leave one or two. ``compact`` only merges the
files that are too small. Planning is pure; the rows are sorted by Spark's shuffle (bounded, spills to disk) and written by Arrow in the task.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medspark.lake.files import INDEXED_COLUMNS, NARROW_FILE_BYTES, DataFile, locate, statistics
from medspark.lake.store import Lake
from medspark.tables.catalog import TABLES
from medspark.tables.schema import Table

SMALL_BYTES = 32 << 20  # a narrow file below this is merged with others
LARGE_BYTES = 64 << 20  # a file that grows past this is closed and the next one begun
GROUP_ROWS = 16_384  # rows of a row group: a look-up of one series reads one or two of these
GROUP_BYTES = 64 << 20  # in memory; rows with thumbnails or masks make a group long before GROUP_ROWS
LEFT_ALONE = ("pixels", "claims")
"""Payload lies in runs of one parent already; a claim's owner exchanges its own file by name."""
TRIES = 3  # plans of one table; a running ingest may take a file away in between
RESULT = "path string, size long, rows long, statistics string"


@dataclass(frozen=True)
class Laid:
    """A file and the range of its first clustering columns (``low``, ``high``: one value, or two where the first is constant)."""

    path: str
    size: int
    rows: int
    low: tuple[Any, ...] = ()
    high: tuple[Any, ...] = ()


def order(table: str) -> tuple[str, ...]:
    """The columns by which a table's rows are sorted."""
    return TABLES[table].cluster_by or TABLES[table].key


def laid(action: dict[str, Any], columns: Sequence[str]) -> Laid:
    """`Laid` from an entry of `Lake.actions`."""
    low, high = [], []
    for column in columns[:2]:
        least, most = action.get(f"min.{column}"), action.get(f"max.{column}")
        if least is None or most is None:
            break
        low.append(least)
        high.append(most)
        if least != most:  # the ranges of further columns say nothing once the first varies
            break
    return Laid(action["relative"], action["size_bytes"], action["num_records"] or 0, tuple(low), tuple(high))


def _after(high: tuple[Any, ...], low: tuple[Any, ...]) -> bool:
    """Whether a file that begins at ``low`` lies behind one that ends at ``high``; sharing the last key (a series in two files) is no overlap."""
    if high[0] != low[0]:
        return bool(high[0] < low[0])
    return len(high) < 2 or len(low) < 2 or bool(high[1] <= low[1])


def stale(files: Iterable[Laid]) -> list[list[Laid]]:
    """Groups of files that ``cluster`` lays anew: those whose ranges overlap, and neighbours that are too small.

    Each group is a stretch of the key's range that no other file reaches into, so that its new files overlap nothing. Files without
    statistics of the key (all null) form a group of their own where they are small.
    """
    known = sorted((file for file in files if file.low), key=lambda file: (file.low[0], len(file.low) > 1, file.low[1:], file.path))
    blank = [file for file in files if not file.low]
    stretches: list[list[Laid]] = []
    reach: tuple[Any, ...] = ()
    for file in known:
        if stretches and not _after(reach, file.low):
            stretches[-1].append(file)
            reach = reach if _after(file.high, reach) else file.high
        else:
            stretches.append([file])
            reach = file.high
    groups: list[list[Laid]] = []
    run: list[Laid] = []
    for stretch in stretches:
        if len(stretch) == 1 and stretch[0].size < SMALL_BYTES:
            run += stretch
            continue
        groups += [run, stretch] if len(stretch) > 1 else [run]
        run = []
    groups += [run, [file for file in blank if file.size < SMALL_BYTES]]
    return [group for group in groups if len(group) > 1 and (_overlaps(group) or parts(group) < len(group))]


def _overlaps(group: Sequence[Laid]) -> bool:
    return any(file.low and before.low and not _after(before.high, file.low) for before, file in pairwise(group))


def small(files: Iterable[Laid]) -> list[list[Laid]]:
    """The one group of files that ``compact`` merges: those below 32 MB, where that makes fewer of them."""
    group = [file for file in files if file.size < SMALL_BYTES]
    return [group] if len(group) > 1 and parts(group) < len(group) else []


def parts(group: Sequence[Laid]) -> int:
    """Files that a group's rows should fill."""
    return max(1, round(sum(file.size for file in group) / NARROW_FILE_BYTES))


@dataclass(frozen=True)
class Work:
    """What one table needs: groups of files, each of which is laid anew."""

    table: str
    groups: tuple[tuple[Laid, ...], ...]

    @property
    def files(self) -> int:
        return sum(len(group) for group in self.groups)

    @property
    def bytes(self) -> int:
        return sum(file.size for group in self.groups for file in group)


def plan(lake: Lake, table: str, cluster: bool) -> Work:
    files = [laid(action, order(table)) for action in lake.actions(table)]
    return Work(table, tuple(tuple(group) for group in (stale(files) if cluster else small(files))))


def plans(lake: Lake, cluster: bool) -> list[Work]:
    """What there is to do, table by table; reads the logs only."""
    works = [plan(lake, table, cluster) for table in TABLES if table not in LEFT_ALONE and lake.exists(table)]
    return [work for work in works if work.groups]


def lay_out(lake: Lake, cluster: bool, batch_id: str, progress: Callable[[str], None] = lambda text: None) -> dict[str, dict[str, int]]:
    """Lays every narrow table out anew where it needs it: table -> {files_before, files_after, bytes_before, bytes_after, rows}."""
    done: dict[str, dict[str, int]] = {}
    for work in plans(lake, cluster):
        for _ in range(TRIES):
            progress(f"{'cluster' if cluster else 'compact'}: {work.table}, {work.files} files, {work.bytes / 1e6:.0f} MB")
            lost = False
            for group in work.groups:
                new = rewrite(lake, work.table, group, batch_id)
                if new is None:
                    lost = True
                    continue
                entry = done.setdefault(
                    work.table, dict.fromkeys(("files_before", "files_after", "bytes_before", "bytes_after", "rows"), 0)
                )
                entry["files_before"] += len(group)
                entry["files_after"] += len(new)
                entry["bytes_before"] += sum(file.size for file in group)
                entry["bytes_after"] += sum(file.size for file in new)
                entry["rows"] += sum(file.rows for file in new)
            if not lost:
                break
            work = plan(lake, work.table, cluster)  # an ingest job has changed one of the files meanwhile
    return done


def rewrite(lake: Lake, table: str, group: Sequence[Laid], batch_id: str) -> list[DataFile] | None:
    """Exchanges a group's files for sorted ones in one transaction; None where another job took one of them away meanwhile."""
    from pyspark.sql.types import StructType

    names = list(order(table))
    schema = StructType.fromJson(TABLES[table].json())
    for field in schema.fields:
        field.nullable = True  # files of an older release lack columns
    address = f"{lake.path(table)}/" if "://" in lake.uri else f"file://{lake.path(table)}/"
    rows = lake.spark.read.schema(schema).parquet(*[_spark_path(address + file.path) for file in group])
    count = parts(group)
    rows = (rows.repartitionByRange(count, *names) if count > 1 else rows.coalesce(1)).sortWithinPartitions(*names)
    made = rows.mapInArrow(Writer(lake.uri, TABLES[table], batch_id), RESULT).collect()
    new = [DataFile(row.path, row.size, row.rows, row.statistics) for row in made]
    before, after = sum(file.rows for file in group), sum(file.rows for file in new)
    if before != after:
        raise RuntimeError(f"{table}: {before} rows were read from {len(group)} files and {after} written; nothing was committed")

    def build(version: int) -> tuple[list[DataFile], list[DataFile]]:
        live = {action["relative"] for action in lake.actions(table, version)}
        if not all(file.path in live for file in group):
            return [], []
        return new, [DataFile(file.path, file.size, file.rows, "") for file in group]

    if lake.transact(table, build, metadata=lake.user_metadata(batch=batch_id, layout=True), data_change=False) is None:
        for file in new:
            lake.filesystem.delete_file(lake.folder(table, file.path))
        return None
    return new


def _spark_path(path: str) -> str:
    """Spark's reader takes glob patterns: letters that mean something in one are escaped."""
    return "".join(f"\\{letter}" if letter in "{}[]*?\\" else letter for letter in path)


@dataclass(frozen=True)
class Writer:
    """The work of a task: sorted rows in, Parquet files out, never committed by the task itself."""

    uri: str
    table: Table
    batch_id: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        files: list[DataFile] = []
        filesystem, root, _ = locate(self.uri)
        schema = self.table.arrow()
        stream: Any = None
        writer: Any = None
        collected: list[pq.FileMetaData] = []
        name = ""

        def close() -> None:
            nonlocal writer
            if writer is None:
                return
            writer.close()
            stream.close()
            size = filesystem.get_file_info(f"{root}/{self.table.name}/{name}").size
            indexed = self.table.names[:INDEXED_COLUMNS]
            files.append(DataFile(name, size, collected[0].num_rows, statistics(collected[0], indexed)))
            writer = None

        for group in _groups(batches):
            if writer is None:
                name, collected = f"part-{self.batch_id}-{uuid.uuid4().hex[:12]}.parquet", []
                stream = filesystem.open_output_stream(f"{root}/{self.table.name}/{name}")
                writer = pq.ParquetWriter(stream, schema, compression="zstd", metadata_collector=collected)
            writer.write_table(group.select(schema.names).cast(schema), row_group_size=GROUP_ROWS)
            if stream.tell() >= LARGE_BYTES:
                close()
        close()
        columns = {
            "path": [file.path for file in files],
            "size": pa.array([file.size for file in files], pa.int64()),
            "rows": pa.array([file.rows for file in files], pa.int64()),
            "statistics": pa.array([file.statistics for file in files], pa.string()),
        }
        if files:
            yield pa.RecordBatch.from_pydict(columns)


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Rows of whole row groups, bounded by rows and by bytes."""
    pending: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, GROUP_ROWS - rows)
            start += piece.num_rows
            pending.append(piece)
            rows += piece.num_rows
            size += piece.nbytes
            if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                yield pa.Table.from_batches(pending)
                pending, rows, size = [], 0, 0
    if pending:
        yield pa.Table.from_batches(pending)
