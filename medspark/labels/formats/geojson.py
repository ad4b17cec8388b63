"""QuPath's GeoJSON: level-0 px relative to the whole slide (not to its scanned bounds)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from medspark.errors import Rejected
from medspark.labels.formats.json_items import items
from medspark.labels.regions import UNCLASSIFIED, Context, Geometry, Item, Region, is_box, points, ring

_CLASS_IDS = frozenset(
    f"{name}Object" for name in ("PathAnnotation", "PathDetection", "PathCell", "PathTile", "PathRoot", "TMACore", "Path")
)
"""QuPath before 0.3 wrote its Java class where the object's id belongs."""
GEOMETRIES = ("Polygon", "MultiPolygon", "LineString", "MultiLineString", "Point", "MultiPoint", "GeometryCollection")
WATCH_EVERY = 50_000  # features: some seconds
_OBJECT_TYPES = ("annotation", "detection", "cell", "tile", "tma_core", "root")


def load(path: str, context: Context) -> Any:
    """The JSON document; raises Rejected(LABEL_FORMAT)."""
    context.check_size(os.path.getsize(path))
    context.watch("json")
    try:
        with open(path, encoding="utf-8-sig") as stream:
            return json.load(stream)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Rejected("LABEL_FORMAT", "not valid JSON") from None


def features(document: Any) -> list[Any] | None:
    """The features of a FeatureCollection, a list of features, one feature, or a geometry without one; None where it is something else."""
    if _is_collection(document):
        return list(document["features"])
    if _is_feature(document):
        return [document]
    if isinstance(document, dict) and document.get("type") in GEOMETRIES:
        return [{"type": "Feature", "geometry": document}]
    if isinstance(document, list) and document and all(map(_is_feature, document)):
        return document
    return None


def _is_collection(document: Any) -> bool:
    return isinstance(document, dict) and document.get("type") == "FeatureCollection" and isinstance(document.get("features"), list)


def _is_feature(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "Feature"


def read(path: str, context: Context) -> Iterator[Item]:
    """One `Region` per polygon, line or point; those of one feature share its id as ``instance_key``.

    Features are read one by one, in two passes: a document that breaks off somewhere gives nothing.
    """
    context.check_size(os.path.getsize(path))
    alone = _outside_arrays(path, context)
    found = (value for is_item, value in _parts_of(path, context) if is_item) if alone is None else alone
    images = context.images()
    for place, feature in enumerate(found):
        try:
            regions = list(_regions(feature, place, images))
        except Rejected as error:
            yield error
        else:
            yield from regions


def _outside_arrays(path: str, context: Context) -> list[Any] | None:
    """The features of a document that has no array of them, None where it has; raises Rejected(LABEL_FORMAT) for any other."""
    n_items, only_features, rest = 0, True, None
    for is_item, value in _parts_of(path, context):
        if is_item:
            n_items, only_features = n_items + 1, only_features and _is_feature(value)
        else:
            rest = value
    if _is_collection(rest) or (rest is None and n_items and only_features):
        return None
    alone = features(rest)
    if alone is None:
        raise Rejected("LABEL_FORMAT", "the JSON holds no GeoJSON features")
    return alone


def _parts_of(path: str, context: Context) -> Iterator[tuple[bool, Any]]:
    context.watch("json")
    try:
        with open(path, encoding="utf-8-sig") as stream:
            for number, part in enumerate(items(stream, "features"), start=1):
                if number % WATCH_EVERY == 0:
                    context.watch(f"feature {number}")
                yield part
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Rejected("LABEL_FORMAT", "not valid JSON") from None


def _regions(feature: Any, place: int, images: tuple[str, ...]) -> Iterator[Region]:
    properties = feature.get("properties") if isinstance(feature, dict) else None
    properties = properties if isinstance(properties, dict) else {}
    said = feature.get("id") if isinstance(feature, dict) else None
    key = str(said) if isinstance(said, (str, int)) and said and said not in _CLASS_IDS else str(place)
    label, extra = _label(properties), {}
    kind = str(properties.get("objectType", properties.get("object_type", ""))).lower()
    if kind in _OBJECT_TYPES:
        extra["object_type"] = kind
    # QuPath's own convention: classes whose name ends with "*" do not count
    role = "ignore" if label.endswith("*") else "positive"
    shapes = [(label, feature.get("geometry") if isinstance(feature, dict) else None)]
    if isinstance(feature, dict) and isinstance(feature.get("nucleusGeometry"), dict):
        shapes.append((f"{label}: nucleus", feature["nucleusGeometry"]))
    for name, shape in shapes:
        for geometry, rings, more in _parts(shape):
            for image in images:
                yield Region(image, name, geometry, rings, role, instance_key=key, properties={**extra, **more})  # type: ignore[arg-type]


def _parts(shape: Any) -> Iterator[tuple[Geometry, tuple[Any, ...], dict[str, str]]]:
    """(geometry, rings, properties) of each simple part of a GeoJSON geometry (RFC 7946 section 3.1)."""
    if not isinstance(shape, dict):
        raise Rejected("LABEL_GEOMETRY", "a feature has no geometry")
    kind, coordinates = shape.get("type"), shape.get("coordinates")
    if kind == "GeometryCollection" and isinstance(shape.get("geometries"), list):
        for part in shape["geometries"]:
            if isinstance(part, dict) and part.get("type") == "GeometryCollection":
                raise Rejected("LABEL_FORMAT", "a geometry collection holds another one")  # RFC 7946: SHOULD be avoided; unbounded here
            yield from _parts(part)
        return
    if not isinstance(coordinates, list):
        raise Rejected("LABEL_GEOMETRY", "a geometry has no coordinates")
    if kind == "Polygon":
        yield _polygon(coordinates, {})
    elif kind == "MultiPolygon":
        for place, part in enumerate(coordinates):
            yield _polygon(part, {"shape": "MultiPolygon", "part": str(place)})
    elif kind in ("LineString", "MultiLineString"):
        for part in [coordinates] if kind == "LineString" else coordinates:
            yield "line", (points(part),), {}
    elif kind in ("Point", "MultiPoint"):
        for row in points([coordinates] if kind == "Point" else coordinates):
            yield "point", (row[None, :],), {}
    else:
        raise Rejected("LABEL_FORMAT", "a geometry is of a type that GeoJSON does not have")


def _polygon(coordinates: Any, properties: dict[str, str]) -> tuple[Geometry, tuple[Any, ...], dict[str, str]]:
    if not isinstance(coordinates, list) or not coordinates:
        raise Rejected("LABEL_GEOMETRY", "a polygon has no outline")
    rings = tuple(ring(part) for part in coordinates)
    return ("box" if len(rings) == 1 and is_box(rings[0]) else "polygon"), rings, properties


def _label(properties: dict[str, Any]) -> str:
    """The class: ``classification.name``, ``classification.names`` (QuPath 0.4 and later) or ``classification`` itself."""
    said = properties.get("classification")
    if isinstance(said, dict):
        names = said.get("names")
        said = said.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else None)
    return said.strip() if isinstance(said, str) and said.strip() else UNCLASSIFIED
