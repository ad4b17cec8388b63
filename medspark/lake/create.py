"""A table's first log entry, and what is refused when a table is opened."""

from __future__ import annotations

import json
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.tables.catalog import SCHEMA_VERSION, TABLES
from medspark.tables.schema import Table

if TYPE_CHECKING:
    from medspark.lake.store import Lake

PROPERTIES = {
    "delta.enableDeletionVectors": "false",  # readers open files by the list of one version: a vector would resurrect rows
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.setTransactionRetentionDuration": "interval 90 days",
    "delta.checkpointInterval": "50",
    "medspark.schema": SCHEMA_VERSION,
}


CLAIMS_PROPERTIES = {"delta.logRetentionDuration": "interval 1 days", "delta.deletedFileRetentionDuration": "interval 1 days"}
"""Claims are renewed three times a minute and nobody asks for their past."""


def first_commit(lake: Lake, table: str, definition: Table | None = None) -> None:
    """Creates a table (of the catalogue, or of another ``definition``) by its first log entry (protocol, metadata, clustering), as CREATE TABLE ... CLUSTER BY would write it.

    CREATE TABLE through SQL takes about a second a table; this takes milliseconds, and two jobs that create at once agree: the log store
    writes an entry only if none is there.
    """
    definition = definition or TABLES[table]
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
                "configuration": {**PROPERTIES, **(CLAIMS_PROPERTIES if table == "claims" else {})},
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
