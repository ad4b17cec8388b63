"""SQL over label pixels: the functions agree with numpy and with the measured columns; null in, null out."""

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
from medspark.pixels import masks
from tests.lake import harness
from tests.phantoms import series as phantoms


def columns(*found: np.ndarray | None) -> list[pd.Series]:
    packed = [None if mask is None else masks.pack(mask) for mask in found]
    sizes = [(None, None) if mask is None else mask.shape for mask in found]
    return [
        pd.Series(packed, dtype=object),
        pd.Series(["bits-zstd"] * len(found)),
        pd.Series([rows for rows, _ in sizes], dtype="Int32"),
        pd.Series([cols for _, cols in sizes], dtype="Int32"),
    ]


def test_mask_functions_agree_with_numpy() -> None:
    mask = np.random.default_rng(3).random((7, 11)) > 0.6
    given = columns(mask, None, ~mask)
    assert sql.mask_area(*given).tolist()[::2] == [mask.sum(), (~mask).sum()]
    assert sql.mask_area(*given).isna().tolist() == [False, True, False]
    for row, col in ((0, 0), (6, 10), (3, 4)):
        places = [pd.Series([row] * 3, dtype="Int32"), pd.Series([col] * 3, dtype="Int32")]
        answer = sql.mask_at(*given, *places)
        assert [bool(answer[0]), bool(answer[2])] == [bool(mask[row, col]), bool(~mask[row, col])]
        assert pd.isna(answer[1])
    outside = sql.mask_at(*columns(mask), pd.Series([7]), pd.Series([0]))
    assert not outside[0]


@pytest.mark.spark
def test_views_and_bad_queries(spark: Any, tmp_path: Path) -> None:
    harness.run(spark, tmp_path / "lake", [phantoms.write_series(tmp_path / "ct", [0, 2])])
    sql.register(spark, str(tmp_path / "lake"))
    assert sql.query(spark, "SELECT count(*) FROM slices JOIN series USING (series_id)").first()[0] == 2
    with pytest.raises(BadRequest, match="nosuch"):
        sql.query(spark, "SELECT nosuch FROM slices")
    with pytest.raises(BadRequest, match="no lake"):
        sql.register(spark, str(tmp_path / "nothing"))


def test_tools_say_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "medspark", "status", "--lake", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "no lake there" in done.stderr
