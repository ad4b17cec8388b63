"""The lake on disk: its tables' files, versions and transactions. The only module that speaks Delta's own language.

Rows never pass through Spark's writer on ingest. Workers (or the driver, for narrow tables) write Parquet files with Arrow, and
`Lake.transact` commits their names in one Delta transaction (AddFile + SetTransaction) through the same JVM code as every Delta writer:
conflict detection, idempotence by (appId, version) and the log store of the file system are Delta's. What Delta's writer would have checked
is checked here: `Rows.to_arrow` refuses nulls against the schema, `statistics` gives the min/max values that pruning needs.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow import fs as pafs
from pyspark.sql import DataFrame, SparkSession

from medspark.errors import BadRequest
from medspark.tables.catalog import SCHEMA_VERSION, TABLES

RETRYABLE = ("Concurrent", "ProtocolChanged", "MetadataChanged", "FileAlreadyExists")
ATTEMPTS = 40  # with the pauses below about a minute: longer than any commit that another job may be making
STRING_STATISTICS = 32  # Delta cuts strings in statistics at this length (delta.dataSkippingNumIndexedCols' companion)
INDEXED_COLUMNS = 32  # Delta gathers statistics on the first 32 columns; the catalogue puts keys there
NARROW_FILE_BYTES = 48 << 20  # narrow files of 32 to 64 MB keep min/max statistics selective
PRIVATE = "_medspark"  # journals, stages and the lake's own card; Delta ignores folders that begin with an underscore

PROPERTIES = {
    "delta.enableDeletionVectors": "false",  # readers open files by the list of one version: a vector would resurrect rows
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.setTransactionRetentionDuration": "interval 90 days",
    "delta.checkpointInterval": "50",
    "medspark.schema": SCHEMA_VERSION,
}


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

    def add(self) -> str:
        action = {
            "path": self.path,
            "partitionValues": {},
            "size": self.size,
            "modificationTime": int(time.time() * 1000),
            "dataChange": True,
            "stats": self.statistics,
        }
        return json.dumps({"add": action})

    def remove(self) -> str:
        action = {
            "path": self.path,
            "deletionTimestamp": int(time.time() * 1000),
            "dataChange": True,
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


@dataclass
class Lake:
    """A lake's tables. One per job; cheap to make.

    uri : str       a folder, or any URI that Hadoop's file systems understand; table ``t`` lies at ``<uri>/t``
    """

    spark: SparkSession
    uri: str
    filesystem: pafs.FileSystem = field(init=False)
    root: str = field(init=False)
    versions: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.filesystem, self.root, self.uri = locate(self.uri)
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._checked: set[str] = set()

    # ---- paths and files

    def path(self, table: str) -> str:
        """The table's address for Spark."""
        return f"{self.uri.rstrip('/')}/{table}"

    def folder(self, *names: str) -> str:
        """A path within the lake on `filesystem`."""
        return "/".join([self.root.rstrip("/"), *names])

    def exists(self, table: str) -> bool:
        with self._lock:
            if table in self._known:
                return True
        found = self.filesystem.get_file_info(self.folder(table, "_delta_log", f"{0:020d}.json")).type != pafs.FileType.NotFound
        if not found:  # cleaned logs keep a checkpoint only
            found = bool(self._log_entries(table))
        if found:
            with self._lock:
                self._known.add(table)
        return found

    def _log_entries(self, table: str) -> list[pafs.FileInfo]:
        return self.filesystem.get_file_info(pafs.FileSelector(self.folder(table, "_delta_log"), allow_not_found=True))

    def snapshot(self, table: str, version: int | None = None) -> Any:
        """deltalake's table at a version (reads the log only, no JVM); None where the table does not exist."""
        if not self.exists(table):
            return None
        import deltalake

        location = self.folder(table) if isinstance(self.filesystem, pafs.LocalFileSystem) else self.path(table)
        snapshot = deltalake.DeltaTable(location, version=version, storage_options=storage_options(self.uri))
        if table not in self._checked:
            check_readable(table, snapshot)
            self._checked.add(table)
        return snapshot

    def add_actions(self, table: str, version: int | None = None) -> pa.Table | None:
        """One row per file of a version: ``path``, ``size_bytes``, ``num_records``, ``min.*``, ``max.*`` (flattened)."""
        snapshot = self.snapshot(table, version)
        if snapshot is None:
            return None
        return pa.table(snapshot.get_add_actions(flatten=True))

    def files(self, table: str, version: int | None = None, prune: Callable[[dict[str, Any]], bool] | None = None) -> list[str]:
        """Paths (on `filesystem`) of a version's files; ``prune(statistics) -> keep`` sees ``min.<column>`` and ``max.<column>``."""
        return [action["path"] for action in self.actions(table, version) if prune is None or prune(action)]

    def read(self, table: str, columns: Sequence[str], where: pc.Expression | None = None, files: Sequence[str] | None = None) -> pa.Table:
        """Columns of the current version (or of ``files``) as one Arrow table, rows filtered by ``where``. For narrow look-ups."""
        schema = TABLES[table].arrow()
        paths = self.files(table) if files is None else list(files)
        if not paths:
            return pa.schema([schema.field(name) for name in columns]).empty_table()
        dataset = pads.dataset(
            paths, schema=pa.schema([field.with_nullable(True) for field in schema]), format="parquet", filesystem=self.filesystem
        )
        return dataset.to_table(columns=list(columns), filter=where)

    def frame(self, table: str) -> DataFrame:
        return self.spark.read.format("delta").load(self.path(table))

    # ---- creation

    def ensure(self, tables: Iterable[str]) -> None:
        """Creates the tables that are missing; refuses those of a newer major version (`check_readable`)."""
        for table in tables:
            if self.exists(table):
                self.snapshot(table)
                continue
            first_commit(self, table)
            with self._lock:
                self._known.add(table)

    # ---- writing

    def write_file(self, table: str, batches: Iterable[pa.RecordBatch] | pa.Table, name: str) -> DataFile | None:
        """Writes one Parquet file into the table's folder without committing it; None when there is no row."""
        definition = TABLES[table]
        data = batches if isinstance(batches, pa.Table) else pa.Table.from_batches(list(batches), definition.arrow())
        if data.num_rows == 0:
            return None
        self.filesystem.create_dir(self.folder(table), recursive=True)
        return write_parquet(self.filesystem, self.folder(table, name), data, name, definition.names)

    def transact(
        self,
        table: str,
        build: Callable[[int], tuple[Sequence[DataFile], Sequence[DataFile]]] | Sequence[DataFile],
        app: str | None = None,
        metadata: str = "",
        reads: bool = False,
    ) -> int | None:
        """One Delta transaction: adds files (and removes some); retried on conflict. Returns the version, None when nothing was to be done.

        build : files to add, or read version -> (files to add, files to remove)
        app : idempotence and fencing: a transaction with this application id commits at most once in the table's life
        reads : the transaction read the whole table, so any concurrent change conflicts and it is built again
        """
        spark, jvm = self.spark, self.spark._jvm
        delta = jvm.org.apache.spark.sql.delta

        def attempt() -> int | None:
            log = delta.DeltaLog.forTable(spark._jsparkSession, self.path(table))
            transaction = log.startTransaction()
            if app is not None:
                # txnVersion(app) would reconstruct the table's state in a Spark job (0.5 s); the log alone answers in milliseconds.
                # Registered as read, a concurrent commit of the same application id still conflicts.
                transaction.readTxn().addOne(app)
                if self.committed(table, app, transaction.readVersion()):
                    return None
            if reads:
                transaction.readWholeTable()
            adds, removes = build(transaction.readVersion()) if callable(build) else (build, ())
            if not adds and not removes and app is None:
                return None
            actions = jvm.java.util.ArrayList()
            if app is not None:
                actions.add(
                    delta.actions.Action.fromJson(json.dumps({"txn": {"appId": app, "version": 1, "lastUpdated": int(time.time() * 1000)}}))
                )
            for file in adds:
                actions.add(delta.actions.Action.fromJson(file.add()))
            for file in removes:
                actions.add(delta.actions.Action.fromJson(file.remove()))
            none = jvm.scala.Option.empty()
            said = jvm.scala.Option.apply(metadata) if metadata else none
            write = getattr(delta, "DeltaOperations$Write")(jvm.org.apache.spark.sql.SaveMode.Append, none, none, said)
            sequence = jvm.scala.jdk.javaapi.CollectionConverters.asScala(actions).toSeq()
            return int(transaction.commit(sequence, write))

        version = retry(attempt)
        if version is not None:
            with self._lock:
                self.versions[table] = max(version, self.versions.get(table, -1))
        return version

    def committed(self, table: str, app: str, version: int | None = None) -> bool:
        """Whether a transaction with this application id is in the table's log."""
        snapshot = self.snapshot(table, version)
        return snapshot is not None and snapshot.transaction_version(app) is not None

    def rewrite(
        self,
        table: str,
        change: Callable[[pa.Table], pa.Table],
        column: str,
        values: Iterable[str],
        new: Callable[[], Sequence[DataFile]] = lambda: (),
    ) -> None:
        """Changes or removes rows, file by file (copy on write), in one transaction; rare: roll-back, late slices, labels that waited.

        change : all rows of a file -> its rows afterwards (the same object: untouched)
        column, values : only files whose statistics admit one of the values are read
        new : files to add besides, written anew at every attempt
        """
        wanted = sorted(set(values))
        if not self.exists(table):
            return

        def build(version: int) -> tuple[list[DataFile], list[DataFile]]:
            adds, removes = list(new()), []
            for action in admitted(self.actions(table, version), column, wanted):
                before = pads.dataset(action["path"], schema=TABLES[table].arrow(), format="parquet", filesystem=self.filesystem).to_table()
                after = change(before)
                if after is before:
                    continue
                file = self.write_file(table, after.cast(before.schema), f"part-{uuid.uuid4().hex}.parquet")
                adds += [file] if file else []
                removes.append(DataFile(action["relative"], action["size_bytes"], before.num_rows, ""))
            return adds, removes

        self.transact(table, build, metadata=self.user_metadata(rewrite=True), reads=True)

    def actions(self, table: str, version: int | None = None) -> list[dict[str, Any]]:
        """One entry per file of a version: ``path`` (on `filesystem`), ``relative``, ``size_bytes``, ``num_records``, ``min.*``, ``max.*``."""
        found = self.add_actions(table, version)
        if found is None:
            return []
        keep = [name for name in found.column_names if name in ("path", "size_bytes", "num_records") or name.startswith(("min.", "max."))]
        rows = found.select(keep).to_pylist()
        return [{**row, "relative": row["path"], "path": self._absolute(table, row["path"])} for row in rows]

    def _absolute(self, table: str, path: str) -> str:
        return path if "://" in path or path.startswith("/") else self.folder(table, path)

    def filesystem_delete(self, folder: str) -> None:
        """Deletes a private folder, if it is there."""
        if self.filesystem.get_file_info(folder).type == pafs.FileType.Directory:
            self.filesystem.delete_dir(folder)

    def user_metadata(self, **said: Any) -> str:
        from medspark import __version__

        return json.dumps({"medspark": __version__, **said}, sort_keys=True)


