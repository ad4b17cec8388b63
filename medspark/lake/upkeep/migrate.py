"""Brings the tables of an older release up to the catalogue: columns that were added since, with their comments, and the schema's version.

Nothing needs it to read: a column that a file lacks is null (`Lake.read`, Arrow data sets with the catalogue's schema). But SQL sees only the
columns that Delta's own schema names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from medspark.errors import BadRequest
from medspark.lake.store import Lake, retry
from medspark.tables.catalog import SCHEMA_VERSION, TABLES
from medspark.tables.schema import Column, comment

PROPERTY = "medspark.schema"


def _columns(lake: Lake, table: str) -> list[str]:
    """Columns that Delta's schema of the table names."""
    return [field.name for field in lake.snapshot(table).schema().fields]


def lacking(lake: Lake, table: str) -> list[Column]:
    """Columns of the catalogue that the table does not have yet."""
    there = set(_columns(lake, table))
    return [column for column in TABLES[table].columns if column.name not in there]


def _version(lake: Lake, table: str) -> str:
    return str(lake.snapshot(table).metadata().configuration.get(PROPERTY) or "")


def missing(lake: Lake) -> dict[str, list[str]]:
    """table -> columns that `migrate` would add; tables whose version alone is old have an empty list."""
    found = {}
    for table in TABLES:
        if lake.exists(table):
            columns = [column.name for column in lacking(lake, table)]
            if columns or _version(lake, table) != SCHEMA_VERSION:
                found[table] = columns
    return found


def migrate(lake: Lake) -> dict[str, list[str]]:
    """Adds what is missing, table by table; the property goes last, so that a kill in between is made good by running it again."""
    done = missing(lake)
    for table in done:
        retry(lambda table=table: _bring_up(lake, table))
        version = lake.snapshot(table).version()
        lake.versions[table] = version
    return done


def _bring_up(lake: Lake, table: str) -> None:
    address = "delta.`" + lake.path(table).replace("`", "``") + "`"
    columns = lacking(lake, table)  # asked again at every attempt: another job may have added them
    if columns:
        wrong = [column.name for column in columns if not column.null]
        if wrong:
            raise RuntimeError(f"{table}.{wrong[0]} is new and not nullable; rows that are there have no value for it")
        lake.spark.sql(f"ALTER TABLE {address} ADD COLUMNS ({', '.join(_ddl(columns))})")
    lake.spark.sql(f"ALTER TABLE {address} SET TBLPROPERTIES ('{PROPERTY}' = '{SCHEMA_VERSION}')")


def _ddl(columns: list[Column]) -> Iterator[str]:
    for column in columns:
        yield f"`{column.name}` {column.dtype.replace('long', 'bigint')} COMMENT {json.dumps(comment(column), ensure_ascii=False)}"


def refuse_unknown_columns(lake: Lake) -> None:
    """Raises `BadRequest` where a newer minor release has added columns: rewriting a file by this catalogue would lose them."""
    for table, definition in TABLES.items():
        if lake.exists(table):
            unknown = sorted(set(_columns(lake, table)) - set(definition.names))
            if unknown:
                raise BadRequest(f"table {table} has the column {unknown[0]}, which this medspark does not know; upgrade medspark")
