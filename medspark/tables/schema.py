"""`Column` and `Table`, and their rendering to Spark DDL, Delta's JSON schema and Arrow.

A column's type is written once, in Spark SQL's own words (``array<struct<x:double,y:double>>``); everything else is derived from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

_ARROW = {
    "string": pa.string(),
    "int": pa.int32(),
    "long": pa.int64(),
    "double": pa.float64(),
    "float": pa.float32(),
    "boolean": pa.bool_(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_JSON = {"int": "integer"}  # Spark's JSON schema says "integer"; the rest are spelled as in SQL


@dataclass(frozen=True)
class Column:
    """One column. ``dtype`` in Spark SQL's words, ``null`` whether it may be null, ``unit`` as its name says (``px``, ``mm``, ``um`` ...)."""

    name: str
    dtype: str
    doc: str
    null: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """One Delta table of the lake. ``key`` identifies a row; ``cluster_by`` lays narrow tables out for pruning."""

    name: str
    doc: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    cluster_by: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"{self.name}.{name}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(column.name, arrow_type(column.dtype), nullable=column.null) for column in self.columns])

    def ddl(self) -> str:
        """``name type NOT NULL COMMENT '...'`` of every column, for CREATE TABLE."""
        return ", ".join(
            f"`{column.name}` {column.dtype.replace('long', 'bigint')}{'' if column.null else ' NOT NULL'} COMMENT '{comment(column)}'"
            for column in self.columns
        )

    def json(self) -> dict[str, Any]:
        """Spark's JSON schema, as Delta's ``metaData.schemaString`` holds it."""
        fields = [
            {"name": column.name, "type": json_type(column.dtype), "nullable": column.null, "metadata": {"comment": comment(column)}}
            for column in self.columns
        ]
        return {"type": "struct", "fields": fields}


def comment(column: Column) -> str:
    """The column's documentation with its unit, free of quotes that would end a SQL string."""
    return (column.doc + (f" [{column.unit}]" if column.unit else "")).replace("'", "’")


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside every <...>."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part.strip() for part in [*parts, text[start:]]]


def _inner(dtype: str) -> tuple[str, list[str]]:
    head, _, rest = dtype.partition("<")
    return head, _split(rest[:-1])


def _struct_field(text: str) -> tuple[str, str]:
    name, _, dtype = text.partition(":")
    return name.strip(), dtype.strip()


def arrow_type(dtype: str) -> pa.DataType:
    """The Arrow type of a Spark SQL type; nested values are nullable as Spark writes them."""
    if dtype in _ARROW:
        return _ARROW[dtype]
    head, parts = _inner(dtype)
    if head == "array":
        return pa.list_(pa.field("element", arrow_type(parts[0])))
    if head == "map":
        return pa.map_(arrow_type(parts[0]), arrow_type(parts[1]))
    if head == "struct":
        return pa.struct([pa.field(name, arrow_type(kind)) for name, kind in map(_struct_field, parts)])
    raise ValueError(f"unknown column type {dtype!r}")


def json_type(dtype: str) -> Any:
    if dtype in _ARROW:
        return _JSON.get(dtype, dtype)
    head, parts = _inner(dtype)
    if head == "array":
        return {"type": "array", "elementType": json_type(parts[0]), "containsNull": True}
    if head == "map":
        return {"type": "map", "keyType": json_type(parts[0]), "valueType": json_type(parts[1]), "valueContainsNull": True}
    fields = [{"name": name, "type": json_type(kind), "nullable": True, "metadata": {}} for name, kind in map(_struct_field, parts)]
    return {"type": "struct", "fields": fields}