def retry(action: Callable[[], Any], attempts: int = ATTEMPTS) -> Any:
    """Runs a Delta write again when another writer was faster; every other error rises."""
    for attempt in range(attempts):
        try:
            return action()
        except Exception as error:  # conflicts reach Python as several classes, some of them only named in the text
            if not any(word in str(error)[:2000] for word in RETRYABLE) or attempt == attempts - 1:
                raise
            time.sleep(min(0.05 * 1.3**attempt, 3.0) * (0.5 + os.urandom(1)[0] / 255))
    raise AssertionError("unreachable")


def write_parquet(filesystem: pafs.FileSystem, path: str, data: pa.Table, relative: str, names: Sequence[str]) -> DataFile:
    with filesystem.open_output_stream(path) as stream:
        collector: list[pq.FileMetaData] = []
        writer = pq.ParquetWriter(stream, data.schema, compression="zstd", metadata_collector=collector)
        writer.write_table(data, row_group_size=65_536)
        writer.close()
    size = filesystem.get_file_info(path).size
    return DataFile(relative, size, data.num_rows, statistics(collector[0], names[:INDEXED_COLUMNS]))


def first_commit(lake: Lake, table: str) -> None:
    """Creates a table by its first log entry (protocol, metadata, clustering), as CREATE TABLE ... CLUSTER BY would write it.

    CREATE TABLE through SQL takes about a second a table; this takes milliseconds, and two jobs that create at once agree: the log store
    writes an entry only if none is there.
    """
    definition = TABLES[table]
    now = int(time.time() * 1000)
    features = ["appendOnly", "invariants"] + (["domainMetadata", "clustering"] if definition.cluster_by else [])
    actions: list[dict[str, Any]] = [
        {
            "commitInfo": {
                "timestamp": now,
                "operation": "CREATE TABLE",
                "operationParameters": {},
                "isBlindAppend": True,
                "txnId": str(uuid.uuid4()),
            }
        },
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": features}},
        {
            "metaData": {
                "id": str(uuid.uuid4()),
                "name": None,
                "description": definition.doc,
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps(definition.json()),
                "partitionColumns": [],
                "configuration": PROPERTIES,
                "createdTime": now,
            }
        },
    ]
    if definition.cluster_by:
        domain = {"clusteringColumns": [[name] for name in definition.cluster_by], "domainName": "delta.clustering"}
        actions.append({"domainMetadata": {"domain": "delta.clustering", "configuration": json.dumps(domain), "removed": False}})
    # A table's checksum spares every later commit a Spark job that would count what this entry says: nothing.
    checksum = {
        "txnId": actions[0]["commitInfo"]["txnId"],
        "tableSizeBytes": 0,
        "numFiles": 0,
        "numMetadata": 1,
        "numProtocol": 1,
        "domainMetadata": [action["domainMetadata"] for action in actions if "domainMetadata" in action],
        "metadata": actions[2]["metaData"],
        "protocol": actions[1]["protocol"],
        "allFiles": [],
    }
    name = f"{0:020d}"
    if put_if_absent(lake, lake.folder(table, "_delta_log"), f"{name}.json", "".join(json.dumps(action) + "\n" for action in actions)):
        put_if_absent(lake, lake.folder(table, "_delta_log"), f"{name}.crc", json.dumps(checksum) + "\n")


