"""The lake in DuckDB: tables as views over the file lists of one version each, the same views and functions as in Spark. No JVM.

DuckDB reads the files itself and prunes by their footers, which it keeps between queries. On file systems that it cannot read without
downloading an extension, tables are Arrow data sets, which prune by Delta's statistics.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.lake.views import VIEWS
from medspark.pixels.functions import FUNCTIONS, Function
from medspark.tables.catalog import TABLES
from medspark.tables.schema import arrow_type

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from medspark.lake.store import Lake

TYPES = {
    "binary": "BLOB",
    "boolean": "BOOLEAN",
    "double": "DOUBLE",
    "int": "INTEGER",
    "long": "BIGINT",
    "string": "VARCHAR",
    "array<int>": "INTEGER[]",
    "map<string,string>": "MAP(VARCHAR, VARCHAR)",
}
"""DuckDB's words for the types of functions' arguments and answers."""
GLOB = frozenset("*?[]{}")  # DuckDB takes these in a path for patterns, and has no escape for them


def connect(lake: Lake, files: Mapping[str, Sequence[dict[str, Any]]], data_set: Callable[[str], pads.Dataset]) -> DuckDBPyConnection:
    """A connection in which every table, view and function of the lake stands under its name.

    files : table -> `Lake.listed` of the version to read; a table that is missing or has no file is empty
    data_set : table -> the same as an Arrow data set
    """
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET autoinstall_known_extensions = false")  # nothing is downloaded behind the user's back
    connection.execute("SET parquet_metadata_cache = true")  # the files of a version never change
    connection.execute("SET timezone = 'UTC'")
    for name, definition in TABLES.items():
        listed = files.get(name, ())
        if not listed:
            connection.register(name, definition.arrow().empty_table())
        elif isinstance(lake.filesystem, pafs.LocalFileSystem) and not GLOB & set(lake.root):
            connection.execute(f"CREATE VIEW {name} AS {_selected(lake, connection, name, listed)}")
        else:
            connection.register(name, data_set(name))
    connection.execute("CREATE MACRO explode(list) AS unnest(list)")
    for view in VIEWS:
        connection.execute(f"CREATE VIEW {view.name} AS {view.text}")
    for function in FUNCTIONS:
        _create(connection, function)
    return connection


def _selected(lake: Lake, connection: DuckDBPyConnection, table: str, listed: Sequence[dict[str, Any]]) -> str:
    """The query behind a table's view; columns that an older release did not write are null."""
    paths = "[" + ", ".join("'" + file["path"].replace("'", "''") + "'" for file in listed) + "]"
    columns = ", ".join(TABLES[table].names)
    oldest = min(listed, key=lambda file: file["modification_time"])
    with lake.filesystem.open_input_file(oldest["path"]) as stream:
        written = set(pq.read_schema(stream).names)
    if written >= set(TABLES[table].names):
        return f"SELECT {columns} FROM read_parquet({paths})"
    connection.register(f"_no_{table}", TABLES[table].arrow().empty_table())
    united = f"SELECT * FROM read_parquet({paths}, union_by_name = true) UNION ALL BY NAME SELECT * FROM _no_{table}"
    return f"SELECT {columns} FROM ({united})"


def _create(connection: DuckDBPyConnection, function: Function) -> None:
    returns = arrow_type(function.returns)

    def over(*columns: pa.ChunkedArray) -> pa.Array:
        return pa.array([function(*values) for values in zip(*(_plain(column) for column in columns), strict=True)], returns)

    # DuckDB counts a function's parameters by its signature.
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name, _ in function.arguments]
    over.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    types = [TYPES[kind] for _, kind in function.arguments]
    name = f"_{function.name}" if function.optional else function.name
    connection.create_function(name, over, types, TYPES[function.returns], type="arrow", null_handling="special")
    if function.optional:  # DuckDB overloads macros, not Python's functions
        names = [name for name, _ in function.arguments]
        shapes = []
        for left_out in range(function.optional, -1, -1):
            given = names[: len(names) - left_out]
            passed = [*given, *["NULL"] * left_out]
            shapes.append(f"({', '.join(given)}) AS {name}({', '.join(passed)})")
        connection.execute(f"CREATE MACRO {function.name} {', '.join(shapes)}")


def _plain(column: Any) -> list[Any]:
    values = column.to_pylist()
    return [None if value is None else dict(value) for value in values] if pa.types.is_map(column.type) else values


def query(connection: DuckDBPyConnection, text: str) -> pa.Table:
    """A query's answer; one that DuckDB cannot analyse is a `BadRequest` with DuckDB's first sentence."""
    import duckdb

    try:
        relation = connection.sql(text)
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, duckdb.NotImplementedException) as error:
        raise BadRequest(str(error).split("\n", 1)[0].strip()) from None
    return pa.table({}) if relation is None else relation.to_arrow_table()
