"""QuPath's GeoJSON: level-0 px relative to the whole slide (not to its scanned bounds)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medspark.errors import Rejected
from medspark.labels.formats.json_items import Outline, outline, parts
from medspark.labels.regions import UNCLASSIFIED, Context, Geometry, Item, Region, is_box, points, ring

_CLASS_IDS = frozenset(
    f"{name}Object" for name in ("PathAnnotation", "PathDetection", "PathCell", "PathTile", "PathRoot", "TMACore", "Path")
)
"""QuPath before 0.3 wrote its Java class where the object's id belongs."""
GEOMETRIES = ("Polygon", "MultiPolygon", "LineString", "MultiLineString", "Point", "MultiPoint", "GeometryCollection")
_OBJECT_TYPES = ("annotation", "detection", "cell", "tile", "tma_core", "root")


def is_geojson(document: Outline) -> bool:
    """Whether it is a FeatureCollection, an array of features, one feature, or a geometry without one (RFC 7946 section 3)."""
    in_arrays = _is_collection(document.rest) or (document.rest is None and document.types == {"Feature"})
    return in_arrays or bool(_alone(document.rest))


def _is_collection(document: Any) -> bool:
    return isinstance(document, dict) and document.get("type") == "FeatureCollection" and isinstance(document.get("features"), list)


def _alone(document: Any) -> list[Any]:
    """The feature that a document is, or of the geometry that it is; no feature where it is something else."""
    kind = document.get("type") if isinstance(document, dict) else None
    if kind == "Feature":
        return [document]
    return [{"type": "Feature", "geometry": document}] if kind in GEOMETRIES else []


def read(path: str, context: Context) -> Iterator[Item]:
    """One `Region` per polygon, line or point; those of one feature share its id as ``instance_key``.

    Features are read one by one, in two passes: a document that breaks off somewhere gives nothing.
    """
    document = outline(path, context, "features")
    if not is_geojson(document):
        raise Rejected("LABEL_FORMAT", "the JSON holds no GeoJSON features")
    found = _alone(document.rest) or (value for is_item, value in parts(path, context, "features") if is_item)
    images = context.images()
    for place, feature in enumerate(found):
        try:
            regions = list(_regions(feature, place, images))
        except Rejected as error:
            yield error
        else:
            yield from regions


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