def check_readable(table: str, snapshot: Any) -> None:
    """Refuses a table of a newer major schema, and one whose files alone do not tell its rows (deletion vectors, column mapping)."""
    configuration = snapshot.metadata().configuration
    theirs = configuration.get("medspark.schema") or SCHEMA_VERSION
    if int(theirs.split(".")[0]) > int(SCHEMA_VERSION.split(".")[0]):
        raise BadRequest(
            f"table {table} was written by a newer medspark (schema {theirs}, this one reads {SCHEMA_VERSION}); upgrade medspark"
        )
    features = set(snapshot.protocol().reader_features or ())
    mapped = configuration.get("delta.columnMapping.mode", "none") != "none"
    if mapped or "deletionVectors" in features or configuration.get("delta.enableDeletionVectors") == "true":
        raise BadRequest(
            f"table {table} has deletion vectors or column mapping, with which its file list does not tell its rows; rewrite it without"
        )


def put_if_absent(lake: Lake, folder: str, name: str, text: str) -> bool:
    """Writes a log file unless it is there; False when another writer was first. Atomic, as Delta asks of its log stores."""
    lake.filesystem.create_dir(folder, recursive=True)
    if isinstance(lake.filesystem, pafs.LocalFileSystem):
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
        with open(temporary, "x", encoding="utf-8") as stream:
            stream.write(text)
        try:
            os.link(temporary, f"{folder}/{name}")
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        return True
    jvm, spark = lake.spark._jvm, lake.spark
    table = folder.rsplit("/", 2)[-2]
    log = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(spark._jsparkSession, lake.path(table))
    lines = jvm.java.util.ArrayList()
    for line in text.splitlines():
        lines.add(line)
    iterator = jvm.scala.jdk.javaapi.CollectionConverters.asScala(lines.iterator())
    try:
        log.store().write(jvm.org.apache.hadoop.fs.Path(log.logPath(), name), iterator, False, log.newDeltaHadoopConf())
    except Exception as error:
        if "FileAlreadyExists" not in str(error):
            raise
        return False
    return True


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


def storage_options(uri: str) -> dict[str, str] | None:
    """What deltalake needs to open the lake; credentials come from the environment, as for Arrow."""
    return None if "://" not in uri else {}


def admitted(actions: Iterable[dict[str, Any]], column: str, values: Sequence[str]) -> list[dict[str, Any]]:
    """The files (see `Lake.actions`) whose statistics of ``column`` admit one of the values; files without statistics are admitted."""

    def admits(action: dict[str, Any]) -> bool:
        low, high = action.get(f"min.{column}"), action.get(f"max.{column}")
        return low is None or high is None or any(low <= value <= high for value in values)

    return [action for action in actions if admits(action)]


def batches_of(filesystem: pafs.FileSystem, paths: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Record batches of Parquet files, one row group at a time."""
    for path in paths:
        with filesystem.open_input_file(path) as stream:
            yield from pq.ParquetFile(stream).iter_batches(batch_size=16_384)
