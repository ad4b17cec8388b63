"""One task of writing: ordered samples in, finished files of the feed out. Pixels are read, decoded, cut and encoded here and go nowhere else.

A file holds one part, its row groups have exactly the rows that `order.Layout` says, and its name is the SHA-256 of its bytes: a task that runs
twice writes the same file twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.feed.rows import BATCHED, SCHEMA
from medspark.feed.sample import Recipe, cut
from medspark.lake.files import DataFile, locate, statistics
from medspark.pixels import decode, encode

PAYLOAD = ["codec", "dtype", "shape", "params", "bytes"]
OPEN_FILES = 8  # payload files open at once in a task
JPEG_STATISTICS = 8  # of tiles that pass through encoded, every eighth is decoded for mean and std
_COUNTED = ["row_id", "image_id", "parent_id", "dataset", "subject_key", "part"]
_LEAVES = [name if name != "target" else "target.list.element" for name in SCHEMA.names]

Pointer = tuple[int, int, int]  # file, row group, row


@dataclass(frozen=True)
class Stored:
    """One row of ``pixels``."""

    codec: str
    dtype: str
    shape: tuple[int, ...]
    params: Mapping[str, str]
    data: bytes

    def array(self) -> np.ndarray:
        return decode(self.data, self.codec, self.dtype, self.shape, self.params)


@dataclass
class Payload:
    """Rows of ``pixels`` by pointer. files : paths on ``filesystem``, by file number"""

    filesystem: pafs.FileSystem
    files: Sequence[str]
    _open: dict[int, pq.ParquetFile] = field(default_factory=dict, repr=False)

    def fetch(self, pointers: Iterable[Pointer]) -> dict[Pointer, Stored]:
        """The rows; one row group is in memory at a time beside what is asked for."""
        found: dict[Pointer, Stored] = {}
        for (number, group), wanted in groupby(sorted(set(pointers)), key=lambda pointer: pointer[:2]):
            rows = self._file(number).read_row_group(group, columns=PAYLOAD)
            for pointer in wanted:
                row = {name: rows.column(name)[pointer[2]].as_py() for name in PAYLOAD}
                found[pointer] = Stored(row["codec"], row["dtype"], tuple(row["shape"]), dict(row["params"] or ()), row["bytes"])
        return found

    def _file(self, number: int) -> pq.ParquetFile:
        if number not in self._open:
            while len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            self._open[number] = pq.ParquetFile(self.filesystem.open_input_file(self.files[number]))
        return self._open[number]


@dataclass(frozen=True)
class Builder:
    """Samples' images as they lie in the feed.

    crop : (rows, cols) or None;  codec : "jpeg" passes the stored bytes through, "blosc2" encodes feed values
    """

    recipe: Recipe
    crop: tuple[int, int] | None
    codec: str

    def build(self, payload: Payload, samples: Sequence[Mapping[str, Any]]) -> list[tuple[bytes, np.ndarray | None]]:
        """(encoded image, feed values or None where nothing was decoded) of each sample; every image is decoded once."""
        pointers = [[(int(plane[0]), int(plane[1]), int(plane[2])) for plane in json.loads(sample["planes"])] for sample in samples]
        stored = payload.fetch(pointer for planes in pointers for pointer in planes)
        if self.codec == "jpeg":
            return [(stored[planes[0]].data, None) for planes in pointers]
        made: list[tuple[bytes, np.ndarray | None]] = [(b"", None)] * len(samples)
        by_image = sorted(range(len(samples)), key=lambda place: pointers[place])
        for _, places in groupby(by_image, key=lambda place: pointers[place]):
            whole: np.ndarray | None = None
            for place in places:
                if whole is None:
                    rows = [parse_meta(plane[3]) for plane in json.loads(samples[place]["planes"])]
                    whole = self.recipe.values([stored[pointer].array() for pointer in pointers[place]], rows)
                values = whole
                if self.crop is not None:
                    values = cut(whole, samples[place]["row0"], samples[place]["col0"], self.crop)
                made[place] = encode(values, "blosc2"), values
        return made


def parse_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What `Recipe.plane` reads of a row of slices, from the JSON that travelled."""
    lut = meta.get("modality_lut")
    return {**meta, "modality_lut": bytes.fromhex(lut) if lut else None}


