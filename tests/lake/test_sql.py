"""The SQL functions in Spark: the same as their kernels, null in, null out; views and bad queries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medspark.errors import BadRequest
from medspark.lake import sql
from medspark.pixels import encode, masks
from medspark.pixels.functions import FUNCTIONS
from tests.lake import harness, reading

BY_NAME = {function.name: function for function in FUNCTIONS}


def test_columns_keep_their_nulls() -> None:
    mask = np.random.default_rng(3).random((7, 11)) > 0.6
    packed = [masks.pack(mask), None, masks.pack(~mask), masks.pack(mask)]
    given = [pd.Series(packed, dtype=object), pd.Series([7, 7, 7, np.nan]), pd.Series([11, 11, 11, 11], dtype="Int32")]
    areas = sql.vectorised(BY_NAME["mask_area"])(*given)
    assert areas.tolist() == [mask.sum(), pd.NA, (~mask).sum(), pd.NA]
    inside = sql.vectorised(BY_NAME["mask_at"])(*given, pd.Series([3, 3, 3, 3]), pd.Series([4, 4, 4, 4]))
    assert inside.tolist() == [mask[3, 4], pd.NA, not mask[3, 4], pd.NA]
    with pytest.raises(ValueError, match="4 arguments"):
        sql.vectorised(BY_NAME["mask_area"])(*given, pd.Series([1] * 4))


@pytest.mark.spark
def test_functions_in_spark_are_the_kernels(spark: Any, tmp_path: Path) -> None:
    """Every function over a frame with nulls, through Arrow and Python workers, against its kernel row by row."""
    sql.register_functions(spark)
    rng = np.random.default_rng(5)
    stored = rng.integers(-1000, 1000, (9, 12)).astype(np.int16)
    one, other = (rng.random((9, 12)) > part for part in (0.4, 0.6))
    fractions = rng.integers(0, 256, (9, 12)).astype(np.uint8)
    pixels = {"bytes": encode(stored, "blosc2"), "codec": "blosc2", "dtype": "int16", "shape": [9, 12], "params": {}}
    place = {"rows": 9, "cols": 12, "row": 4, "col": 7, "centre": 10.0, "width": 300.0}
    full = {"mask": masks.pack(one), "a": masks.pack(one), "b": masks.pack_u8(fractions), **pixels, **place}
    rows = [full, {**full, "b": masks.pack(other), "row": 400}, *({**full, name: None} for name in full)]
    types = {name: kind for function in FUNCTIONS for name, kind in function.arguments}
    frame = spark.createDataFrame(
        [tuple(row[name] for name in full) for row in rows], ", ".join(f"`{name}` {types[name]}" for name in full)
    )
    frame.createOrReplaceTempView("given")
    for function in FUNCTIONS:
        for left_out in range(function.optional + 1):
            names = [name for name, _ in function.arguments][: len(function.arguments) - left_out]
            answers = [row[0] for row in spark.sql(f"SELECT {function.name}({', '.join(names)}) FROM given").collect()]
            wanted = [function(*(row[name] for name in names)) for row in rows]
            assert [bytes(one) if isinstance(one, bytearray) else one for one in answers] == wanted, function.name
            assert any(one is None for one in wanted) and wanted[0] is not None
    with pytest.raises(Exception, match="9 x 13 pixels are 15 bytes as bits or 117 as fractions"):
        spark.sql("SELECT mask_area(mask, rows, 13) FROM given WHERE mask IS NOT NULL").collect()


@pytest.mark.spark
def test_functions_agree_with_the_measured_columns(spark: Any, built: reading.Built) -> None:
    sql.register(spark, str(built.uri))
    query = (
        "SELECT count(*), count_if(mask_area(mask, rows, cols) = area_px AND mask_components(mask, rows, cols) = n_components) FROM labels"
    )
    labels, right = sql.query(spark, query).first()
    assert labels == right > 0
    centre = "mask_at(mask, rows, cols, CAST(centroid_row AS INT), CAST(centroid_col AS INT))"
    assert sql.query(spark, f"SELECT DISTINCT {centre} FROM labels").collect() == [(True,)]  # boxes hold their centres


@pytest.mark.spark
def test_views_and_bad_queries(spark: Any, built: reading.Built, tmp_path: Path) -> None:
    sql.register(spark, str(built.uri))
    count = sql.query(spark, "SELECT count(*) FROM slices JOIN series USING (series_id)").first()[0]
    assert count == len(harness.rows(built.uri, "slices"))
    assert sql.query(spark, "SELECT count(*) FROM photos").first()[0] == 0  # a table that this lake does not have
    with pytest.raises(BadRequest, match="nosuch"):
        sql.query(spark, "SELECT nosuch FROM slices")
    with pytest.raises(BadRequest, match="no lake"):
        sql.register(spark, str(tmp_path / "nothing"))


def test_tools_say_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    for tool in ("status", "thrift", "beeline"):
        command = [sys.executable, "-m", "medspark", tool, "--lake", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), tool
        assert "no lake there" in done.stderr
