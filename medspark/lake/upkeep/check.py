"""What is wrong with one file of a table: pure of Spark, row group by row group, bounded memory.

Parquet as Arrow writes it holds no checksum of its own pages, so a flipped bit may raise anywhere in the reader, or nowhere. Payload is
therefore held against ``crc32c`` and ``n_bytes`` of its row, masks against their size, and every file against the row count and the size
that its commit named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.lake.files import sha256_of
from medspark.pixels import masks

UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What Arrow's reader raises on bytes that are not what they were."""
MASKS = {"labels": "label_row_id", "planes": "plane_id"}
BATCH_ROWS = 4_096


@dataclass(frozen=True)
class Damage:
    """table, path : the file (relative to the table's folder);  what : one sentence;  keys : image ids (labels, planes: row ids), where known"""

    table: str
    path: str
    what: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A file as its commit named it.  sha256 : of all its bytes, as a feed's card lists it; empty where nothing does"""

    table: str
    path: str
    size: int
    rows: int
    sha256: str = ""


def check(filesystem: pafs.FileSystem, folder: str, asked: Asked, chosen: Callable[[int], bool]) -> Iterator[Damage | int]:
    """Every damage of a file, and how many rows were checked (an int, last). ``chosen`` : row group -> whether to read it."""

    def bad(what: str, keys: tuple[str, ...] = ()) -> Damage:
        return Damage(asked.table, asked.path, what, keys)

    path = f"{folder}/{asked.path}"
    info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.File:
        yield bad("the file is missing")
        return
    if info.size != asked.size:
        yield bad(f"the file has {info.size} bytes, its commit says {asked.size}")
    if asked.sha256:
        yield from _whole(filesystem, path, asked, bad, chosen)
        return
    try:
        stream = filesystem.open_input_file(path)
        file = pq.ParquetFile(stream)
    except UNREADABLE as error:
        yield bad(f"its footer cannot be read ({type(error).__name__})")
        return
    with stream:
        if file.metadata.num_rows != asked.rows:
            yield bad(f"the file holds {file.metadata.num_rows} rows, its commit says {asked.rows}")
        checked = 0
        for group in range(file.num_row_groups):
            if chosen(group):
                rows = file.metadata.row_group(group).num_rows
                found = _payload(file, group) if asked.table == "pixels" else _narrow(file, group, MASKS.get(asked.table))
                for what, keys in found:
                    yield bad(what, keys)
                checked += rows
        yield checked


def _whole(
    filesystem: pafs.FileSystem, path: str, asked: Asked, bad: Callable[[str], Damage], chosen: Callable[[int], bool]
) -> Iterator[Damage | int]:
    """A file that is known by its bytes: all of them, or none where it is not in the sample."""
    if not chosen(0):
        yield 0
        return
    try:
        found = sha256_of(filesystem, path)
    except UNREADABLE as error:
        yield bad(f"it cannot be read ({type(error).__name__})")
        return
    if found != asked.sha256:
        yield bad("its bytes are not those that the feed's card lists; build the feed again")
    yield asked.rows


def _payload(file: pq.ParquetFile, group: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Damage of one row group of ``pixels`` (2 to 4 MB)."""
    import google_crc32c

    try:
        table = file.read_row_group(group)
        ids = [str(one) for one in table.column("image_id").to_pylist()]
        sums, sizes = table.column("crc32c").to_pylist(), table.column("n_bytes").to_pylist()
        payloads = table.column("bytes")
    except UNREADABLE as error:
        yield f"row group {group} cannot be read ({type(error).__name__})", _ids(file, group)
        return
    wrong = [
        image_id
        for image_id, crc32c, n_bytes, payload in zip(ids, sums, sizes, payloads, strict=True)
        if len(data := payload.as_py() or b"") != n_bytes or google_crc32c.value(data) != crc32c
    ]
    if wrong:
        yield f"row group {group}: {len(wrong)} of {len(ids)} payloads do not have their checksum", tuple(wrong)


def _ids(file: pq.ParquetFile, group: int) -> tuple[str, ...]:
    """Image ids of a row group of which another column is damaged; empty where they cannot be read either."""
    try:
        return tuple(str(one) for one in file.read_row_group(group, columns=["image_id"]).column(0).to_pylist())
    except UNREADABLE:
        return ()


def _narrow(file: pq.ParquetFile, group: int, key: str | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    wrong: list[str] = []
    rows = 0
    try:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
            rows += batch.num_rows
            if key is not None:
                wrong += _bad_masks(batch, key)
    except UNREADABLE as error:
        yield f"row group {group} cannot be read ({type(error).__name__})", ()
        return
    if rows != file.metadata.row_group(group).num_rows:
        yield f"row group {group} holds {rows} rows, its footer says {file.metadata.row_group(group).num_rows}", ()
    if wrong:
        yield f"row group {group}: {len(wrong)} of {rows} masks do not unpack to their size", tuple(wrong)


def _bad_masks(batch: pa.RecordBatch, key: str) -> Iterator[str]:
    columns = [batch.column(name).to_pylist() for name in (key, "mask_codec", "rows", "cols", "mask")]
    for row_id, codec, rows, cols, mask in zip(*columns, strict=True):
        if mask is None:
            continue
        try:
            (masks.unpack if codec == "bits-zstd" else masks.unpack_u8)(mask, rows, cols)
        except (ValueError, TypeError):
            yield str(row_id)
