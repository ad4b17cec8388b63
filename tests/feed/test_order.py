"""The order of a feed: laws of groups, files and pools over small numbers, and files that are what their layout says, without Spark."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medspark.errors import BadRequest
from medspark.feed import leaks, order
from medspark.feed.request import Request, parse_classes, parse_sides, parse_window
from medspark.feed.resolve import image_spec, resolve
from medspark.feed.rows import SCHEMA
from medspark.feed.sample import Recipe
from medspark.feed.write import Builder, Moments, Writer, Written
from medspark.pixels import decode, encode
from medspark.tables.catalog import PIXELS
from medspark.tables.rows import Rows


@given(st.integers(1, 5000), st.floats(1, 1e8), st.integers(1, 9))
def test_groups_are_even_sized_by_bytes_and_shared_by_all_ranks(rows: int, row_bytes: float, world: int) -> None:
    one = order.layout(rows, row_bytes, world)
    sizes = Counter(one.group_of(position) for position in range(rows))
    assert sorted(sizes) == list(range(one.groups)) and sum(sizes.values()) == rows
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert [one.group_of(position) for position in range(rows)] == sorted(one.group_of(position) for position in range(rows))
    assert one.groups % world == 0 or rows < world
    assert one.files == -(-one.groups // one.per_file) and 1 <= one.per_file <= order.FILE_GROUPS
    enough = rows >= 2 * world * max(1, round(order.GROUP_BYTES / row_bytes))
    if enough and row_bytes < order.GROUP_BYTES / 8:
        assert 0.5 * order.GROUP_BYTES < rows / one.groups * row_bytes < 1.2 * order.GROUP_BYTES


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 8), st.integers(0, 3))
def test_pools_hold_runs_input_groups_and_follow_each_other(counts: list[int], runs: int, seed: int) -> None:
    pool, first = order.pools(np.array(counts), runs, seed, "train")
    held = Counter(pool.tolist())
    assert all(count == runs for place, count in held.items() if place < len(first) - 1) and held[len(first) - 1] <= runs
    at = 0
    for place in range(len(first)):
        assert first[place] == at
        at += sum(count for count, of in zip(counts, pool.tolist(), strict=True) if of == place)
    assert at == sum(counts)
    again = order.pools(np.array(counts), runs, seed, "train")
    assert (again[0] == pool).all() and (again[1] == first).all()


def payload(path: Path, arrays: list[np.ndarray], per_group: int) -> None:
    """A file of ``pixels``."""
    rows = Rows.of(
        "pixels",
        [
            {
                "image_id": f"{place:032x}",
                "dataset": "d",
                "parent_id": "p",
                "codec": "blosc2",
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "params": {},
                "crc32c": 0,
                "n_bytes": 1,
                "bytes": encode(array, "blosc2"),
            }
            for place, array in enumerate(arrays)
        ],
    )
    pq.write_table(pa.Table.from_batches([rows.to_arrow("r", "b")], PIXELS.arrow()), path, row_group_size=per_group)


def sample(place: int, group: int, row: int, position: int, **rest: Any) -> dict[str, Any]:
    narrow = {"row_id": f"{place}", "image_id": f"{place}", "parent_id": "p", "dataset": "d", "subject_key": "s", "part": "train"}
    return {
        **narrow,
        "row0": 0,
        "col0": 0,
        "k": -1,
        "weight": 1.0,
        "target": [1.0, float("nan")],
        "planes": json.dumps([[0, group, row, {}]]),
        "mask": b"m",
        "pool": position // 3,
        "position": position,
        "out_grp": position // 2,
        "out_file": 0,
        **rest,
    }


def test_a_task_writes_what_its_layout_says_under_the_name_of_its_content(tmp_path: Path) -> None:
    arrays = [np.full((4, 6), place, np.uint8) for place in range(7)]
    payload(tmp_path / "pixels.parquet", arrays, 3)
    (tmp_path / "feeds" / "f").mkdir(parents=True)
    turned = [3, 0, 6, 1, 5, 2, 4]
    samples = [sample(place, place // 3, place % 3, position, row0=1, col0=2) for position, place in enumerate(turned)]
    columns = pa.schema([field for field in SCHEMA if field.name != "image"])
    extra = [("planes", pa.string()), ("pool", pa.int64()), ("position", pa.int64()), ("out_grp", pa.int64()), ("out_file", pa.int32())]
    schema = pa.schema([*(pa.field(field.name, field.type) for field in columns), *(pa.field(*one) for one in extra)])
    batch = pa.RecordBatch.from_pylist(samples, schema)
    writer = Writer(str(tmp_path), "feeds/f", (str(tmp_path / "pixels.parquet"),), Builder(Recipe(), (2, 3), "blosc2"), (2, 3, 1))
    said = [Written.parse(text) for part in writer([batch]) for text in part.column("said").to_pylist()]
    again = [Written.parse(text) for part in writer([batch.slice(0, 2), batch.slice(2)]) for text in part.column("said").to_pylist()]
    assert said == again and len(said) == 1
    (one,) = said
    assert one.row_groups == (2, 2, 2, 1) and one.sha256[:32] in one.data.path and one.part == "train"
    file = pq.ParquetFile(tmp_path / "feeds" / "f" / one.data.path)
    assert file.schema_arrow.equals(SCHEMA) or file.schema_arrow.names == SCHEMA.names
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [2, 2, 2, 1]
    got = [int(decode(data, "blosc2", "uint8", (2, 3, 1))[0, 0, 0]) for data in file.read(columns=["image"]).column(0).to_pylist()]
    assert got == turned
    assert one.moments.count == 7 * 6 and one.moments.mean_std()[0] == (3.0,)
    with pytest.raises(ValueError, match="subject_key is null"):
        list(writer([pa.RecordBatch.from_pylist([{**samples[0], "subject_key": None}], schema)]))


def test_moments_are_those_of_all_values() -> None:
    values = np.random.default_rng(0).normal(3, 2, (5, 4, 4, 2)).astype(np.float32)
    moments = Moments()
    for one in values:
        moments.add(one)
    mean, std = moments.mean_std()
    assert np.allclose(mean, values.mean(axis=(0, 1, 2)), atol=1e-5) and np.allclose(std, values.std(axis=(0, 1, 2)), atol=1e-5)
    large = Moments()
    large.add(np.full((100, 100, 1), -32768, np.int16))
    assert large.squares == [10_000 * 32768**2]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "a b"}, "--name"),
        ({"query": " "}, "--query"),
        ({"volume": (4, 8, 8), "crop": (4, 4)}, "--volume says the whole size"),
        ({"size": (4, 4), "spacing_mm": (1.0, 1.0)}, "give one of them"),
        ({"stride": (4, 4)}, "give --crop"),
        ({"crop": (0, 4)}, "1 px or more"),
        ({"context": 99}, "--context"),
        ({"window": (40.0, 0.0)}, "--window"),
        ({"negatives_per_positive": -1.0}, "--negatives-per-positive"),
        ({"labels": ("a", "a")}, "--labels"),
        ({"world": 0}, "--world"),
        ({"label_sources": ("it's",)}, "--label-sources"),
        ({"thinned": ()}, "--thin"),
    ],
)
def test_requests_that_contradict_themselves(asked: dict[str, Any], said: str) -> None:
    Request("f", "SELECT 1").check()
    with pytest.raises(BadRequest, match=said):
        Request(**{"name": "f", "query": "SELECT image_id FROM slices", **asked}).check()


def test_options_as_they_are_written(tmp_path: Path) -> None:
    assert parse_sides("--crop", "256", 2) == (256, 256) and parse_sides("--crop", "64X32", 2) == (64, 32)
    assert parse_sides("--volume", "16x64x64", 3) == (16, 64, 64)
    assert parse_window("40,400") == (40.0, 400.0) and parse_window("raw") == "raw"
    (tmp_path / "c.csv").write_text("label,class\nGrade 3,tumour\nhealthy,\n")
    assert parse_classes("x=y, z=", tmp_path / "c.csv") == {"Grade 3": "tumour", "healthy": "", "x": "y", "z": ""}
    for wrong in (lambda: parse_sides("--crop", "1x2x3", 2), lambda: parse_window("40"), lambda: parse_classes("x", None)):
        with pytest.raises(BadRequest):
            wrong()


def test_who_is_in_two_parts() -> None:
    assert leaks.torn({"train": ["a", "b", "a"], "test": ["c"], "val": ["b", "d"]}) == ["b"]
    assert leaks.torn({"train": ["a", "a"]}) == []


def fact(**rest: Any) -> dict[str, Any]:
    plain = {"kind": "slice", "channels": 1, "dtype": "int16", "codec": "blosc2", "is_hu": True, "value_unit": "HU", "whole": True}
    plain |= {"spacing_min": "[0.5, 0.75]", "spacing_max": "[0.5, 0.75]", "mpp_min": None, "mpp_max": None, "n_spacing": 3, "n": 3}
    return {**plain, **rest}


MR = {"is_hu": False, "value_unit": ""}
PHOTO = {"kind": "photo", "is_hu": False, "dtype": "uint8", "channels": 3, "n_spacing": 0, "value_unit": ""}


@pytest.mark.parametrize(
    ("asked", "stored", "mode", "dtype"),
    [
        ({}, {}, "values", "int16"),
        ({}, {"whole": False}, "values", "float32"),
        ({"window": (40.0, 400.0)}, {}, "window", "uint8"),
        ({}, MR, "display", "uint8"),
        ({"window": "raw"}, MR, "values", "int16"),
        ({}, PHOTO, "stored", "uint8"),
        ({}, {**PHOTO, "dtype": "uint16"}, "display", "uint8"),
        ({"window": "raw"}, {**PHOTO, "dtype": "uint16"}, "values", "float32"),
        ({}, {**PHOTO, "dtype": "<f4", "channels": 1}, "values", "float32"),
    ],
)
def test_what_values_a_feed_gets(asked: dict[str, Any], stored: dict[str, Any], mode: str, dtype: str) -> None:
    request = Request("f", "SELECT 1", **asked)
    recipe = resolve(request, [fact(**stored)])
    assert (recipe.mode, recipe.dtype, recipe.channels) == (mode, dtype, stored.get("channels", 1))
    spec = image_spec(recipe, (4, 4, recipe.channels), "blosc2", [fact(**stored)])
    assert spec.value_unit == ("HU" if not stored or "whole" in stored else "") and spec.dtype == dtype


@pytest.mark.parametrize(
    ("asked", "facts", "said"),
    [
        ({}, [fact(), fact(channels=3)], "grey and some are colour"),
        ({"context": 1}, [fact(**PHOTO)], "are for slices"),
        ({"volume": (2, 4, 4)}, [fact(channels=3)], "are for grey slices"),
        ({"spacing_mm": (1.0, 1.0)}, [fact(n_spacing=2)], "no pixel spacing"),
        ({"window": (1.0, 2.0)}, [fact(**PHOTO)], "for slices with values"),
    ],
)
def test_cohorts_that_have_nothing_in_common(asked: dict[str, Any], facts: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        resolve(Request("f", "SELECT 1", **asked), facts)
