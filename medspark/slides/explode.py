"""One band of tile rows becomes rows of ``tiles`` and ``pixels``: the file's own tiles where the grid is the file's, new ones elsewhere.

The slide is opened once. Tile rows are taken in blocks; of a block, stored tiles are copied, what is left is read in rectangles of bounded
size and cut. Memory is bounded by `BLOCK_PX` and `FLUSH_BYTES`, whatever the slide's size. A tile that cannot be decoded is a rejection;
its neighbours are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from medspark.config import Config, Tiling
from medspark.errors import Rejected
from medspark.keys import Ids
from medspark.pixels import encode
from medspark.pixels.codecs import decode_jpeg
from medspark.pixels.tile_measure import Measures, measure
from medspark.slides.grid import LevelShape
from medspark.slides.plan import Band, copies_tiles
from medspark.slides.resample import BLOCK_PX, read_scaled
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import SourceFile, Unit, Watch

if TYPE_CHECKING:
    from medspark.slides.slide import Slide

FLUSH_BYTES = 32 << 20  # payload per Rows: eight row groups of 4 MB
BLOCK_HEIGHT_PX = 1024  # tile rows decoded together: of the file's tiles that a block cuts, few are decoded twice
MAX_SINGLE = 100  # tiles of one band that are rejected one by one; a slide broken throughout is said in fewer rows
NONE, PASSED, MADE, FAILED = range(4)
PIXEL_SOURCE = np.array(["none", "passthrough", "reencoded", "failed"], object)
COLUMNS = ("tile_row", "tile_col", "x_l0", "y_l0", "width_l0", "height_l0", "width_px", "height_px", "valid_width_px", "valid_height_px")


def explode(unit: Unit, ids: Ids, settings: Config, watch: Watch) -> Iterator[Rows | Rejection]:
    """Rows of ``tiles`` and ``pixels`` of the unit's `Band`, and rejections of single tiles, or of the whole band if the slide does not open."""
    from medspark.slides.reader import open_slide

    source = unit.sources[unit.work.level_source[unit.work.grid.level]]
    watch(source, "open")
    slide = None
    try:
        slide = open_slide([item.path for item in unit.sources], settings.guard)
        own = slide.levels[unit.work.grid.level] if unit.work.grid.level < len(slide.levels) else None
        if own is None or (own.width_px, own.height_px) != unit.work.level_size:
            raise Rejected("SLIDE_UNREADABLE", "the slide's levels are not those that were scanned")
    except Rejected as rejected:
        if slide is not None:
            slide.close()
        yield Rejection(source.source_id, source.uri, "explode", rejected.code, rejected.reason, unit.images)
        return
    try:
        yield from explode_band(slide, unit.work, source, ids, settings, watch)
    finally:
        slide.close()


