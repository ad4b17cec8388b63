"""Crops of one parent brought together. A feed is shuffled; measures of a series need all its slices, those of an image all its crops.

Truth and prediction go to local files as packed bits, a file per bucket of parents, and come back one parent at a time: what a part of any size
holds in memory is one bucket, and unpacked one image (or one label of one series).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.feed.open import Feed
from medspark.feed.rows import pack_masks, unpack_masks

ROWS_PER_BUCKET = 20_000  # some KB each: about 100 MB
MOST_BUCKETS = 256  # open files
FLUSH_ROWS = 64
NARROW = ["row_id", "image_id", "parent_id", "subject_key", "k", "row0", "col0"]
_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("row_id", "image_id", "parent_id", "subject_key")],
        *[(name, pa.int32()) for name in ("k", "row0", "col0")],
        ("space", pa.list_(pa.int32())),
        ("bits", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Place:
    """Where a row of a feed belongs."""

    row_id: str
    image_id: str
    parent_id: str
    subject_key: str
    k: int
    row0: int
    col0: int


def places(feed: Feed, part: str) -> Iterator[Place]:
    """Of all rows of a part, in the feed's order; reads no pixels."""
    import pyarrow.parquet as pq

    filesystem, _ = feed.store()
    for path in feed.paths(part):
        with filesystem.open_input_file(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=NARROW):
                yield from (Place(**row) for row in batch.to_pylist())


@dataclass(frozen=True)
class Crop:
    """A row's truth and prediction. space : its (rows, cols) or (slices, rows, cols)"""

    place: Place
    space: tuple[int, ...]
    bits: bytes

    def planes(self, labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """truth, predicted : (L, *space) bool; known : (*space) bool."""
        both, known = unpack_masks(self.bits, 2 * labels, self.space)
        return both[:labels], both[labels:], known


class Gathered:
    """Takes crops in any order and gives them back by parent. Final; a context that removes its files."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        self.buckets = min(MOST_BUCKETS, max(1, -(-rows // ROWS_PER_BUCKET)))
        self._waiting: list[list[dict[str, Any]]] = [[] for _ in range(self.buckets)]
        self._writers: dict[int, pa.RecordBatchFileWriter] = {}

    def add(self, place: Place, truth: np.ndarray, predicted: np.ndarray, known: np.ndarray) -> None:
        """truth, predicted : (L, *space) bool; known : (*space) bool."""
        bucket = zlib.crc32(place.parent_id.encode()) % self.buckets
        bits = pack_masks(np.concatenate([truth, predicted]), known)
        self._waiting[bucket].append({**place.__dict__, "space": list(known.shape), "bits": bits})
        if len(self._waiting[bucket]) >= FLUSH_ROWS:
            self._flush(bucket)

    def _flush(self, bucket: int) -> None:
        if bucket not in self._writers:
            self._writers[bucket] = pa.ipc.new_file(str(self._file(bucket)), _SCHEMA)
        self._writers[bucket].write_batch(pa.RecordBatch.from_pylist(self._waiting[bucket], _SCHEMA))
        self._waiting[bucket] = []

    def _file(self, bucket: int) -> Path:
        return self.folder / f"bucket-{bucket}.arrow"

    def parents(self) -> Iterator[tuple[str, list[Crop]]]:
        """(parent_id, its crops by k, image and corner); ends the adding."""
        for bucket, waiting in enumerate(self._waiting):
            if waiting:
                self._flush(bucket)
        for bucket, writer in sorted(self._writers.items()):
            writer.close()
            rows = pa.ipc.open_file(pa.memory_map(str(self._file(bucket)))).read_all()
            ordered = rows.sort_by([(name, "ascending") for name in ("parent_id", "k", "image_id", "row0", "col0", "row_id")])
            for parent_id, found in groupby(_crops(ordered), key=lambda crop: crop.place.parent_id):
                yield parent_id, list(found)
            self._file(bucket).unlink()


def _crops(rows: pa.Table) -> Iterator[Crop]:
    for batch in rows.to_batches(max_chunksize=FLUSH_ROWS):
        for row in batch.to_pylist():
            space, bits = tuple(row.pop("space")), row.pop("bits")
            yield Crop(Place(**row), space, bits)
