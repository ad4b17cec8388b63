"""Annotation files out of the tables of truth: each gets its own rows, and together they cost one reading of the table."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from medspark.lake import files
from medspark.lake.truth import TruthReader
from medspark.tables.catalog import TABLES
from medspark.tables.rows import Rows

LOCAL = pafs.LocalFileSystem()
EVERY = pc.scalar(True)


def planes(sources: list[str], each: int, size: int = 64) -> pa.Table:
    """``each`` planes of every source, of ``size`` bytes, sorted as the table lies."""
    ids = [source for source in sorted(sources) for _ in range(each)]
    places = range(len(ids))
    columns = {
        "plane_id": [f"{place:032x}" for place in places],
        "source_id": ids,
        "ref_image": [f"name:{place % 2}" for place in places],
        "label": ["a"] * len(ids),
        "role": ["positive"] * len(ids),
        "rows": [1] * len(ids),
        "cols": [1] * len(ids),
        "mask_codec": ["bits-zstd"] * len(ids),
        "mask": [np.random.default_rng(place).bytes(size) for place in places],
    }
    return pa.Table.from_batches([Rows("planes", columns).to_arrow("run", "batch")])


def written(path: Path, rows: pa.Table) -> str:
    files.write_parquet(LOCAL, str(path), rows, path.name, TABLES["planes"].names)
    return str(path)


def drawn(count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(count)]


def test_many_small_files_are_read_once_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GROUP_BYTES", 4_096)
    sources = drawn(300)
    rows = planes(sources, 2)
    path = written(tmp_path / "planes.parquet", rows)
    groups = pq.read_metadata(path).num_row_groups
    assert groups > 20
    reader = TruthReader(LOCAL, "planes")
    for source in sorted(sources):
        found = reader.whole([path], source, EVERY)
        assert found.column("plane_id").to_pylist() == rows.filter(pc.field("source_id") == source).column("plane_id").to_pylist()
    assert reader.groups_read <= groups + len(sources) // 50, "not one reading of the table for each annotation file"
    assert reader.whole([path], "0" * 32, EVERY).num_rows == 0
    one = reader.whole([path], sources[0], pc.field("ref_image") == "name:1")
    assert one.num_rows == 1 and one.schema.names == list(TABLES["planes"].names)


def test_one_large_file_comes_row_group_by_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GROUP_BYTES", 4_096)
    rows = planes(["a" * 32], 100)
    paths = [written(tmp_path / "one.parquet", rows.slice(0, 60)), written(tmp_path / "two.parquet", rows.slice(60))]
    pieces = list(TruthReader(LOCAL, "planes")(paths, "a" * 32, EVERY))
    assert len(pieces) > 4 and max(piece.num_rows for piece in pieces) < 60
    assert pa.concat_tables(pieces).column("plane_id").to_pylist() == rows.column("plane_id").to_pylist()


def test_a_column_that_an_older_release_did_not_write_is_null(tmp_path: Path) -> None:
    rows = planes(["b" * 32], 1)
    pq.write_table(rows.drop(["threshold"]), tmp_path / "old.parquet")
    found = TruthReader(LOCAL, "planes").whole([str(tmp_path / "old.parquet")], "b" * 32, EVERY)
    assert found.column("threshold").to_pylist() == [None] and found.column("mask") == rows.column("mask")
