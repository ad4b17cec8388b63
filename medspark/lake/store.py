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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow import fs as pafs

from medspark.lake.create import check_readable, first_commit
from medspark.lake.files import DataFile, admitted, locate, storage_options, write_parquet
from medspark.tables.catalog import TABLES

if TYPE_CHECKING:  # reading needs no Spark: neither `open_lake` nor `status` imports it
    from pyspark.sql import DataFrame, SparkSession

FEW_FILES = 128  # of a version; with more of them Delta's statistics, which skip files, are worth their price
RETRYABLE = ("Concurrent", "ProtocolChanged", "MetadataChanged", "FileAlreadyExists")
S3 = ("s3a", "s3")  # whose client replaces a file without asking, where every other file system refuses to create it twice
ATTEMPTS = 40  # with the pauses below about a minute: longer than any commit that another job may be making


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

    @property
    def excludes_writers(self) -> bool:
        """Whether no two writers can commit the same version: everywhere but on S3 without a log store that keeps them apart.

        Delta's default there (S3SingleDriverLogStore) excludes the threads of one driver only; another store is taken at its word.
        """
        scheme = self.uri.partition("://")[0]
        if scheme not in S3:
            return True
        chosen = [
            str(self.spark.conf.get(name, "") or "") for name in (f"spark.delta.logStore.{scheme}.impl", "spark.delta.logStore.class")
        ]
        return any(name and not name.endswith("S3SingleDriverLogStore") for name in chosen)

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

    def files(self, table: str, version: int | None = None) -> list[str]:
        """Paths (on `filesystem`) of a version's files."""
        return [action["path"] for action in self.actions(table, version)]

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

    def scan(self, table: str, columns: Sequence[str], where: pc.Expression | None = None) -> Iterator[pa.RecordBatch]:
        """The same, batch by batch: for tables that may outgrow memory."""
        paths = self.files(table) if self.exists(table) else []
        if paths:
            schema = pa.schema([field.with_nullable(True) for field in TABLES[table].arrow()])
            dataset = pads.dataset(paths, schema=schema, format="parquet", filesystem=self.filesystem)
            yield from dataset.to_batches(columns=list(columns), filter=where)

    def frame(self, table: str, version: int | None = None) -> DataFrame:
        """The table in Spark. A version with few files is read by their list: Delta's own snapshot of it would cost every query a Spark job."""
        if version is None:
            return self.spark.read.format("delta").load(self.path(table))
        listed = self.actions(table, version)
        if len(listed) > FEW_FILES:
            return self.spark.read.format("delta").option("versionAsOf", str(version)).load(self.path(table))
        from pyspark.sql.types import StructType

        schema = StructType.fromJson(TABLES[table].json())
        if not listed:
            return self.spark.createDataFrame([], schema)
        paths = [f"{self.path(table)}/{action['relative']}" for action in listed]
        return self.spark.read.schema(schema).option("__globPaths__", "false").parquet(*paths)

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
        data_change: bool = True,
        properties: Mapping[str, str] | None = None,
    ) -> int | None:
        """One Delta transaction: adds files (and removes some); retried on conflict. Returns the version, None when nothing was to be done.

        build : files to add, or read version -> (files to add, files to remove)
        app : idempotence and fencing: a transaction with this application id commits at most once in the table's life
        reads : the transaction read the whole table, so any concurrent change conflicts and it is built again
        data_change : False where the same rows only move into other files
        properties : of the table, set in the same commit
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
            if not adds and not removes and app is None and not properties:
                return None
            actions = jvm.java.util.ArrayList()
            if app is not None:
                actions.add(
                    delta.actions.Action.fromJson(json.dumps({"txn": {"appId": app, "version": 1, "lastUpdated": int(time.time() * 1000)}}))
                )
            for file in adds:
                actions.add(delta.actions.Action.fromJson(file.add(data_change)))
            for file in removes:
                actions.add(delta.actions.Action.fromJson(file.remove(data_change)))
            if properties:
                said = json.loads(transaction.metadata().json())
                said["metaData"]["configuration"] = {**said["metaData"].get("configuration", {}), **properties}
                actions.add(delta.actions.Action.fromJson(json.dumps(said)))
            none = jvm.scala.Option.empty()
            user = jvm.scala.Option.apply(metadata) if metadata else none
            write = getattr(delta, "DeltaOperations$Write")(jvm.org.apache.spark.sql.SaveMode.Append, none, none, user)
            sequence = jvm.scala.jdk.javaapi.CollectionConverters.asScala(actions).toSeq()
            return int(transaction.commit(sequence, write))

        version = retry(attempt)
        if version is not None:
            with self._lock:
                self.versions[table] = max(version, self.versions.get(table, -1))
        return version

    def warm(self, table: str) -> None:
        """Opens a table in the JVM, on a thread of its own: Delta's classes load (a second) while the scan's tasks work."""
        log = self.spark._jvm.org.apache.spark.sql.delta.DeltaLog
        threading.Thread(target=lambda: log.forTable(self.spark._jsparkSession, self.path(table)).startTransaction(), daemon=True).start()

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
        """One entry per file of a version: ``path`` (on `filesystem`), ``relative``, ``size_bytes``, ``num_records``, ``modification_time`` (ms),
        ``min.*``, ``max.*``, ``null_count.*``."""
        snapshot = self.snapshot(table, version)
        return [] if snapshot is None else self.listed(table, snapshot)

    def listed(self, table: str, snapshot: Any) -> list[dict[str, Any]]:
        """The same, of a snapshot that is open."""
        found = pa.table(snapshot.get_add_actions(flatten=True))
        kept = ("path", "size_bytes", "num_records", "modification_time")
        keep = [name for name in found.column_names if name in kept or name.startswith(("min.", "max.", "null_count."))]
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
