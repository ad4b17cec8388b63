"""SQL over a lake: its tables as views of a Spark session, and functions over label pixels.

``mask_area(mask, codec, rows, cols)`` counts mask pixels; ``mask_at(mask, codec, rows, cols, row, col)`` says whether one pixel is inside.
Both are vectorised (Arrow in, numpy inside), null in gives null out, and agree with the measured columns of ``labels`` (tested).
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import pandas_udf

from medspark.errors import BadRequest
from medspark.lake.store import Lake
from medspark.pixels import masks
from medspark.tables.catalog import TABLES


def register(spark: SparkSession, uri: str) -> Lake:
    """Temporary views named as the tables, and the mask functions; raises `BadRequest` where there is no lake."""
    lake = Lake(spark, uri)
    found = [name for name in TABLES if lake.exists(name)]
    if not found:
        raise BadRequest(f"--lake {uri}: no lake there")
    for name in found:
        lake.frame(name).createOrReplaceTempView(name)
    spark.udf.register("mask_area", pandas_udf(mask_area, "long"))
    spark.udf.register("mask_at", pandas_udf(mask_at, "boolean"))
    return lake


def _mask(mask: object, codec: object, rows: object, cols: object):  # type: ignore[no-untyped-def]
    """The mask as bool array (fractional ones: above 0), or None."""
    if mask is None or codec is None or pd.isna(rows) or pd.isna(cols):
        return None
    unpack = masks.unpack if codec == "bits-zstd" else masks.unpack_u8
    return unpack(bytes(mask), int(rows), int(cols)) > 0  # type: ignore[arg-type, call-overload]


def mask_area(mask: pd.Series, codec: pd.Series, rows: pd.Series, cols: pd.Series) -> pd.Series:
    """Pixels in the mask."""
    found = (_mask(*values) for values in zip(mask, codec, rows, cols, strict=True))
    return pd.Series([None if one is None else int(one.sum()) for one in found], dtype="Int64")


def mask_at(mask: pd.Series, codec: pd.Series, rows: pd.Series, cols: pd.Series, row: pd.Series, col: pd.Series) -> pd.Series:
    """Whether the pixel (row, col) is in the mask; false outside the image."""

    def answers() -> Iterator[bool | None]:
        for mask_, codec_, rows_, cols_, row_, col_ in zip(mask, codec, rows, cols, row, col, strict=True):
            one = _mask(mask_, codec_, rows_, cols_)
            if one is None or pd.isna(row_) or pd.isna(col_):
                yield None
            else:
                inside = 0 <= row_ < one.shape[0] and 0 <= col_ < one.shape[1]
                yield bool(inside and one[int(row_), int(col_)])

    return pd.Series(list(answers()), dtype="boolean")


def query(spark: SparkSession, text: str) -> DataFrame:
    """A query's frame; a query that Spark cannot analyse is a `BadRequest` with Spark's first sentence."""
    from pyspark.errors import AnalysisException, ParseException

    try:
        return spark.sql(text)
    except (AnalysisException, ParseException) as error:
        raise BadRequest(str(error).split("\n", 1)[0].strip()) from None
