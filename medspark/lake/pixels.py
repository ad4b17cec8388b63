"""Reads stored images by id: the pointers of a batch of rows turned into arrays, without Spark."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.keys import PARENT_DIGITS
from medspark.pixels import decode

COLUMNS = ["image_id", "codec", "dtype", "shape", "params", "crc32c", "bytes"]


@dataclass
class PixelReader:
    """Arrays by image_id out of payload files.

    files : paths on ``filesystem`` (those of one table version whose statistics admit the images)
    prefix : the parent's first digits; row groups without it are passed over by their statistics. Empty: images of several parents
    """

    filesystem: pafs.FileSystem
    files: Sequence[str]
    prefix: str
    _places: dict[str, tuple[str, int]] = field(default_factory=dict, repr=False)
    _unread: list[tuple[str, str, str, int]] | None = field(default=None, repr=False)
    _open: dict[str, pq.ParquetFile] = field(default_factory=dict, repr=False)

    def _index(self, wanted: list[str]) -> None:
        """Learns where the images lie: reads the ids of those row groups whose statistics admit one of ``wanted`` (sorted)."""
        if self._unread is None:
            self._unread = list(self._groups())
        left = []
        for low, high, path, group in self._unread:
            place = bisect_left(wanted, low)
            if place == len(wanted) or wanted[place] > high:
                left.append((low, high, path, group))
                continue
            for image_id in self._file(path).read_row_group(group, columns=["image_id"]).column(0).to_pylist():
                self._places[image_id] = (path, group)
        self._unread = left

    def _groups(self) -> Iterable[tuple[str, str, str, int]]:
        """(smallest id, largest id, file, row group) of the groups that may hold the prefix."""
        low, high = self.prefix[:PARENT_DIGITS], self.prefix[:PARENT_DIGITS] + "g"  # ids are hexadecimal: g is above them all
        for path in self.files:
            file = self._file(path)
            column = file.schema_arrow.get_field_index("image_id")
            for group in range(file.num_row_groups):
                statistics = file.metadata.row_group(group).column(column).statistics
                if statistics is None or not statistics.has_min_max:
                    yield "", "g", path, group
                elif statistics.max >= low and statistics.min <= high:
                    yield statistics.min, statistics.max, path, group

    def _file(self, path: str) -> pq.ParquetFile:
        if path not in self._open:
            self._open[path] = pq.ParquetFile(self.filesystem.open_input_file(path))
        return self._open[path]

    def __call__(self, image_ids: Iterable[str]) -> dict[str, np.ndarray]:
        """Stored arrays of those of the images that have pixels; one row group in memory at a time."""
        ordered = sorted(image_ids)
        self._index([image_id for image_id in ordered if image_id not in self._places])
        wanted: dict[tuple[str, int], set[str]] = {}
        for image_id in ordered:
            if image_id in self._places:
                wanted.setdefault(self._places[image_id], set()).add(image_id)
        found: dict[str, np.ndarray] = {}
        for (path, group), ids in wanted.items():
            rows = self._file(path).read_row_group(group, columns=COLUMNS)
            for place, image_id in enumerate(rows.column("image_id").to_pylist()):
                if image_id in ids:
                    row = {name: rows.column(name)[place].as_py() for name in COLUMNS}
                    found[image_id] = decode(row["bytes"], row["codec"], row["dtype"], row["shape"], dict(row["params"] or ()))
        return found
