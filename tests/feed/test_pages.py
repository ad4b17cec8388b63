"""Payloads that stay in their files: found where Arrow finds them, whatever the file was written with; what is damaged is said."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medspark.feed import pages
from medspark.feed.pages import OpenedFile, Stored

TARGET = pa.list_(pa.field("item", pa.float32(), nullable=False))


def written(path: Path, values: list[bytes], nullable: bool = False, labels: int = 2, **options: object) -> pq.FileMetaData:
    """As a feed's file holds them, in one row group."""
    types = {"row_id": pa.string(), "weight": pa.float32(), "target": TARGET, "image": pa.binary()}
    schema = pa.schema([pa.field(name, kind, nullable) for name, kind in types.items()])
    n = len(values)
    columns = [
        [f"{at:032x}" for at in range(n)],
        np.arange(n, dtype=np.float32),
        [[at, float("nan"), 1.5][:labels] for at in range(n)],
        values,
    ]
    table = pa.table([pa.array(column, kind) for column, kind in zip(columns, types.values())], schema=schema)
    pq.write_table(table, path, row_group_size=max(1, n), **{"compression": "none", "use_dictionary": False, **options})
    return pq.read_metadata(path)


def extent(metadata: pq.FileMetaData, name: str) -> tuple[int, int]:
    return pages.extent(metadata, 0, pages.leaves(metadata)[name])


def found(path: Path, metadata: pq.FileMetaData) -> list[bytes]:
    places = pages.places(OpenedFile(str(path)), *extent(metadata, "image"), metadata.num_rows)
    return [bytes(Stored(OpenedFile, str(path), start, size)) for start, size in places]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.binary(max_size=40) | st.integers(1, 400_000).map(lambda size: bytes([size % 251]) * size), min_size=1, max_size=12),
    page=st.sampled_from([1, 1000, 1 << 20]),
    at_once=st.sampled_from([1, 3, 1024]),
    statistics=st.booleans(),
    labels=st.integers(1, 3),
    version=st.sampled_from(["1.0", "2.0"]),
)
def test_values_lie_where_arrow_finds_them(
    tmp_path_factory: pytest.TempPathFactory, values: list[bytes], page: int, at_once: int, statistics: bool, labels: int, version: str
) -> None:
    path = tmp_path_factory.mktemp("pages") / "file.parquet"
    options = {"data_page_size": page, "write_batch_size": at_once, "write_statistics": statistics, "data_page_version": version}
    metadata = written(path, values, labels=labels, **options)
    assert all(pages.plain(metadata, pages.leaves(metadata)[name]) for name in ("row_id", "weight", "target", "image"))
    assert found(path, metadata) == values
    file, table, n = OpenedFile(str(path)), pq.read_table(path), len(values)
    assert pages.strings(file, *extent(metadata, "row_id"), n) == table["row_id"].to_pylist()
    assert np.array_equal(pages.floats(file, *extent(metadata, "weight"), n), table["weight"].to_numpy())
    target = table["target"].combine_chunks().flatten().to_numpy()
    assert np.array_equal(pages.floats(file, *extent(metadata, "target"), n * labels, lists=True), target, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "nullable"),
    [
        ({"compression": "zstd"}, False),
        ({"use_dictionary": True}, False),
        ({"column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}}, False),
        ({}, True),
    ],
)
def test_other_files_are_left_to_arrow(tmp_path: Path, options: dict[str, object], nullable: bool) -> None:
    metadata = written(tmp_path / "file.parquet", [b"a", b"bc"], nullable, **options)
    assert not all(pages.plain(metadata, pages.leaves(metadata)[name]) for name in ("image", "target", "row_id"))


@pytest.mark.parametrize("target", [[[1.0], [], [2.0]], [[], [], []]])
def test_an_empty_list_is_noticed(tmp_path: Path, target: list[list[float]]) -> None:
    path = tmp_path / "file.parquet"
    table = pa.table([pa.array(target, TARGET)], schema=pa.schema([pa.field("target", TARGET, nullable=False)]))
    pq.write_table(table, path, compression="none", use_dictionary=False)
    with pytest.raises(ValueError, match=r"page|file"):
        pages.floats(OpenedFile(str(path)), *extent(pq.read_metadata(path), "target"), 3, lists=True)


@pytest.mark.parametrize("length", [0, 1, 7, 9, 1 << 20, (1 << 32) - 1])
def test_a_length_that_is_damaged_is_noticed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "file.parquet"
    metadata = written(path, [b"12345678", b"abcdefgh"])
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 8) + b"1234", struct.pack("<I", length) + b"1234"))
    with pytest.raises(ValueError, match=r"page|values"):
        found(path, metadata)


def test_every_byte_of_a_header_may_be_wrong(tmp_path: Path) -> None:
    """Nothing but ValueError comes out, and never values that Arrow would not give."""
    path = tmp_path / "file.parquet"
    values = [b"12345678", b"abcdefgh"]
    metadata = written(path, values)
    start, _ = extent(metadata, "image")
    whole = path.read_bytes()
    for at in range(start, start + whole[start:].index(struct.pack("<I", 8) + b"1234")):
        for value in range(256):
            data = bytearray(whole)
            data[at] = value
            path.write_bytes(data)
            try:
                assert found(path, metadata) == values
            except ValueError:
                continue


def test_a_file_that_ends_early_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    metadata = written(path, [b"x" * 5_000, b"y" * 5_000])
    start, _ = extent(metadata, "image")
    path.write_bytes(path.read_bytes()[: start + 3_000])
    with pytest.raises(ValueError, match="page"):
        found(path, metadata)
    with pytest.raises(ValueError, match="ends within"):
        bytes(Stored(OpenedFile, str(path), start, 5_000))


def test_the_widest_payload_fits_a_threads_memory() -> None:
    from medspark.feed.decode import Scratch

    class File:
        def read(self, start: int, into: memoryview) -> int:
            into[:] = np.full(len(into), start, np.uint8).tobytes()
            return len(into)

    scratch = Scratch()
    for size in (1, 10, 3, 1_000, 999):
        payload = Stored(lambda path: File(), "a", size % 200, size)  # type: ignore[arg-type, return-value]
        assert bytes(scratch.bytes(payload)) == bytes([size % 200]) * size
    assert scratch.bytes(b"as it is") == b"as it is"
