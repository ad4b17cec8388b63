"""Sampling, scattering and gathering on files, with bounds so small that a few hundred rows make many runs: the same rows, in order, in bounds."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs as pafs

from medspark.lake.files import STRING_STATISTICS, DataFile
from medspark.lake.upkeep.narrow import Limits, NarrowWriter
from medspark.lake.upkeep.ranges import cuts, loads, rank, shares
from medspark.lake.upkeep.runs import Bounds, Direct, Gather, Job, Origin, Sampler, Scatter
from medspark.tables.catalog import SLICES

LONG = "s" * (STRING_STATISTICS + 8)
SERIES = st.sampled_from(["a", "b", "é", "\U0001f600", LONG + "1", LONG + "2"])
ROWS = st.lists(st.tuples(SERIES, st.none() | st.integers(0, 5)), min_size=0, max_size=40)
BOUNDS = Bounds(read_bytes=16_000, run_bytes=20_000, cell_bytes=6_000, load_bytes=12_000, sample_bytes=1_000)
NOBODY: Any = None  # no step of these tasks is watched


def rows_of(keys: list[tuple[str, int | None]], first: int) -> pa.Table:
    """Rows of ``slices`` with these keys; header_json numbers them from ``first``, blobs and nested columns say their number, too."""
    count, columns = len(keys), []
    numbers = range(first, first + count)
    given = {
        "series_id": [series for series, _ in keys],
        "k": [k for _, k in keys],
        "header_json": [str(number) for number in numbers],
        "modality_lut": [None if number % 3 == 0 else b"\0" * (number % 5) for number in numbers],
        "image_type": [["x"] * (number % 3) for number in numbers],
        "image_position_mm": [None if number % 4 == 0 else [float(number), 0.0, 1.0] for number in numbers],
    }
    for field in SLICES.arrow():
        if field.name in given:
            columns.append(pa.array(given[field.name], field.type))
        elif field.nullable:
            columns.append(pa.nulls(count, field.type))
        elif pa.types.is_list(field.type):
            columns.append(pa.array([[]] * count, field.type))
        elif pa.types.is_string(field.type):
            columns.append(pa.array([field.name] * count))
        else:
            columns.append(pa.array(np.ones(count)).cast(field.type))
    return pa.Table.from_arrays(columns, schema=SLICES.arrow())


def lake_of(root: Path, files: list[pa.Table]) -> tuple[Job, list[Origin]]:
    folder = root / "slices"
    folder.mkdir(parents=True)
    (root / "private").mkdir()
    origins = []
    for number, table in enumerate(files):
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=7)
        origins.append(Origin(number, f"{number}.parquet", (folder / f"{number}.parquet").stat().st_size))
    return Job(str(root), SLICES, ("series_id", "k"), "b", str(root / "private"), BOUNDS, Limits(60_000, 16, 1 << 20)), origins


def sort(job: Job, origins: list[Origin], tasks: int) -> tuple[list[DataFile], list[list[Any]]]:
    """What the driver does, its tasks run here; the new files and the loads."""
    portions = [origins[number : number + 2] for number in range(0, len(origins), 2)]
    samples = [sample for number, portion in enumerate(portions) for sample in Sampler(job)(portion, NOBODY, number)]
    cut = cuts(samples, job.bounds.cell_bytes)
    runs = [run for number, portion in enumerate(portions) for run in Scatter(job, cut)(portion, NOBODY, number)]
    sizes = [sum(run.pieces[cell].bytes for run in runs if cell in run.pieces) for cell in range(len(cut) + 1)]
    together = list(loads(sizes, job.bounds.load_bytes))
    work = [[run.pieces[cell] for run in runs for cell in load if cell in run.pieces] for load in together]
    weights = [sum(sizes[cell] for cell in load) for load in together]
    files = [
        file for number, share in enumerate(shares(weights, tasks)) for file in Gather(job)([work[load] for load in share], NOBODY, number)
    ]
    return files, work


def read(job: Job, files: list[DataFile]) -> list[dict[str, Any]]:
    return [row for file in files for row in pq.read_table(Path(job.uri) / "slices" / file.path, schema=SLICES.arrow()).to_pylist()]


def stands(row: dict[str, Any]) -> Any:
    return (*rank((row["series_id"], row["k"])), int(row["header_json"]))


def check(job: Job, files: list[DataFile], before: list[pa.Table]) -> None:
    """The same rows, in order (equal keys in the order of the files), with the statistics of each file."""
    after = read(job, files)
    said = lambda rows: Counter(json.dumps(row, sort_keys=True, default=repr) for row in rows)
    assert said(after) == said(row for table in before for row in table.to_pylist())
    assert [stands(row) for row in after] == sorted(stands(row) for row in after)
    for file in files:
        rows = read(job, [file])
        assert file.rows == len(rows) and file.size == (Path(job.uri) / "slices" / file.path).stat().st_size
        told = json.loads(file.statistics)
        low, high = told["minValues"]["series_id"], told["maxValues"]["series_id"]
        assert low <= min(row["series_id"] for row in rows) and max(row["series_id"] for row in rows) <= high
        assert len(low) <= STRING_STATISTICS and len(high) <= STRING_STATISTICS + 1
        assert told["nullCount"]["k"] == sum(row["k"] is None for row in rows)


@given(st.lists(ROWS, min_size=1, max_size=7), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_same_rows_in_order_whatever_the_files(tmp_path_factory: pytest.TempPathFactory, keys: list[Any], tasks: int) -> None:
    starts = np.cumsum([0, *map(len, keys)]).tolist()
    before = [rows_of(one, start) for one, start in zip(keys, starts, strict=False)]
    job, origins = lake_of(tmp_path_factory.mktemp("runs"), before)
    files, _ = sort(job, origins, tasks)
    check(job, files, before)


def scattered(root: Path, count: int, files: int) -> tuple[Job, list[Origin], list[pa.Table]]:
    chance = random.Random(4)
    keys = [(f"{chance.randrange(10**6):06d}", chance.choice([None, 1, 2])) for _ in range(count)]
    each = count // files
    before = [rows_of(keys[number * each : number * each + each], number * each) for number in range(files)]
    return *lake_of(root, before), before


def test_many_files_many_runs_bounded_loads(tmp_path: Path) -> None:
    job, origins, before = scattered(tmp_path, 1600, 8)
    files, work = sort(job, origins, 3)
    check(job, files, before)
    bytes_of = [sum(piece.bytes for piece in load) for load in work]
    assert len(work) > 20 and max(bytes_of) <= job.bounds.load_bytes
    assert len(files) > 3
    ends = [(rows[0]["series_id"], rows[-1]["series_id"]) for rows in (read(job, [file]) for file in files)]
    assert all(before[1] <= after[0] for before, after in pairwise(ends)), "new files do not overlap"
    for file in files:
        found = pq.ParquetFile(Path(job.uri) / "slices" / file.path).metadata
        sizes = [found.row_group(group).num_rows for group in range(found.num_row_groups)]
        assert set(sizes[:-1]) <= {16} and sizes[-1] <= 16
    assert len({piece.path for load in work for piece in load}) > 10, "many runs"


@pytest.mark.parametrize(("count", "files"), [(2000, 1), (5200, 2), (12_000, 3)])
def test_what_is_too_much_for_one_file_is_spread_evenly(tmp_path: Path, count: int, files: int) -> None:
    chance, limits = random.Random(5), Limits(1_000_000, 250, 1 << 20)
    table = rows_of([(f"{place:06d}", 1) for place in range(count)], 0)
    headers = pa.array([chance.randbytes(150).hex() for _ in range(count)])  # 150 bytes a row on the disk
    table = table.set_column(table.schema.get_field_index("header_json"), SLICES.arrow().field("header_json"), headers)
    (tmp_path / "slices").mkdir()
    made = NarrowWriter(pafs.LocalFileSystem(), str(tmp_path), SLICES, "b", count, limits).write(table.to_batches(max_chunksize=100))
    sizes = [file.size for file in made]
    assert len(sizes) == files and sum(file.rows for file in made) == count
    assert max(sizes) < 1.15 * limits.file_bytes and min(sizes) > 0.8 * max(sizes)


def test_one_key_for_all_rows_stays_in_bounds(tmp_path: Path) -> None:
    keys = [[("same", None)] * 30 for _ in range(10)]
    before = [rows_of(one, 30 * number) for number, one in enumerate(keys)]
    job, origins = lake_of(tmp_path, before)
    files, work = sort(job, origins, 2)
    check(job, files, before)
    one_file = before[0].nbytes
    assert len(work) > 2 and all(sum(piece.bytes for piece in load) <= job.bounds.load_bytes + one_file for load in work)


def test_columns_that_a_file_lacks_are_null(tmp_path: Path) -> None:
    before = [rows_of([("a", 1), ("c", 2)], 0), rows_of([("b", 1), ("d", None)], 2)]
    job, origins = lake_of(tmp_path, before)
    old = before[1].drop_columns(["modality_lut", "image_position_mm", "folder_token"])
    pq.write_table(old, tmp_path / "slices" / "1.parquet")
    for files in (sort(job, origins, 1)[0], list(next(Direct(job)(origins, NOBODY, 0)))):
        rows = read(job, files)
        assert [row["series_id"] for row in rows] == ["a", "b", "c", "d"]
        assert [row["image_position_mm"] for row in rows[1::2]] == [None, None]
        assert [row["header_json"] for row in rows] == ["0", "2", "1", "3"]


def test_the_short_way_gives_up_where_rows_outgrow_it(tmp_path: Path) -> None:
    job, origins, _ = scattered(tmp_path, 200, 2)
    assert list(Direct(job)(origins, NOBODY, 0)) == []
    assert [path.name for path in (tmp_path / "slices").iterdir() if path.name.startswith("part-")] == []
    few, _ = lake_of(tmp_path / "few", [rows_of([("b", 1)], 0), rows_of([("a", None), ("a", 0)], 1)])
    (files,) = Direct(few)([Origin(0, "0.parquet", 1), Origin(1, "1.parquet", 1)], NOBODY, 0)
    assert [row["header_json"] for row in read(few, list(files))] == ["2", "1", "0"]
