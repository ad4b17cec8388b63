"""QuPath's GeoJSON: level-0 px of the whole slide (or px of one image), a feature per label and object.

Where the regions that were drawn rasterise to exactly the masks of the labels they go out as drawn; else (masks that were painted, predicted,
united, cut by another label or by an exclusion) the outlines of the masks do, along the borders of the pixels.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.labels.export.rows import Mask, Reader
from medspark.labels.export.stitch import Canvas
from medspark.labels.export.trace import trace
from medspark.labels.label_rows import Groups
from medspark.labels.link_tiles import Drawn, Tile, tile_rows
from medspark.labels.shapes import Shapes, expand_boxes

ROLES = ("positive", "ignore")
"""What QuPath has a word for: classes that end in ``*`` do not count, as on import."""
_AREAS = ("polygon", "box", "contour")


@dataclass(frozen=True)
class Object:
    """What one feature says: one label and object of one reader."""

    reader: Reader
    label: str
    instance_key: str
    role: str

    @classmethod
    def of(cls, mask: Mask) -> Object:
        return cls(mask.reader, mask.label, mask.instance_key or "", mask.role)


@dataclass(frozen=True)
class Feature:
    """A feature as JSON; ``drawn``: its shape is the one that was drawn."""

    text: str
    drawn: bool
    label_rows: int


def features(canvas: Canvas, masks: Sequence[Mask], regions: pa.Table | None = None) -> Iterator[Feature]:
    """The features of one slide (masks on the tiles of one grid) or of one image.

    regions : rows of ``regions`` that belong to the slide, in level-0 px; only those of the masks' own sources are looked at
    Raises Rejected(TOO_LARGE, LABEL_GEOMETRY).
    """
    objects: dict[Object, list[Mask]] = {}
    for mask in masks:
        objects.setdefault(Object.of(mask), []).append(mask)
    drawn = _drawn(objects, regions) if regions is not None and regions.num_rows else {}
    for what in sorted(objects, key=lambda one: (one.label, one.instance_key, one.role, one.reader)):
        mine = objects[what]
        shapes = drawn[what] if what in drawn else list(_traced(canvas, mine))
        for number, shape in enumerate(shapes):
            yield Feature(_feature(mine[0], what, shape, number), what in drawn, len(mine) if number == 0 else 0)


def document(of: Iterator[Feature]) -> Iterator[bytes]:
    """The file, piece by piece."""
    yield b'{"type": "FeatureCollection", "features": ['
    for number, feature in enumerate(of):
        yield (b",\n" if number else b"\n") + feature.text.encode()
    yield b"\n]}\n"


def _feature(mask: Mask, what: Object, shape: dict[str, Any], number: int) -> str:
    owner = mask.image.get("slide_id") or mask.image_id
    named = uuid.uuid5(uuid.NAMESPACE_OID, repr((owner, what, number)))  # QuPath's objects have UUIDs
    name = what.label if what.role == "positive" or what.label.endswith("*") else what.label + "*"
    own = {"instance_key": what.instance_key, "source": what.reader.source, "annotator": what.reader.annotator}
    properties: dict[str, Any] = {
        "objectType": "annotation",
        "classification": {"name": name, "color": list(hashlib.sha256(what.label.encode()).digest()[:3])},
        "metadata": {key: value for key, value in own.items() if value},
    }
    return json.dumps({"type": "Feature", "id": str(named), "geometry": shape, "properties": properties})


# ---- as traced


def _traced(canvas: Canvas, masks: Sequence[Mask]) -> Iterator[dict[str, Any]]:
    """One polygon or multi-polygon; nothing for an empty mask."""
    row0, col0, stripes = canvas.united(masks)
    scale_x, scale_y = canvas.scale

    def closed(ring: np.ndarray) -> list[list[float]]:
        x, y = (ring[:, 0] + col0) * scale_x, (ring[:, 1] + row0) * scale_y
        points = np.stack([x, y], axis=1).tolist()
        return [*points, points[0]]

    polygons = [[closed(one.outer), *map(closed, one.holes)] for one in trace(stripes)]
    if polygons:
        yield _areas(polygons)


def _areas(polygons: list[Any]) -> dict[str, Any]:
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


# ---- as drawn


def _drawn(objects: Mapping[Object, Sequence[Mask]], regions: pa.Table) -> dict[Object, list[dict[str, Any]]]:
    """The drawn shapes of those objects whose masks, all of them, are what the shapes rasterise to."""
    found: dict[Object, list[dict[str, Any]]] = {}
    by_reader: dict[Reader, dict[Object, list[Mask]]] = {}
    for what, masks in objects.items():
        by_reader.setdefault(what.reader, {})[what] = list(masks)
    for reader, mine in by_reader.items():
        table = regions.filter(pa.array([source == reader.source_id for source in regions.column("source_id").to_pylist()], pa.bool_()))
        if not table.num_rows or not all("x_l0" in mask.image for masks in mine.values() for mask in masks):
            continue
        groups = Groups()
        group_of = groups.add(table)
        numbers = {
            Object(reader, group.label, group.instance_key or "", group.role): number
            for number, group in enumerate(groups.groups)
            if (group.annotator or "") == reader.annotator and not group.excludes
        }
        here = {what: numbers[what] for what in mine if what in numbers}
        wrong = _differing(here, mine, table, group_of)
        for what, number in here.items():
            if what not in wrong:
                rows = table.filter(pa.array((group_of == number).tolist(), pa.bool_()))
                shapes = _shapes(rows)
                if shapes:
                    found[what] = shapes
    return found


def _differing(here: Mapping[Object, int], mine: Mapping[Object, Sequence[Mask]], table: pa.Table, group_of: np.ndarray) -> set[Object]:
    """The objects of which a tile's mask is not what the drawn shapes give there."""
    shapes = Shapes.of(expand_boxes(table))
    drawn, wrong = Drawn(shapes, group_of), set[Object]()
    on_tile: dict[str, list[tuple[Object, Mask]]] = {}
    tiles: dict[str, Mapping[str, Any]] = {}
    for what in here:
        for mask in mine[what]:
            on_tile.setdefault(mask.image_id, []).append((what, mask))
            tiles[mask.image_id] = mask.image
    names = [*Tile.__dataclass_fields__, "tile_row", "tile_col"]
    rows = pa.Table.from_pylist(
        [{**{name: image[name] for name in names if name != "image_id"}, "image_id": one} for one, image in tiles.items()]
    )
    for band in tile_rows(rows):
        within = drawn.within(min(tile.y_l0 for tile in band), max(tile.y_l0 + tile.height_l0 for tile in band))
        for tile in band:
            pieces = within.on(tile)
            for what, mask in on_tile[tile.image_id]:
                piece = pieces.get(here[what])
                if piece is None or mask.fractional or not np.array_equal(piece.on(mask.rows, mask.cols), mask.inside()):
                    wrong.add(what)
    return wrong


def _shapes(rows: pa.Table) -> list[dict[str, Any]]:
    """GeoJSON geometries of the regions of one object: its areas in one where they make a valid multi-polygon, lines and points apart."""
    import shapely

    polygons, others = [], []
    for geometry, rings in zip(rows.column("geometry").to_pylist(), expand_boxes(rows).column("rings").to_pylist(), strict=True):
        lines = [[[point["x"], point["y"]] for point in ring] for ring in rings]
        if not lines:
            continue
        if geometry in _AREAS:
            polygons.append([[*ring, ring[0]] for ring in lines])
        elif geometry == "line":
            others.append({"type": "LineString", "coordinates": lines[0]})
        else:
            others += [{"type": "Point", "coordinates": point} for ring in lines for point in ring]
    if len(polygons) > 1:
        whole = shapely.MultiPolygon([shapely.Polygon(outer, holes) for outer, *holes in polygons])
        if not whole.is_valid:  # shapes that overlap: each stays what it is
            return [_areas([one]) for one in polygons] + others
    return ([_areas(polygons)] if polygons else []) + others
