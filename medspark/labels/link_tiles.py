"""Annotations of a slide to rows of ``labels`` on its tiles.

Shapes stay in level-0 pixels and are asked at the tiles' own pixel centres, so that neighbouring tiles agree and their areas sum to the
whole. One row of tiles is worked on at a time; raster masks stream by in bands and only those that the row needs are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.config import Config
from medspark.keys import Ids
from medspark.labels.label_rows import FLUSH_ROWS, Groups, LabelRows, Piece, column, settle, unite
from medspark.labels.mask_bands import Bands
from medspark.labels.raster import Edges, Runs, Spans, concat, lines, points, runs
from medspark.labels.shapes import Shapes, expand_boxes
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import SourceFile

Values = Callable[[list[str]], Mapping[str, np.ndarray]]
TILES_AT_ONCE = 64  # tiles whose pixels are held together: 12 MB of 256-px RGB
UM_PER_MM = 1000.0


@dataclass(frozen=True)
class Tile:
    """One row of ``tiles``, as far as labels need it. (x_l0, y_l0) is the corner of its first pixel."""

    image_id: str
    dataset: str
    subject_key: str
    x_l0: float
    y_l0: float
    width_l0: float
    height_l0: float
    width_px: int
    height_px: int
    valid_width_px: int
    valid_height_px: int
    mpp_um: float | None
    pixel_source: str

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) level-0 px per tile px."""
        return self.width_l0 / self.width_px, self.height_l0 / self.height_px

    def xs(self) -> np.ndarray:
        """Level-0 x of the pixel centres that lie on the slide."""
        return self.x_l0 + (np.arange(self.valid_width_px) + 0.5) * self.width_l0 / self.width_px

    def ys(self) -> np.ndarray:
        return self.y_l0 + (np.arange(self.valid_height_px) + 0.5) * self.height_l0 / self.height_px


def link_tiles(
    slide: Mapping[str, Any],
    grid: Mapping[str, Any],
    tiles: pa.Table,
    regions: pa.Table,
    planes: Iterator[pa.Table],
    values: Values,
    source: SourceFile,
    ids: Ids,
    settings: Config,
    now: datetime,
) -> Iterator[Rows | Rejection]:
    """Rows of ``labels`` for the tiles of one grid that a label touches, and one for the slide per label without pixels.

    regions, planes : those of ``source`` that belong to this slide; planes come in the order of their first row
    values : stored arrays of the given images; those that it leaves out have no pixels
    Rejections: LABEL_GEOMETRY (coordinates that are not finite, a plane placed in a patient), LABEL_SIZE (a mask that is no scaled slide).
    The rows of labels without pixels do not depend on the grid: link a slide's second grid and they come again, with the same ids.
    """
    rows = LabelRows(ids, source, now)
    groups = Groups()
    owner = {"dataset": slide["dataset"], "subject_key": slide["subject_key"], "parent_id": slide["slide_id"]}
    regions = expand_boxes(regions)
    shapes, group_of = Shapes.of(regions), groups.add(regions)
    for number in dict.fromkeys(group_of[shapes.n_points() == 0].tolist()):
        rows.add(groups[number], "slide", slide["slide_id"], owner)
    broken = int(((shapes.n_points() > 0) & np.isnan(shapes.box[:, 0])).sum())
    if broken:
        reason = f"{broken} of {len(shapes)} shapes have coordinates that are not finite"
        yield Rejection(source.source_id, source.uri, "link", "LABEL_GEOMETRY", reason)
    bands = Bands(planes, slide, groups, settings.labels.resample)
    drawn = Drawn(shapes, group_of)
    for band in tile_rows(tiles):
        shapes_here = drawn.within(min(tile.y_l0 for tile in band), max(tile.y_l0 + tile.height_l0 for tile in band))
        bands.advance(band[0])
        for start in range(0, len(band), TILES_AT_ONCE):
            found: list[tuple[Tile, dict[int, Piece]]] = []
            for tile in band[start : start + TILES_AT_ONCE]:
                size = tile.height_px, tile.width_px
                pieces = shapes_here.on(tile)
                for number, piece in bands.on(tile):
                    pieces[number] = unite([pieces[number], piece], *size) if number in pieces else piece
                if pieces:
                    pieces = settle(pieces, groups, settings.labels.overlap, *size)
                    pieces = {number: piece for number, piece in pieces.items() if piece.mask.any()}
                if pieces:
                    found.append((tile, pieces))
            stored = [tile.image_id for tile, _ in found if tile.pixel_source != "none"]
            arrays = values(stored) if stored else {}
            for tile, pieces in found:
                of_tile = {**owner, "dataset": tile.dataset, "subject_key": tile.subject_key}
                on_slide = tile.valid_width_px * tile.valid_height_px
                pixel_mm2 = None if tile.mpp_um is None else (tile.mpp_um / UM_PER_MM) ** 2
                array = arrays.get(tile.image_id)
                size = tile.height_px, tile.width_px
                for number in sorted(pieces):
                    rows.add_mask(groups[number], tile.image_id, of_tile, pieces[number], size, on_slide, pixel_mm2, array)
            yield from rows.take(FLUSH_ROWS)
    bands.finish()
    yield from rows.take()
    for code, reason in bands.faults:
        yield Rejection(source.source_id, source.uri, "link", code, reason)


