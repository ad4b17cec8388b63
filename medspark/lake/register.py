"""A lake's tables and views in Spark's catalogue, under a database's name.

Where Spark has a Hive metastore (``spark.sql.catalogImplementation = hive``, as clusters have), it keeps them. On one machine it has none: the
embedded one (Derby) admits one process at a time. So the statements themselves are kept, one file per database, and each `spark-sql` runs
them into a catalogue of its own when it starts (conf/spark-env.sh collects those whose lake is there). Any number may run at once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medspark.errors import BadRequest
from medspark.lake.store import Lake
from medspark.lake.views import VIEWS, View, empty
from medspark.tables.catalog import TABLES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
HEAD = "-- medspark lake: "
"""First line of a kept file, before the lake's address; conf/spark-env.sh looks for it."""
NO_STRAY_TABLES = "spark.databricks.delta.createEmptySchemaTable.enabled"
"""Off (conf/spark-defaults.conf for spark-sql), Delta refuses CREATE TABLE where no table lies; on, it would begin an empty one there."""


@dataclass(frozen=True)
class Registered:
    """tables, views : names within the database;  absent : tables that the lake does not have, registered without rows
    kept : the file that holds the statements, None where a metastore keeps the database"""

    tables: tuple[str, ...]
    views: tuple[str, ...]
    absent: tuple[str, ...]
    kept: Path | None


def check(database: str) -> str:
    """The name, if it can be one of a database: else `BadRequest`."""
    if not NAME.fullmatch(database):
        raise BadRequest(f"--database {database}: expected letters, digits and _, a letter first")
    return database


def folder() -> Path:
    """Where statements are kept: ``$XDG_CONFIG_HOME/medspark/sql``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "medspark" / "sql"


def register(spark: SparkSession, lake: Lake, database: str, keep: bool = True) -> Registered:
    """Puts all tables and views into the session's catalogue, and keeps the statements where that catalogue ends with the session.

    Tables that the lake lacks are begun, so that a view says the truth also after they have got rows; in a lake that cannot be written
    they stand as views without rows. Registering again changes nothing, or points the database at another lake; data are never touched.
    Raises `BadRequest` where the database holds a table of one of these names that is not a lake's.
    """
    check(database)
    absent = _begun(lake)
    lasting = spark.conf.get("spark.sql.catalogImplementation") == "hive"
    where = None if lasting else folder() / "warehouse" / database
    head = _database(lake, database, where)
    creation = [*_tables(lake, database, absent), *(_view(view, database) for view in VIEWS)]
    spark.sql(head)
    _make_room(spark, lake, database, absent)
    stray = spark.conf.get(NO_STRAY_TABLES, None)
    spark.conf.set(NO_STRAY_TABLES, "false")
    try:
        for statement in creation:
            spark.sql(statement)
    finally:
        spark.conf.unset(NO_STRAY_TABLES) if stray is None else spark.conf.set(NO_STRAY_TABLES, stray)
    kept = _keep(lake, database, [head, *creation]) if keep and not lasting else None
    names = tuple(name for name in TABLES if name not in absent)
    return Registered(names, tuple(view.name for view in VIEWS), absent, kept)


def _begun(lake: Lake) -> tuple[str, ...]:
    """Creates the tables that the lake lacks; returns those that it cannot create because the lake is read-only."""
    missing = [name for name in TABLES if not lake.exists(name)]
    try:
        lake.ensure(missing)
    except OSError as error:
        if not isinstance(error, PermissionError) and "Read-only" not in str(error):
            raise
    return tuple(name for name in missing if not lake.exists(name))


def _database(lake: Lake, database: str, where: Path | None) -> str:
    at = f" LOCATION {literal(str(where))}" if where else ""
    return f"CREATE DATABASE IF NOT EXISTS {database} COMMENT {literal('medspark lake ' + lake.uri)}{at}"


def _tables(lake: Lake, database: str, absent: tuple[str, ...]) -> list[str]:
    """Comments of tables and columns come from Delta's own log."""
    tables = [
        f"CREATE TABLE IF NOT EXISTS {database}.{name} USING delta LOCATION {literal(lake.path(name))}"
        for name in TABLES
        if name not in absent
    ]
    return tables + [f"CREATE OR REPLACE VIEW {database}.{name} AS {empty(TABLES[name])}" for name in absent]


def _view(view: View, database: str) -> str:
    columns = ", ".join(f"{item.name} COMMENT {literal(item.doc)}" for item in view.items)
    text = " ".join(view.within(database).split())
    return f"CREATE OR REPLACE VIEW {database}.{view.name} ({columns}) COMMENT {literal(view.doc)} AS {text}"


def _make_room(spark: SparkSession, lake: Lake, database: str, absent: tuple[str, ...]) -> None:
    """Takes out of the database what another lake, or another state of this one, had put there under our names."""
    theirs = {table.name: table for table in spark.catalog.listTables(database) if not table.isTemporary}
    for name in TABLES:
        if name not in theirs:
            continue
        if theirs[name].tableType == "VIEW":
            if name not in absent:
                spark.sql(f"DROP VIEW {database}.{name}")
            continue
        said = {row["col_name"]: row["data_type"] for row in spark.sql(f"DESCRIBE TABLE EXTENDED {database}.{name}").collect()}
        if theirs[name].tableType != "EXTERNAL" or "medspark.schema=" not in said.get("Table Properties", ""):
            raise BadRequest(f"--database {database}: its table {name} is not a lake's; choose another database")
        if name in absent or said["Location"].removeprefix("file:") != lake.path(name):
            spark.sql(f"DROP TABLE {database}.{name}")  # external: the data stay


def _keep(lake: Lake, database: str, statements: list[str]) -> Path:
    path = folder() / f"{database}.sql"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(f"{HEAD}{lake.uri}\n" + "".join(f"{statement};\n" for statement in statements), encoding="utf-8")
    part.replace(path)
    return path


def literal(text: str) -> str:
    """A SQL string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
