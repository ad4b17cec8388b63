"""SQL over a lake in a Spark session: its tables and views by their names, and the functions over masks and payload.

What the functions say is in ``medspark.pixels.functions``, what the views say in ``views.py``; here they meet Spark. Functions are vectorised
(Arrow in and out) and run in Python workers, so a session that was started from Python has them, also over JDBC; `spark-sql` has none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import pandas_udf

from medspark.errors import BadRequest
from medspark.lake.store import Lake
from medspark.lake.views import VIEWS, empty
from medspark.pixels.functions import FUNCTIONS, Function
from medspark.tables.catalog import TABLES

NULLABLE = {"long": "Int64", "int": "Int32", "boolean": "boolean"}
"""pandas' types that hold null beside whole numbers and truth values."""


def register(spark: SparkSession, uri: str, tables: Collection[str] = tuple(TABLES), versions: Mapping[str, int] | None = None) -> Lake:
    """Temporary views named as the tables and views, and the functions; raises `BadRequest` where there is no lake.

    tables : those that are wanted (`named`), and the views over them;  versions : table -> the version that its view shows, else the current one
    """
    lake = opened(spark, uri)
    for name, definition in TABLES.items():
        if name in tables:
            frame = lake.frame(name, (versions or {}).get(name)) if lake.exists(name) else spark.sql(empty(definition))
            frame.createOrReplaceTempView(name)
    for view in VIEWS:
        if view.tables <= set(tables):
            spark.sql(view.text).createOrReplaceTempView(view.name)
    register_functions(spark)
    return lake


def named(text: str) -> set[str]:
    """Tables whose names a query holds, also by way of a view. Too many where a column or a string has a table's name, never too few."""
    words = set(re.findall(r"[a-z_]+", text.lower()))
    through = [view.tables for view in VIEWS if view.name in words]
    return (words & set(TABLES)).union(*through)


def opened(spark: SparkSession | None, uri: str) -> Lake:
    """The lake, which is there: else `BadRequest`."""
    lake = Lake(spark, uri)  # type: ignore[arg-type]  # without a session: to look only
    if not any(lake.exists(name) for name in TABLES):
        raise BadRequest(f"--lake {uri}: no lake there")
    return lake


def register_functions(spark: SparkSession) -> None:
    for function in FUNCTIONS:
        spark.udf.register(function.name, pandas_udf(vectorised(function), function.returns))  # type: ignore[call-overload]


def vectorised(function: Function):  # type: ignore[no-untyped-def]
    """The function over columns, null in any needed one giving null."""
    kinds = [kind for _, kind in function.arguments]

    def over(*columns: pd.Series) -> pd.Series:
        function.check(len(columns))
        lists = [[plain(value, kind) for value in column] for column, kind in zip(columns, kinds, strict=False)]
        return pd.Series([function(*values) for values in zip(*lists, strict=True)], dtype=NULLABLE.get(function.returns, object))

    over.__name__ = function.name
    return over


def plain(value: Any, kind: str) -> Any:
    """What Arrow and pandas made of a value, as plain Python; their several nulls as None."""
    if value is None or (np.ndim(value) == 0 and not isinstance(value, (bytes, str, dict)) and pd.isna(value)):
        return None
    if kind == "int":
        return int(value)
    if kind == "double":
        return float(value)
    if kind == "binary":
        return bytes(value)
    return dict(value) if kind.startswith("map") else value


def query(spark: SparkSession, text: str) -> DataFrame:
    """A query's frame; a query that Spark cannot analyse is a `BadRequest` with Spark's first sentence."""
    from pyspark.errors import AnalysisException, ParseException

    try:
        return spark.sql(text)
    except (AnalysisException, ParseException) as error:
        raise BadRequest(str(error).split("\n", 1)[0].strip()) from None