def tile_rows(tiles: pa.Table) -> Iterator[list[Tile]]:
    """The tiles of a grid row by row from the top, each row from the left; other focal planes and optical paths stand beside."""
    if not tiles.num_rows:
        return
    names = list(Tile.__dataclass_fields__)
    order = tiles.select([*names, "tile_row", "tile_col"]).sort_by(
        [("y_l0", "ascending"), ("x_l0", "ascending"), ("image_id", "ascending")]
    )
    tile_row = order.column("tile_row").to_numpy()
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(tile_row)) + 1, [len(tile_row)]])
    for first, stop in pairwise(cuts.tolist()):
        part = order.slice(first, stop - first)
        yield [Tile(*row) for row in zip(*(column(part, name) for name in names), strict=True)]


@dataclass(frozen=True)
class Drawn:
    """The shapes of a slide and the group of each."""

    shapes: Shapes
    group_of: np.ndarray

    def within(self, top_l0: float, bottom_l0: float) -> DrawnRow:
        """The shapes whose box meets the rows between, ordered by group, with those of their edges that do."""
        shapes = self.shapes
        here = np.flatnonzero((shapes.box[:, 3] >= top_l0) & (shapes.box[:, 1] <= bottom_l0))
        here = here[np.argsort(self.group_of[here], kind="stable")]
        kind = shapes.geometry[here]
        area = ~np.isin(kind, ("line", "point"))
        edges = shapes.edges(here[area], np.flatnonzero(area))
        edges = edges.part(np.flatnonzero((np.maximum(edges.y1, edges.y2) >= top_l0) & (np.minimum(edges.y1, edges.y2) <= bottom_l0)))
        return DrawnRow(shapes, here, self.group_of[here], kind, edges)


@dataclass(frozen=True)
class DrawnRow:
    """The shapes that meet one row of tiles; the owner of an edge is the shape's place in ``here``, ordered by group."""

    shapes: Shapes
    here: np.ndarray
    group_of: np.ndarray
    kind: np.ndarray
    edges: Edges
    _runs: dict[tuple[float, float, int, int], Runs] = field(default_factory=dict)

    def on(self, tile: Tile) -> dict[int, Piece]:
        """Group -> mask on the tile, in the order of the groups."""
        if not len(self.here):
            return {}
        height = tile.y_l0, tile.height_l0, tile.height_px, tile.valid_height_px
        if height not in self._runs:  # the tiles of a row share their rows of pixels: crossings are computed once
            self._runs[height] = runs(self.edges, tile.ys())
        spans = self._runs[height].on(tile.xs())
        thin = [self._thin(tile, kind) for kind in ("line", "point") if (self.kind == kind).any()]
        if thin:
            spans = concat([spans, *thin])
        if not len(spans):
            return {}
        group = self.group_of[spans.owner]
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1, [len(group)]]).tolist()
        return {int(group[first]): Piece.of(spans.part(slice(first, stop))) for first, stop in pairwise(cuts)}

    def _thin(self, tile: Tile, kind: str) -> Spans:
        """Lines and points, in the tile's own pixels with centres at whole numbers."""
        box = self.shapes.box[self.here]
        near = np.flatnonzero((self.kind == kind) & (box[:, 2] >= tile.x_l0) & (box[:, 0] <= tile.x_l0 + tile.width_l0))
        edges = self.shapes.edges(self.here[near], near, closed=False)
        scale_x, scale_y = tile.scale
        x1, x2 = ((x - tile.x_l0) / scale_x - 0.5 for x in (edges.x1, edges.x2))
        y1, y2 = ((y - tile.y_l0) / scale_y - 0.5 for y in (edges.y1, edges.y2))
        size = tile.valid_height_px, tile.valid_width_px
        if kind == "line":
            return lines(Edges(edges.owner, x1, y1, x2, y2), *size)
        both = np.concatenate([edges.owner, edges.owner])  # a chain without its closing edge: every point begins or ends one
        return points(both, np.concatenate([x1, x2]), np.concatenate([y1, y2]), *size)
