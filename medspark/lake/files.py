"""Data files of a table and where they lie: Parquet out, statistics, addresses. Knows no transaction."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.tables.catalog import TABLES

STRING_STATISTICS = 32  # Delta cuts strings in statistics at this length
INDEXED_COLUMNS = 32  # Delta gathers statistics on the first 32 columns; the catalogue puts keys there
HASH_BLOCK = 4 << 20
NARROW_FILE_BYTES = 48 << 20  # narrow files of 32 to 64 MB keep min/max statistics selective
GROUP_ROWS = 65_536  # rows of a row group
GROUP_BYTES = 16 << 20  # in memory; rows with masks or thumbnails make a row group long before GROUP_ROWS
FULL = "No space left on device"  # in the text of every error that a full disk causes, Python's, Arrow's and the JVM's
PRIVATE = "_medspark"  # journals, stages and the lake's own card; Delta ignores folders that begin with an underscore


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table, written and not yet committed.

    path : str          relative to the table's folder
    statistics : str    Delta's statistics (JSON): numRecords, minValues, maxValues, nullCount
    """

    path: str
    size: int
    rows: int
    statistics: str

    def add(self, data_change: bool = True) -> str:
        """``data_change`` : False where rows only move between files, so that whoever follows the table sees nothing new."""
        action = {
            "path": self.path,
            "partitionValues": {},
            "size": self.size,
            "modificationTime": int(time.time() * 1000),
            "dataChange": data_change,
            "stats": self.statistics,
        }
        return json.dumps({"add": action})

    def remove(self, data_change: bool = True) -> str:
        action = {
            "path": self.path,
            "deletionTimestamp": int(time.time() * 1000),
            "dataChange": data_change,
            "partitionValues": {},
            "size": self.size,
        }
        return json.dumps({"remove": {**action, "extendedFileMetadata": True}})


def statistics(metadata: pq.FileMetaData, names: Sequence[str]) -> str:
    """Delta's file statistics from a Parquet footer, for the top-level columns ``names`` (Delta protocol, "Per-file Statistics").

    Strings are cut at 32 characters; a cut maximum gets a tie-breaker so that it stays an upper bound. Columns without complete
    statistics (NaN, nested, binary, timestamps) are left out, which is always correct: readers then do not prune by them.
    """
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    wanted = set(names)
    for column in range(metadata.num_columns):
        path = metadata.schema.column(column).path
        if path not in wanted:
            continue
        groups = [metadata.row_group(group).column(column).statistics for group in range(metadata.num_row_groups)]
        if not groups or any(group is None or not group.has_null_count for group in groups):
            continue
        nulls[path] = sum(group.null_count for group in groups)
        valued = [group for group in groups if group.num_values]
        if not valued or not all(group.has_min_max for group in valued):
            continue
        smallest, largest = min(group.min for group in valued), max(group.max for group in valued)
        if isinstance(smallest, str):
            low[path] = smallest[:STRING_STATISTICS]
            high[path] = largest if len(largest) <= STRING_STATISTICS else largest[:STRING_STATISTICS] + "\U0010ffff"
        elif isinstance(smallest, (int, float)) and smallest == smallest and largest == largest:
            low[path], high[path] = smallest, largest
    return json.dumps({"numRecords": metadata.num_rows, "minValues": low, "maxValues": high, "nullCount": nulls}, ensure_ascii=True)


class OpenFile:
    """A Parquet file of a table while it is written; `close` makes it the `DataFile` that a commit names. What fails leaves a file that none names.

    path : on ``filesystem``;  relative : as the commit names it;  indexed : columns whose statistics the commit holds
    options : of ``ParquetWriter``
    """

    def __init__(
        self, filesystem: pafs.FileSystem, path: str, relative: str, schema: pa.Schema, indexed: Sequence[str], **options: Any
    ) -> None:
        self._filesystem, self._path, self._relative, self._indexed = filesystem, path, relative, indexed
        self._collected: list[pq.FileMetaData] = []
        self._stream = filesystem.open_output_stream(path)
        self._writer = pq.ParquetWriter(self._stream, schema, metadata_collector=self._collected, **options)

    def write(self, rows: pa.Table, group_rows: int | None = None) -> None:
        """Appends rows as row groups of ``group_rows``; None: as one."""
        self._writer.write_table(rows, row_group_size=rows.num_rows if group_rows is None else group_rows)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return int(self._stream.tell())

    def close(self) -> DataFile:
        self._writer.close()
        self._stream.close()
        metadata = self._collected[0]
        size = self._filesystem.get_file_info(self._path).size
        return DataFile(self._relative, size, metadata.num_rows, statistics(metadata, self._indexed))

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()


