"""`open_lake`: a lake from Python without Spark and without a JVM. Tables, SQL, images, volumes, masks and pictures of one state of it.

A table's rows are the files of one version of its log (deltalake). Look-ups by key read only the files whose statistics admit the key, so that
one series of millions comes in tens of milliseconds. Answers equal Spark's (tested).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from medspark.errors import BadRequest
from medspark.keys import PARENT_DIGITS
from medspark.lake import duck, volume
from medspark.lake.files import admitted
from medspark.lake.pixels import PixelReader
from medspark.lake.store import Lake
from medspark.pixels import masks
from medspark.pixels.picture import Picture, drawn
from medspark.pixels.window import windowed
from medspark.series.rescale import to_values, unpack_lut
from medspark.tables.catalog import TABLES

WINDOW_HU = (40.0, 400.0)
"""Centre and width for soft tissue, where a CT slice names no window."""
OUTER_PERCENT = (1.0, 99.0)  # of the values: the window where neither the file nor the unit gives one
LEAST_WIDTH = 1e-6  # of that window: an image of one value is grey
AT_ONCE = 64  # slices decoded together: some row groups of their payload
U8_FULL = 255
PRUNED = ("string", "int", "long")
"""Types of the columns whose statistics Arrow data sets prune by."""
VALUES = ("image_id", "rescale_slope", "rescale_intercept", "modality_lut")
"""Columns of ``slices`` that turn stored values into values."""
PLACE = ("k", "t", "channels", "rows", "cols", "image_position_mm")
LOOK = ("photometric", "window_center", "window_width", "voi_lut_function", "is_hu", "pixel_spacing_mm")
"""Columns of ``slices`` that say how a slice is looked at."""


def open_lake(uri: str, versions: Mapping[str, int] | None = None) -> OpenLake:
    """A lake to read from.

    uri : folder or URI of the lake
    versions : table -> Delta version, as in the last line of every job; a table that is not named is read at its current version
    Raises `BadRequest` where there is no lake, no such table or no such version.
    """
    return OpenLake(uri, versions)


class OpenLake:
    """One state of a lake. It stays what it was when it was opened; `refresh` moves on to the current state.

    Tables have no common transaction. Jobs append children before parents, so parents are looked up before children here: every series
    that is seen has its slices, every slice its pixels. Rows of a batch that has not closed may be among the children.
    """

    def __init__(self, uri: str, versions: Mapping[str, int] | None = None) -> None:
        self._lake = Lake(None, uri)  # type: ignore[arg-type]  # reading needs no session
        self._asked = dict(versions or {})
        unknown = sorted(set(self._asked) - set(TABLES))
        if unknown:
            raise BadRequest(f"versions: {unknown[0]} is no table; known: {', '.join(TABLES)}")
        self.uri = self._lake.uri
        self.refresh()

    def refresh(self) -> OpenLake:
        """Looks the current versions up (those that were asked for stay)."""
        self._snapshots: dict[str, Any] = {}
        for name in TABLES:  # parents stand before their children in the catalogue
            snapshot = self._snapshot(name)
            if snapshot is not None:
                self._snapshots[name] = snapshot
        if not self._snapshots:
            raise BadRequest(f"{self.uri}: no lake there")
        self._listed: dict[str, list[dict[str, Any]]] = {}
        self.close()
        return self

    def _snapshot(self, name: str) -> Any:
        version = self._asked.get(name)
        try:
            found = self._lake.snapshot(name, version)
        except BadRequest:
            raise
        except Exception as error:  # deltalake has one class for every trouble with a log
            if version is None:
                raise
            raise BadRequest(f"table {name} has no version {version} ({str(error).splitlines()[0][:200]})") from None
        if found is None and version is not None:
            raise BadRequest(f"the lake has no table {name}")
        return found

    @property
    def versions(self) -> dict[str, int]:
        """table -> Delta version that is read; give them to `open_lake` to see the same again."""
        return {name: snapshot.version() for name, snapshot in self._snapshots.items()}

    def files(self, table: str) -> list[dict[str, Any]]:
        """The table's files with their statistics: ``path``, ``size_bytes``, ``num_records``, ``min.<column>``, ``max.<column>``."""
        if table not in TABLES:
            raise BadRequest(f"{table} is no table; known: {', '.join(TABLES)}")
        if table not in self._listed:
            snapshot = self._snapshots.get(table)
            self._listed[table] = [] if snapshot is None else self._lake.listed(table, snapshot)
        return self._listed[table]

    # ---- rows

    def table(self, name: str) -> pads.Dataset:
        """The table as an Arrow data set: lazy, with column and row selection; files that a filter rules out are not opened.

        ``lake.table("slices").to_table(columns=["k", "value_mean"], filter=pc.field("series_id") == series_id)``; pandas, polars and DuckDB
        take it as it is.
        """
        listed, definition = self.files(name), TABLES[name]
        schema = pa.schema([field.with_nullable(True) for field in definition.arrow()])
        if not listed:
            return pads.dataset(schema.empty_table())
        parquet = pads.ParquetFileFormat()
        columns = [column for column in definition.columns if column.dtype in PRUNED]
        fragments = [
            parquet.make_fragment(file["path"], self._lake.filesystem, partition_expression=_known(file, [one.name for one in columns]))
            for file in listed
        ]
        return pads.FileSystemDataset(fragments, schema, parquet, self._lake.filesystem)

    def rows(self, table: str, columns: Sequence[str] | None = None, **equal: Any) -> pa.Table:
        """Rows of a table by key, from the files that can have them: ``lake.rows("slices", series_id=..., t=0)``.

        columns : all where None
        equal : column -> value, or list of values
        """
        files, where = self.files(table), []
        for column, value in equal.items():
            if column not in TABLES[table].names:
                raise BadRequest(f"{table} has no column {column}")
            values = list(value) if isinstance(value, (list, tuple, set)) else [value]
            files = admitted(files, column, values)
            where.append(pc.field(column).isin(values))
        chosen = TABLES[table].names if columns is None else columns
        condition = reduce(lambda left, right: left & right, where) if where else None
        return self._lake.read(table, chosen, condition, files=[file["path"] for file in files])

    def sql(self, query: str) -> pa.Table:
        """A query's answer. Tables, views and functions have the names they have in Spark; the dialect is DuckDB's."""
        if self._duck is None:
            self._duck = duck.connect(self._lake, {name: self.files(name) for name in TABLES}, self.table)
            # A connection with Python functions that is still open at the interpreter's end is reported as a leak.
            self._closing = weakref.finalize(self, self._duck.close)
        return duck.query(self._duck, query)

    def close(self) -> None:
        """Lets DuckDB's connection go; the next query opens another."""
        if getattr(self, "_duck", None) is not None:
            self._closing()
        self._duck: Any = None

    # ---- pixels

    def image(self, image_id: str, rescaled: bool = False) -> np.ndarray:
        """The image's stored array, (rows, cols) or (rows, cols, 3); ``rescaled``: its values (float64, HU where ``is_hu``), for slices."""
        stored = self._reader("image_id", image_id)([image_id]).get(image_id)
        if stored is None:
            raise BadRequest(f"no image {image_id} with stored pixels in this lake")
        if not rescaled:
            return stored
        found = self.rows("slices", VALUES, image_id=image_id).to_pylist()
        if not found:
            raise BadRequest(f"image {image_id} is no slice: only slices have rescaled values")
        return _values(stored, found[0])

    def images(self, image_ids: Iterable[str]) -> dict[str, np.ndarray]:
        """image_id -> stored array, of those of the images that have pixels; each row group of ``pixels`` is read once."""
        wanted = list(image_ids)
        files = [file["path"] for file in admitted(self.files("pixels"), "image_id", wanted)]
        return PixelReader(self._lake.filesystem, files, "")(wanted)

    def _reader(self, column: str, value: str) -> PixelReader:
        """Reads stored arrays of one parent; an image_id and its parent's id begin with the same digits."""
        files = [file["path"] for file in admitted(self.files("pixels"), column, [value])]
        return PixelReader(self._lake.filesystem, files, value[:PARENT_DIGITS])

    def volume(self, series_id: str, t: int = 0, spacing_mm: float | Sequence[float] | None = None, uneven: bool = False) -> volume.Volume:
        """The series as an array (k, row, col), float32, after rescale, and its affine: (col, row, k, 1) -> LPS mm.

        t : which volume of a series that has several
        spacing_mm : None keeps the slices as they are; a number or (k, row, col) resamples linearly onto an upright grid
        uneven : take slices that are missing or not evenly spaced, too: stacked as they are, resampled by their true positions
        Raises `BadRequest` with the series' verdicts where there is no such volume, or it is uneven and ``uneven`` was not given.
        """
        wanted = None if spacing_mm is None else volume.spacing_of(spacing_mm)
        series = self.rows("series", series_id=series_id).to_pylist()
        if not series:
            raise BadRequest(f"no series {series_id} in this lake")
        slices = self.rows("slices", (*VALUES, *PLACE), series_id=series_id, t=t).to_pylist()
        slices.sort(key=lambda row: (row["k"] is None, row["k"] or 0, row["image_id"]))
        volume.check(series[0], slices, t, uneven)
        array = np.empty((len(slices), slices[0]["rows"], slices[0]["cols"]), np.float32)
        reader = self._reader("parent_id", series_id)
        for start in range(0, len(slices), AT_ONCE):
            part = slices[start : start + AT_ONCE]
            stored = reader([row["image_id"] for row in part])
            for place, row in enumerate(part, start):
                array[place] = _values(stored[row["image_id"]], row)
        frame = volume.frame_of(series[0], slices)
        return volume.Volume(array, frame.affine) if wanted is None else volume.resampled(array, frame, wanted)

    def mask(self, label_row_id: str) -> np.ndarray:
        """The label's mask, (rows, cols) bool; of a fractional one the pixels from its threshold on."""
        # The id of a row says nothing of its place, and masks are wide: the row is found by its narrow columns first.
        place = self.rows("labels", ["parent_id", "image_id"], label_row_id=label_row_id).to_pylist()
        if not place:
            raise BadRequest(f"no label {label_row_id} in this lake")
        known = {name: value for name, value in place[0].items() if value is not None}
        row = self.rows("labels", MASK, label_row_id=label_row_id, **known).to_pylist()[0]
        if row["mask"] is None:
            raise BadRequest(f"label {label_row_id} ({row['label']}) has no pixels")
        return _mask(row)

    def masks(self, **equal: Any) -> dict[str, np.ndarray]:
        """label_row_id -> mask, (rows, cols) bool, of the labels with these values: ``lake.masks(image_id=...)``, ``lake.masks(parent_id=...)``.

        Labels without pixels are left out. All masks are in memory at once: ask by image, or by a parent of some hundred images.
        """
        rows = self.rows("labels", ("label_row_id", *MASK), **equal).to_pylist()
        return {row["label_row_id"]: _mask(row) for row in rows if row["mask"] is not None}

    def show(self, image_id: str, labels: bool = True, window: tuple[float, float] | None = None) -> Picture:
        """The image as a picture, with the outlines and names of its labels; a notebook shows it, ``.save(path)`` writes it.

        window : (centre, width) in values; else the file's first one, else soft tissue for HU, else 8-bit images as they are and others by
        the middle 98 % of their values.
        MONOCHROME1 is shown inverted, pixels in their true proportions.
        """
        stored = self.image(image_id)
        found = self.rows("slices", (*VALUES, *LOOK), image_id=image_id).to_pylist()
        row: dict[str, Any] = found[0] if found else {}
        outlines: Iterable[dict[str, Any]] = self.rows("labels", MASK, image_id=image_id).to_pylist() if labels else ()
        row_mm, col_mm = row.get("pixel_spacing_mm") or (1.0, 1.0)
        return drawn(
            _looked_at(stored, row, window),
            [(one["label"], _mask(one)) for one in outlines if one["mask"] is not None],
            row_mm / col_mm,
        )