@dataclass
class Moments:
    """Count, sum and sum of squares per channel; whole numbers are summed exactly."""

    count: int = 0
    sums: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        """values : (..., C)"""
        flat = values.reshape(-1, values.shape[-1]).astype(np.float64 if values.dtype.kind == "f" else np.int64)
        self.join(Moments(len(flat), flat.sum(axis=0).tolist(), np.square(flat).sum(axis=0).tolist()))

    def join(self, other: Moments) -> None:
        if other.count:
            zero = [0] * len(other.sums)
            self.count += other.count
            self.sums = [a + b for a, b in zip(self.sums or zero, other.sums, strict=True)]
            self.squares = [a + b for a, b in zip(self.squares or zero, other.squares, strict=True)]

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        mean = tuple(total / self.count for total in self.sums)
        std = tuple(max(square / self.count - one * one, 0.0) ** 0.5 for square, one in zip(self.squares, mean, strict=True))
        return mean, std


@dataclass(frozen=True)
class Written:
    """One file. ``data`` : for the transaction;  ``moments`` : of its feed values"""

    number: int
    part: str
    data: DataFile
    sha256: str
    row_groups: tuple[int, ...]
    moments: Moments

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Written:
        said = json.loads(text)
        return cls(
            **{**said, "data": DataFile(**said["data"]), "row_groups": tuple(said["row_groups"]), "moments": Moments(**said["moments"])}
        )


@dataclass(frozen=True)
class Writer:
    """The work of a writing task; travels by closure.

    Reads rows of `choose.STAGED` with part, out_file, out_grp, pool, position, sorted by out_file and position.
    folder : the feed's, on the lake's file system;  payload : paths of the files of ``pixels``, by number
    """

    lake_uri: str
    folder: str
    payload: tuple[str, ...]
    builder: Builder
    shape: tuple[int, ...]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filesystem, root, _ = locate(self.lake_uri)
        payload = Payload(filesystem, self.payload)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, of_file in groupby(rows, key=lambda row: row["out_file"]):
            written = self._file(filesystem, f"{root}/{self.folder}", number, payload, of_file)
            yield pa.RecordBatch.from_pydict({"said": [written.to_json()]})

    def _file(self, filesystem: pafs.FileSystem, folder: str, number: int, payload: Payload, rows: Iterator[dict[str, Any]]) -> Written:
        buffer = pa.BufferOutputStream()
        collected: list[pq.FileMetaData] = []
        groups: list[int] = []
        moments, part = Moments(), ""
        with new_writer(buffer, collected) as writer:
            for _, made in groupby(self._made(payload, rows, moments), key=lambda row: row["out_grp"]):
                group = list(made)
                part = group[0]["part"]
                writer.write_table(to_table(group), row_group_size=len(group))
                groups.append(len(group))
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        name = f"{part}-{number:05d}-{digest[:32]}.parquet"
        with filesystem.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(data)
        file = DataFile(name, data.size, sum(groups), statistics(collected[0], SCHEMA.names))
        return Written(number, part, file, digest, tuple(groups), moments)

    def _made(self, payload: Payload, rows: Iterator[dict[str, Any]], moments: Moments) -> Iterator[dict[str, Any]]:
        """The rows with their images, in their order, one pool in memory at a time."""
        for _, of_pool in groupby(rows, key=lambda row: row["pool"]):
            pool = list(of_pool)
            for row, (image, values) in zip(pool, self.builder.build(payload, pool), strict=True):
                if values is None and row["position"] % JPEG_STATISTICS == 0:
                    values = decode(image, "jpeg", "uint8", self.shape)
                if values is not None:
                    moments.add(values)
                yield {**row, "image": image}


def new_writer(sink: Any, collected: list[pq.FileMetaData]) -> pq.ParquetWriter:
    """Columns that batches are made from lie as they are, the rest is packed; nothing in the file depends on when or where it was written."""
    return pq.ParquetWriter(
        sink,
        SCHEMA,
        compression={leaf: "none" if leaf.partition(".")[0] in BATCHED else "zstd" for leaf in _LEAVES},
        use_dictionary=["parent_id", "dataset", "subject_key", "part"],
        write_statistics=_COUNTED,
        metadata_collector=collected,
    )


def to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of the feed, in `rows.SCHEMA`; raises ValueError for a null."""
    arrays = []
    for column in SCHEMA:
        array = pa.array([row[column.name] for row in rows], column.type)
        if array.null_count:
            raise ValueError(f"feed column {column.name} is null in {array.null_count} of {len(rows)} rows")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=SCHEMA)