def write_parquet(filesystem: pafs.FileSystem, path: str, data: pa.Table, relative: str, names: Sequence[str]) -> DataFile:
    with OpenFile(filesystem, path, relative, data.schema, names[:INDEXED_COLUMNS], compression="zstd") as file:
        file.write(data, max(1, min(GROUP_ROWS, data.num_rows * GROUP_BYTES // max(1, data.nbytes))))
        return file.close()


def admitted(actions: Iterable[dict[str, Any]], column: str, values: Sequence[str]) -> list[dict[str, Any]]:
    """The files (see `Lake.actions`) whose statistics of ``column`` admit one of the values; files without statistics are admitted."""

    def admits(action: dict[str, Any]) -> bool:
        low, high = action.get(f"min.{column}"), action.get(f"max.{column}")
        return low is None or high is None or any(low <= value <= high for value in values)

    return [action for action in actions if admits(action)]


def admitted_paths(actions: Iterable[dict[str, Any]], column: str, values: Sequence[str]) -> list[str]:
    """Paths of the files that `admitted` lets through."""
    return [action["path"] for action in admitted(actions, column, values)]


def locate(uri: str) -> tuple[pafs.FileSystem, str, str]:
    """(Arrow file system, path on it, address for Spark) of a folder or URI; raises `BadRequest` for one that cannot be served."""
    if "://" not in uri and not uri.startswith("file:"):
        path = os.path.abspath(os.path.expanduser(uri))
        return pafs.LocalFileSystem(), path, path
    if uri.startswith("file:"):
        path = os.path.abspath("/" + uri.removeprefix("file:").lstrip("/"))
        return pafs.LocalFileSystem(), path, path
    try:
        filesystem, path = pafs.FileSystem.from_uri("s3://" + uri.split("://", 1)[1] if uri.startswith("s3a://") else uri)
    except Exception as error:
        raise BadRequest(f"{uri}: no file system for this address here ({str(error).splitlines()[0][:200]})") from None
    return filesystem, path, uri.rstrip("/")


def check_writable(uri: str) -> None:
    """Raises `BadRequest` for a lake that cannot be written (read-only, not ours, disk full), by writing and removing one empty file."""
    filesystem, root, _ = locate(uri)
    probe = f"{root}/{PRIVATE}/.write-{uuid.uuid4().hex}"
    try:
        filesystem.create_dir(f"{root}/{PRIVATE}", recursive=True)
        with filesystem.open_output_stream(probe) as stream:
            stream.write(b"?")
        filesystem.delete_file(probe)
    except OSError as error:
        with contextlib.suppress(OSError):
            filesystem.delete_file(probe)
        if error.errno == errno.ENOSPC or FULL in str(error):
            raise BadRequest(f"--lake {uri}: its disk is full; free some space and run the job again, nothing is lost") from None
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise BadRequest(
            f"--lake {uri}: cannot be written ({reason}); check the mount and who owns the folder, or work on a copy"
        ) from None


def sha256_of(filesystem: pafs.FileSystem, path: str) -> str:
    """Of all bytes of a file, in bounded memory; raises OSError."""
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def storage_options(uri: str) -> dict[str, str] | None:
    """What deltalake needs to open the lake; credentials come from the environment, as for Arrow."""
    return None if "://" not in uri else {}


def read_where(
    filesystem: pafs.FileSystem, table: str, files: Sequence[str], where: pc.Expression, columns: list[str] | None = None
) -> pa.Table:
    """The rows of a table's files that meet a condition, in the table's schema; for tasks, which know files and no log."""
    schema = TABLES[table].arrow()
    if not files:
        return (pa.schema([schema.field(name) for name in columns]) if columns else schema).empty_table()
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    return pads.dataset(list(files), schema=nullable, format="parquet", filesystem=filesystem).to_table(columns=columns, filter=where)


def batches_of(filesystem: pafs.FileSystem, paths: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Record batches of Parquet files, one row group at a time."""
    for path in paths:
        with filesystem.open_input_file(path) as stream:
            yield from pq.ParquetFile(stream).iter_batches(batch_size=16_384)