MASK = ("label", "rows", "cols", "threshold", "mask_codec", "mask")


def _mask(row: Mapping[str, Any]) -> np.ndarray:
    if row["mask_codec"] == "bits-zstd":
        return masks.unpack(row["mask"], row["rows"], row["cols"])
    fractions = masks.unpack_u8(row["mask"], row["rows"], row["cols"])
    threshold = masks.HALF if row["threshold"] is None else row["threshold"] * U8_FULL
    return (fractions >= threshold) & (fractions > 0)


def _values(stored: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    if stored.ndim == 3:
        return stored.astype(np.float64)  # colour has no rescale
    lut, first = unpack_lut(row["modality_lut"]) if row["modality_lut"] else (None, 0)
    return to_values(stored, row["rescale_slope"], row["rescale_intercept"], lut, first)


def _looked_at(stored: np.ndarray, row: Mapping[str, Any], window: tuple[float, float] | None) -> np.ndarray:
    """uint8, grey or colour."""
    if stored.dtype == np.uint8 and stored.ndim == 3:
        return stored
    values = _values(stored, row) if row else stored.astype(np.float64)
    function = "LINEAR_EXACT"
    if window is None and row.get("window_center") and row.get("window_width") and row["window_width"][0] >= 1:
        window = row["window_center"][0], row["window_width"][0]
        function = row["voi_lut_function"] if row["voi_lut_function"] in ("SIGMOID", "LINEAR_EXACT") else "LINEAR"
    elif window is None and row.get("is_hu"):
        window = WINDOW_HU
    if window is None and stored.dtype != np.uint8:
        low, high = np.percentile(values, OUTER_PERCENT)
        window = (low + high) / 2, max(high - low, LEAST_WIDTH)
    grey = stored if window is None else windowed(values, *window, function)
    return U8_FULL - grey if row.get("photometric") == "MONOCHROME1" else grey


def _known(file: Mapping[str, Any], columns: Iterable[str]) -> pc.Expression:
    """What the statistics promise of every row of a file; Arrow cannot use a promise that leaves room for nulls."""
    promise = pc.scalar(True)
    for name in columns:
        low, high = file.get(f"min.{name}"), file.get(f"max.{name}")
        if low is not None and high is not None and file.get(f"null_count.{name}") == 0:
            promise = promise & (pc.field(name) >= low) & (pc.field(name) <= high)
    return promise
