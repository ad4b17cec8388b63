"""DICOM Microscopy Bulk Simple Annotations (PS3.3 A.87, C.37): shapes in px of the referenced image's total pixel matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from medspark.errors import Rejected
from medspark.labels.formats.dicom import annotator, concept, one_reference, open_dataset, refuses_broken_values, series_of_instances
from medspark.labels.regions import Context, Geometry, Item, Region, is_box, points, ring

if TYPE_CHECKING:
    from pydicom import Dataset

ELLIPSE_POINTS = 64
"""Corners of the polygon that stands for an ellipse: its area is 0.16 % short."""
_FIXED = {"POINT": 1, "RECTANGLE": 4, "ELLIPSE": 4}
_LISTED = ("POLYLINE", "POLYGON")


@refuses_broken_values
def read(path: str, context: Context) -> Iterator[Item]:
    """One `Region` per annotation; instance_key = ``<group number>:<place in the group, from 1>``."""
    ds = open_dataset(path, context)
    if ds.get("AnnotationCoordinateType") != "2D":
        raise Rejected("LABEL_GEOMETRY", "the annotations are in slide coordinates (3D), not in pixels of an image")
    uid, frame = one_reference(ds.get("ReferencedImageSequence") or ())
    if ds.get("PixelOriginInterpretation", "VOLUME") == "FRAME" and frame == 0:
        raise Rejected("LABEL_GEOMETRY", "the annotations count from the corner of a frame, but no frame is referred to")
    refs = context.paired() or ((f"sop:{context.ids.uid(uid)}#{frame}",) if uid else ())
    if not refs:
        raise Rejected("LABEL_FORMAT", "the annotations refer to none or to several images")
    series = series_of_instances(ds, context).get(uid)
    for group in ds.get("AnnotationGroupSequence") or ():
        try:
            shapes = _shapes(group)
        except Rejected as error:
            yield error
            continue
        number, kind = int(group.get("AnnotationGroupNumber") or 0), str(group.GraphicType)
        said, generation = concept(group, "AnnotationPropertyTypeCodeSequence"), str(group.get("AnnotationGroupGenerationType") or "")
        label = str(group.get("AnnotationGroupLabel") or "").strip() or said.code_meaning or f"group_{number}"
        algorithms = group.get("AnnotationGroupAlgorithmIdentificationSequence") or ()
        names = [item.get("AlgorithmName") for item in algorithms] if generation == "AUTOMATIC" else [ds.get("ContentCreatorName")]
        properties = {"shape": kind} | ({"generation_type": generation} if generation in ("MANUAL", "SEMIAUTOMATIC", "AUTOMATIC") else {})
        who = annotator(context, *names)
        for place, shape in enumerate(shapes, start=1):
            try:
                geometry, outline = _outline(kind, shape)
            except Rejected as error:
                yield error
                continue
            for ref in refs:
                yield Region(
                    *(ref, label, geometry, (outline,)),
                    **said.fields(),
                    instance_key=f"{number}:{place}",
                    annotator=who,
                    ref_series_id=series,
                    properties=properties,
                )


def _shapes(group: Dataset) -> list[np.ndarray]:
    """The points (n, 2) of each annotation of a group (PS3.3 C.37.1.2)."""
    kind = str(group.get("GraphicType") or "")
    raw = group.get("DoublePointCoordinatesData")
    array = np.frombuffer(raw, "<f8") if raw is not None else _floats(group)
    if array.size == 0 or array.size % 2:
        raise Rejected("LABEL_GEOMETRY", "an annotation group's coordinates are not pairs")
    table = array.reshape(-1, 2)
    if kind in _FIXED:
        if len(table) % _FIXED[kind]:
            raise Rejected("LABEL_GEOMETRY", "an annotation group ends within a shape")
        shapes = list(table.reshape(-1, _FIXED[kind], 2))
    elif kind in _LISTED:
        index = group.get("LongPrimitivePointIndexList")
        starts = np.frombuffer(index, "<u4").astype(np.int64) - 1 if index is not None else np.zeros(1, np.int64)
        if starts.size == 0 or starts[0] != 0 or (starts % 2).any() or (np.diff(starts) <= 0).any() or starts[-1] >= array.size:
            raise Rejected("LABEL_GEOMETRY", "an annotation group's index does not fit its coordinates")
        shapes = np.split(table, starts[1:] // 2)
    else:
        raise Rejected("LABEL_FORMAT", "an annotation group is of a graphic type that DICOM does not have")
    said = group.get("NumberOfAnnotations")
    if said is not None and int(said) != len(shapes):
        raise Rejected("LABEL_GEOMETRY", "an annotation group holds another number of shapes than it says")
    return shapes


def _floats(group: Dataset) -> np.ndarray:
    raw = group.get("PointCoordinatesData")
    return np.frombuffer(raw, "<f4").astype(np.float64) if raw is not None else np.zeros(0)


def _outline(kind: str, shape: np.ndarray) -> tuple[Geometry, np.ndarray]:
    if kind == "POINT":
        return "point", points(shape)
    if kind == "POLYLINE":
        return "line", points(shape)
    if kind == "ELLIPSE":  # ends of the major axis, then of the minor axis
        ends = points(shape)
        centre = ends.mean(axis=0)
        angle = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)[:, None]
        return "polygon", ring(centre + np.cos(angle) * (ends[1] - ends[0]) / 2 + np.sin(angle) * (ends[3] - ends[2]) / 2)
    outline = ring(shape)
    return ("box" if kind == "RECTANGLE" and is_box(outline) else "polygon"), outline