def explode_band(slide: Slide, band: Band, source: SourceFile, ids: Ids, settings: Config, watch: Watch) -> Iterator[Rows | Rejection]:
    """See `explode`; ``slide`` stays open."""
    tiles = band.grid.table(band.row0, band.row1)
    work = _Work(slide, band, source, settings, watch, tiles)
    fractions = band.tissue_fractions
    wanted = fractions >= settings.tiling.min_tissue
    rows_at_once = 1 if work.through else max(1, BLOCK_HEIGHT_PX // band.grid.stride_px[1])
    n_cols, start, size = band.grid.n_cols, 0, 0
    for first in range(0, len(wanted), rows_at_once * n_cols):
        last = min(first + rows_at_once * n_cols, len(wanted))
        if work.through:
            work.pass_through(first, np.flatnonzero(wanted[first:last]))
        left = wanted[first:last] & (work.origin[first:last] == NONE)
        if left.any():
            work.make(first, left.reshape(-1, n_cols))
        size += sum(len(data) for data in work.payload[first:last] if data is not None)
        if size >= FLUSH_BYTES or last == len(wanted):
            yield from work.rows(start, last, fractions, ids)
            start, size = last, 0
    yield from work.rejections()


class _Work:
    """Final. What is known of each tile of the band so far: its payload, where it came from, its measures."""

    def __init__(self, slide: Slide, band: Band, source: SourceFile, settings: Config, watch: Watch, tiles: dict[str, np.ndarray]) -> None:
        self.slide, self.band, self.source, self.watch, self.tiles = slide, band, source, watch, tiles
        self.tiling: Tiling = settings.tiling
        self.limit_px = min(BLOCK_PX, settings.guard.max_pixels)
        self.level = slide.levels[band.grid.level]
        count = len(tiles["t_x"])
        self.payload: list[bytes | None] = [None] * count
        self.origin = np.zeros(count, np.int8)
        self.measures: dict[int, Measures] = {}
        self.params: dict[int, list[tuple[str, str]]] = {}
        self.failures: list[tuple[int, Rejected]] = []
        level = self.level
        shape = LevelShape(level.width_px, level.height_px, level.tile_width_px, level.tile_height_px)
        self.through = copies_tiles(self.tiling, band.grid, shape, level.compression)

    def pass_through(self, first: int, wanted: np.ndarray) -> None:
        """Copies the file's own tiles of one tile row that lie wholly on the slide; ``wanted`` are places in the row."""
        grid, tiles = self.band.grid, self.tiles
        if tiles["valid_height_px"][first] < grid.tile_height_px:
            return
        wanted = wanted[tiles["valid_width_px"][first + wanted] == grid.tile_width_px]
        if wanted.size == 0:
            return
        row = int(tiles["tile_row"][first])
        self.watch(self.source, f"tile row {row}")
        for col0, col1 in runs(wanted):
            if self.tiling.codec == "jp2":
                found = [self._stored_jp2(first, row, col) for col in range(col0, col1)]
            else:
                found = self.slide.stored_jpegs(grid.level, row, col0, col1)
            self.payload[first + col0 : first + col1] = found
            if None in found:
                self.origin[first + col0 : first + col1] = [NONE if data is None else PASSED for data in found]
            else:
                self.origin[first + col0 : first + col1] = PASSED
            if self.tiling.measure and self.tiling.codec == "jpeg":
                self._measure_stored(range(first + col0, first + col1))

    def _stored_jp2(self, first: int, row: int, col: int) -> bytes | None:
        from medspark.slides.codings import check_jp2

        data = self.slide.stored_jp2(self.band.grid.level, row, col)
        if data is None:
            return None
        try:
            subsampled = check_jp2(data, self.band.grid.tile_height_px, self.band.grid.tile_width_px)
        except ValueError:
            return None
        if self.level.compression == "jp2-ycbcr" and not subsampled:  # subsampled chroma is converted by the decoder itself
            self.params[first + col] = [("colour", "ycbcr")]
        return data

    def _measure_stored(self, places: range) -> None:
        for place in places:
            data = self.payload[place]
            if data is None:
                continue
            try:
                self.measures[place] = measure(decode_jpeg(data))
            except ValueError:
                self._fail(place, Rejected("DECODE_FAILED", "a stored tile is not a readable JPEG"))

    def make(self, first: int, todo: np.ndarray) -> None:
        """Decodes, cuts and encodes the tiles of a block; ``todo`` (tile rows, tile columns) bool."""
        grid, tiles = self.band.grid, self.tiles
        n_cols = todo.shape[1]
        height = int(
            tiles["t_y"][first + (len(todo) - 1) * n_cols] + tiles["height_px"][first + (len(todo) - 1) * n_cols] - tiles["t_y"][first]
        )
        most = max(1, (self.limit_px // max(1, height) - grid.overlap_px) // grid.stride_px[0])
        for col0, col1 in runs(np.flatnonzero(todo.any(axis=0))):
            for left in range(col0, col1, most):
                right = min(left + most, col1)
                places = [first + row * n_cols + col for row, col in np.argwhere(todo[:, left:right]) + (0, left)]
                if places:
                    self._make_places(places)

    def _make_places(self, places: list[int]) -> None:
        """One rectangle around all; where it cannot be read, tile by tile."""
        tiles = self.tiles
        x0, y0 = int(tiles["t_x"][places].min()), int(tiles["t_y"][places].min())
        x1 = int((tiles["t_x"] + tiles["width_px"])[places].max())
        y1 = int((tiles["t_y"] + tiles["height_px"])[places].max())
        self.watch(self.source, f"tiles from row {int(tiles['tile_row'][places[0]])}, column {int(tiles['tile_col'][places[0]])}")
        try:
            block = read_scaled(self.slide, self.band.grid.level, self.band.grid.frames.t_in_l, x0, y0, x1 - x0, y1 - y0, self.limit_px)
        except Rejected as rejected:
            if len(places) == 1:
                self._fail(places[0], rejected)
            else:
                for place in places:
                    self._make_places([place])
            return
        for t_y, found in groupby(places, lambda place: int(tiles["t_y"][place])):
            self._encode_row(block[t_y - y0 :], x0, list(found))

    def _encode_row(self, strip: np.ndarray, x0: int, places: list[int]) -> None:
        """Tiles of one tile row, whose pixels begin with ``strip`` at column ``x0`` of the grid's plane."""
        tiles, quality = self.tiles, {"quality": str(self.tiling.jpeg_quality)}
        valid_height = int(tiles["valid_height_px"][places[0]])
        for place, left in zip(places, (tiles["t_x"][places] - x0).tolist(), strict=True):
            array = np.ascontiguousarray(strip[: tiles["height_px"][place], left : left + tiles["width_px"][place]])
            self.measures[place] = measure(array[:valid_height, : tiles["valid_width_px"][place]])  # while a core's cache holds it
            self.payload[place] = encode(array, self.tiling.codec, quality)
            self.origin[place] = MADE

    def _fail(self, place: int, rejected: Rejected) -> None:
        self.payload[place], self.origin[place] = None, FAILED
        self.failures.append((place, rejected))

    def rejections(self) -> Iterator[Rejection]:
        """One for each tile that could not be decoded; what is beyond `MAX_SINGLE` together, by its code."""
        source, counted = self.source, Counter[str]()
        for number, (place, rejected) in enumerate(self.failures):
            where = f"tile row {self.tiles['tile_row'][place]}, column {self.tiles['tile_col'][place]}"
            if number < MAX_SINGLE:
                yield Rejection(source.source_id, source.uri, "explode", rejected.code, f"{where}: {rejected.reason}", 1)
            else:
                counted[rejected.code] += 1
        for code, count in counted.items():
            message = f"{count} more tiles of tile rows {self.band.row0} to {self.band.row1 - 1} cannot be decoded"
            yield Rejection(source.source_id, source.uri, "explode", code, message, count)

    def rows(self, first: int, last: int, fractions: np.ndarray, ids: Ids) -> Iterator[Rows]:
        """Rows of tiles first <= place < last, and of their pixels; their payload is let go."""
        band, places = self.band, np.arange(first, last)
        places = places[self.origin[first:last] != FAILED]
        if places.size == 0:
            return
        parent, grid_id, image = band.slide_id, band.grid_id, ids.image
        pairs = zip(self.tiles["tile_row"][places].tolist(), self.tiles["tile_col"][places].tolist(), strict=True)
        image_id = [image(parent, grid_id, row, col) for row, col in pairs]
        columns: dict[str, Any] = {name: self.tiles[name][places] for name in COLUMNS}
        constants = {
            "slide_id": parent,
            "grid_id": grid_id,
            "dataset": band.dataset,
            "subject_key": band.subject_key,
            "optical_path": band.optical_path,
        }
        columns |= {name: pa.repeat(pa.scalar(value, pa.string()), len(places)) for name, value in constants.items()}
        columns["level"] = np.full(len(places), band.grid.level, np.int32)
        columns["focal_plane"] = np.full(len(places), band.focal_plane, np.int32)
        columns["tissue_fraction"] = fractions[places]
        columns["pixel_source"] = PIXEL_SOURCE[self.origin[places]]
        columns["image_id"] = image_id
        mpp_um = band.grid.frames.t_mpp_um
        if mpp_um is not None:
            columns["mpp_um"] = np.full(len(places), mpp_um)
        if self.measures:
            measured = [self.measures.get(place, (None, None)) for place in places.tolist()]
            columns["mean_rgb"], columns["sharpness"] = ([item[side] for item in measured] for side in (0, 1))
        yield Rows("tiles", columns)
        kept = [(place, name) for place, name in zip(places.tolist(), image_id, strict=True) if self.payload[place] is not None]
        if kept:
            yield self._pixels([place for place, _ in kept], [name for _, name in kept])
        self.payload[first:last] = [None] * (last - first)
        self.measures.clear()

    def _pixels(self, places: list[int], image_id: list[str]) -> Rows:
        shapes = np.column_stack([self.tiles["height_px"][places], self.tiles["width_px"][places], np.full(len(places), 3)])
        constants = {"dataset": self.band.dataset, "parent_id": self.band.slide_id, "codec": self.tiling.codec, "dtype": "uint8"}
        columns: dict[str, Any] = {name: pa.repeat(pa.scalar(value, pa.string()), len(places)) for name, value in constants.items()}
        columns["image_id"] = image_id
        columns["shape"] = shapes.tolist()
        columns["params"] = [self.params.get(place, []) for place in places]
        columns["bytes"] = [self.payload[place] for place in places]
        return Rows("pixels", columns)


def runs(places: np.ndarray) -> list[tuple[int, int]]:
    """Half-open runs of consecutive numbers in a sorted array: [3, 4, 5, 9] -> [(3, 6), (9, 10)]."""
    if places.size == 0:
        return []
    cuts = np.flatnonzero(np.diff(places) != 1)
    starts = places[np.concatenate([[0], cuts + 1])]
    stops = places[np.concatenate([cuts, [places.size - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
