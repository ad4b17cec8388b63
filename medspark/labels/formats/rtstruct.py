"""DICOM RT Structure Set (PS3.3 A.19.3): contours in LPS mm, each with the image it was drawn on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from medspark.errors import Rejected
from medspark.labels.formats.dicom import (
    Concept,
    annotator,
    concept,
    one_reference,
    open_dataset,
    refuses_broken_values,
    series_of_instances,
)
from medspark.labels.regions import Context, Geometry, Item, Region, points, ring

if TYPE_CHECKING:
    from pydicom import Dataset

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
OPEN = ("OPEN_PLANAR", "OPEN_NONPLANAR")


@refuses_broken_values
def read(path: str, context: Context) -> Iterator[Item]:
    """One `Region` per contour: ``contour`` for closed ones, ``line``, ``point``; label = ROI name, instance_key = ROI number."""
    ds = open_dataset(path, context)
    names = {int(roi.ROINumber): roi for roi in ds.get("StructureSetROISequence") or () if roi.get("ROINumber") is not None}
    observations = {
        int(item.ReferencedROINumber): item for item in ds.get("RTROIObservationsSequence") or () if "ReferencedROINumber" in item
    }
    series = series_of_instances(ds, context)
    frames = [str(item.FrameOfReferenceUID) for item in ds.get("ReferencedFrameOfReferenceSequence") or () if "FrameOfReferenceUID" in item]
    for contours in ds.get("ROIContourSequence") or ():
        number = contours.get("ReferencedROINumber")
        roi = names.get(int(number)) if number is not None else None
        if roi is None:
            yield Rejected("LABEL_FORMAT", "contours of an ROI that the structure set does not list")
            continue
        seen = observations.get(int(number))
        code = concept(seen, "RTROIIdentificationCodeSequence") if seen is not None else Concept()
        who = annotator(context, seen.get("ROIInterpreter") if seen is not None else None)
        frame = str(roi.get("ReferencedFrameOfReferenceUID") or "") or (frames[0] if len(frames) == 1 else "")
        label = str(roi.get("ROIName") or "").strip() or f"roi_{int(number)}"
        for contour in contours.get("ContourSequence") or ():
            try:
                yield from _regions(contour, label, str(int(number)), frame, code, who, series, context)
            except Rejected as error:
                yield error


def _regions(
    contour: Dataset, label: str, key: str, frame: str, code: Concept, who: str | None, series: dict[str, str], context: Context
) -> Iterator[Region]:
    kind = str(contour.get("ContourGeometricType") or "")
    values = contour.get("ContourData")
    try:
        array = np.atleast_1d(np.array([] if values is None else values, np.float64))
    except (TypeError, ValueError):
        raise Rejected("LABEL_GEOMETRY", "a coordinate is not a number") from None
    if array.size == 0 or array.size % 3:
        raise Rejected("LABEL_GEOMETRY", "a contour's data are not triplets of x, y, z")
    geometry: Geometry
    if kind in CLOSED:
        geometry, rings = "contour", (ring(array.reshape(-1, 3), 3),)
    elif kind in OPEN:
        geometry, rings = "line", (points(array.reshape(-1, 3), 3),)
    elif kind == "POINT":
        geometry, rings = "point", (points(array.reshape(-1, 3), 3),)
    else:
        raise Rejected("LABEL_FORMAT", "a contour is of a geometric type that DICOM does not have")
    said = contour.get("NumberOfContourPoints")
    if said is not None and int(said) != array.size // 3:
        raise Rejected("LABEL_GEOMETRY", "a contour holds another number of points than it says")
    uid, number = one_reference(contour.get("ContourImageSequence") or ())
    if uid:
        own = f"sop:{context.ids.uid(uid)}#{number}"
    elif frame:
        own = f"plane:{context.ids.uid(frame)}"
    elif context.paired():
        own = ""
    else:
        raise Rejected("LABEL_GEOMETRY", "a contour refers to neither an image nor a frame of reference")
    for image in context.paired() or (own,):
        yield Region(
            *(image, label, geometry, rings),
            **code.fields(),
            instance_key=key,
            annotator=who,
            ref_series_id=series.get(uid),
            properties={"contour_geometric_type": kind},
        )
