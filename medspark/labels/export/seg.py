"""DICOM Segmentation by highdicom: the masks of one reader on one series, a segment per label and object (PS3.3 A.51, C.8.20).

The segmentation refers to the instances (and frames) that it was drawn on by the UIDs that the lake knows: pseudonyms where the lake is
de-identified (`medspark.deid.crosswalk` puts the original ones back). Binary and fractional masks make separate objects, as DICOM wants.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from medspark.errors import Rejected
from medspark.keys import Ids
from medspark.labels.export.rows import FULL, Mask, Reader
from medspark.labels.formats.dicom import OWN_SCHEME

if TYPE_CHECKING:
    from pydicom import Dataset

ARRAY_BYTES = 256 << 20  # of the masks that highdicom is given at once; more segments make another object
LABEL_CHARACTERS = 64  # of SegmentLabel and CodeMeaning (LO, PS3.5 6.2)
CATEGORY = ("85756007", "SCT", "Tissue")  # required beside the type (PS3.16 CID 7150); the lake keeps no category: the usual default
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # single-frame, of any modality; also where the header does not say its class
MULTI_FRAME = (
    "Enhanced",
    "Multi-frame",
    "Nuclear Medicine",
    "X-Ray Angiographic",
    "X-Ray Radiofluoroscopic",
    "Tomosynthesis",
    "Parametric",
)
"""In the names of SOP classes whose instances hold several frames."""
UID_ROOT = "2.25."  # PS3.5 B.2
UID_CHARACTERS = 64
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")  # PS3.5 9.1
AUTOMATIC = ("model", "synthetic")


@dataclass(frozen=True)
class Written:
    """One segmentation: a data set ready to be saved, and the label rows that it holds."""

    dataset: Dataset
    label_rows: int
    fractional: bool

    def data(self) -> bytes:
        """The file."""
        import io

        out = io.BytesIO()
        self.dataset.save_as(out, enforce_file_format=True)
        return out.getvalue()


def write(series: Mapping[str, Any], masks: Sequence[Mask], ids: Ids) -> Iterator[Written]:
    """The segmentations of one reader's masks on one series: one for binary masks, one for fractional ones, more where they outgrow `ARRAY_BYTES`.

    series : row of ``series``;  masks : ``image`` is their row of ``slices`` with ``sop_class`` beside
    Raises Rejected(UNKNOWN_KIND) where the images are no DICOM instances.
    """
    if any(not mask.image.get("sop_instance_id") for mask in masks):
        raise Rejected("UNKNOWN_KIND", "its images are no DICOM instances with a UID that a segmentation could refer to")
    for fractional in (False, True):
        chosen = sorted((mask for mask in masks if mask.fractional == fractional), key=_segment_key)
        for part in _parts(chosen):
            yield Written(_object(series, part, ids, fractional), sum(len(of) for of in part), fractional)


def _segment_key(mask: Mask) -> tuple[str, str, str, int]:
    return (mask.label, mask.instance_key or "", mask.image["sop_instance_id"], mask.image["frame_number"])


def _parts(masks: Sequence[Mask]) -> Iterator[list[list[Mask]]]:
    """Lists of segments (each the masks of one label and object) whose dense array stays below `ARRAY_BYTES`."""
    part: list[list[Mask]] = []
    images: set[str] = set()
    for _, run in groupby(masks, key=lambda mask: (mask.label, mask.instance_key or "")):
        segment = list(run)
        together = images | {mask.image_id for mask in segment}
        size = len(together) * (len(part) + 1) * segment[0].rows * segment[0].cols * (4 if segment[0].fractional else 1)
        if part and size > ARRAY_BYTES:
            yield part
            part, together = [], {mask.image_id for mask in segment}
        part.append(segment)
        images = together
    if part:
        yield part


def _object(series: Mapping[str, Any], segments: Sequence[Sequence[Mask]], ids: Ids, fractional: bool) -> Dataset:
    from highdicom.seg import Segmentation, SegmentationFractionalTypeValues, SegmentationTypeValues

    from medspark import __version__

    reader = segments[0][0].reader
    images = {mask.image_id: mask.image for segment in segments for mask in segment}
    order = sorted(images, key=lambda image_id: (images[image_id]["position_mm"] or 0.0, image_id))
    place = {image_id: number for number, image_id in enumerate(order)}
    sizes = {(mask.rows, mask.cols) for segment in segments for mask in segment}
    if len(sizes) != 1:
        raise Rejected("LABEL_SIZE", "its masks are of several sizes, and a segmentation has one")
    array = np.zeros((len(order), *sizes.pop(), len(segments)), np.float32 if fractional else bool)
    for number, segment in enumerate(segments):
        for mask in segment:
            plane = array[place[mask.image_id], :, :, number]
            if fractional:
                np.maximum(plane, mask.fractions() / np.float32(FULL), out=plane)
            else:
                plane |= mask.inside()
    if not array.any():
        raise Rejected("LABEL_SIZE", "all its masks are empty, and a segmentation without a frame is none")
    stand_ins = {f"{UID_ROOT}{number + 1}": images[image_id] for number, image_id in enumerate(order)}
    held = hashlib.sha256("".join(sorted(mask.label_row_id for segment in segments for mask in segment)).encode()).hexdigest()
    made = Segmentation(
        source_images=[_source(series, image, stand_in) for stand_in, image in stand_ins.items()],
        pixel_array=array,
        segmentation_type=SegmentationTypeValues.FRACTIONAL if fractional else SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(number, segment[0], ids) for number, segment in enumerate(segments, start=1)],
        series_instance_uid=_uid(ids, "export_series", series["series_id"], reader),
        series_number=1,
        sop_instance_uid=_uid(ids, "export_instance", series["series_id"], reader, held),
        instance_number=1,
        manufacturer="medspark",
        manufacturer_model_name="export_labels",
        software_versions=__version__,
        device_serial_number="1",
        fractional_type=SegmentationFractionalTypeValues.PROBABILITY
        if reader.source in AUTOMATIC
        else SegmentationFractionalTypeValues.OCCUPANCY,
        max_fractional_value=int(FULL),
        content_label="LABELS",
        content_creator_name=f"{reader.annotator}^" if reader.annotator else None,
        omit_empty_frames=True,
    )
    _refer(made, stand_ins)
    return made


def _source(series: Mapping[str, Any], image: Mapping[str, Any], stand_in: str) -> Dataset:
    """The header of a source image, as far as highdicom reads it. It stands for one frame: its class and UID are stand-ins until `_refer`."""
    from pydicom import Dataset
    from pydicom.valuerep import DS

    def decimals(values: Sequence[float]) -> list[Any]:
        return [DS(float(value), auto_format=True) for value in values]

    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SECONDARY_CAPTURE, stand_in
    ds.StudyInstanceUID, ds.SeriesInstanceUID = as_uid(series["study_id"]), as_uid(series["series_instance_id"])
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = series["subject_key"], "", "", ""
    ds.AccessionNumber, ds.StudyID, ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "", "", "", "", ""
    ds.Modality, ds.Rows, ds.Columns = image["modality"], image["rows"], image["cols"]
    ds.SpecificCharacterSet = "ISO_IR 192"
    if series["frame_of_reference_id"] and image["image_position_mm"] and image["image_orientation"] and image["pixel_spacing_mm"]:
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = as_uid(series["frame_of_reference_id"]), ""
        ds.ImagePositionPatient = decimals(image["image_position_mm"])
        ds.ImageOrientationPatient = decimals(image["image_orientation"])
        ds.PixelSpacing = decimals(image["pixel_spacing_mm"])
        if image["slice_thickness_mm"]:
            ds.SliceThickness = DS(float(image["slice_thickness_mm"]), auto_format=True)
    return ds


def _description(number: int, mask: Mask, ids: Ids) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    label = mask.label[:LABEL_CHARACTERS]
    if mask.code and mask.code_scheme:
        concept = CodedConcept(mask.code, mask.code_scheme, label)
    else:
        concept = CodedConcept(hashlib.sha256(mask.label.encode()).hexdigest()[:16], OWN_SCHEME, label)
    tracking: dict[str, Any] = {}
    if mask.instance_key is not None:
        tracking = {"tracking_uid": as_uid(mask.instance_key, ids), "tracking_id": mask.instance_key[:LABEL_CHARACTERS]}
    automatic = mask.reader.source in AUTOMATIC
    algorithm = None
    if automatic:
        name = (mask.reader.annotator or mask.reader.source)[:LABEL_CHARACTERS]
        algorithm = AlgorithmIdentificationSequence(name, codes.DCM.ArtificialIntelligence, "1")
    return SegmentDescription(
        number,
        label,
        CodedConcept(*CATEGORY),
        concept,
        SegmentAlgorithmTypeValues.AUTOMATIC if automatic else SegmentAlgorithmTypeValues.MANUAL,
        algorithm,
        **tracking,
    )


def as_uid(value: str, ids: Ids | None = None) -> str:
    """A UID for what the lake names otherwise (a study or series without one, an object's key); UIDs stay as they are."""
    if len(value) <= UID_CHARACTERS and _UID.fullmatch(value):
        return value
    return UID_ROOT + str(int((ids or Ids(None)).digest("export_uid", value), 16))


def _uid(ids: Ids, kind: str, series_id: str, reader: Reader, held: str = "") -> str:
    """A UID of what the object is: the same labels exported twice are the same object."""
    return UID_ROOT + str(int(ids.digest(kind, series_id, reader, held), 16))


def _refer(made: Dataset, stand_ins: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts the instances' UIDs, and the frames of multi-frame ones, where their stand-ins stood."""
    from pydicom import Dataset
    from pydicom.uid import UID

    numbers: dict[str, set[int]] = {}
    for image in stand_ins.values():
        numbers.setdefault(image["sop_instance_id"], set()).add(image["frame_number"])
    for of in made.get("ReferencedSeriesSequence") or ():
        once: dict[str, Dataset] = {}
        for item in of.ReferencedInstanceSequence:
            image = stand_ins[str(item.ReferencedSOPInstanceUID)]
            fresh = Dataset()  # highdicom lists one item in several sequences, and frames are named in the others only
            fresh.ReferencedSOPClassUID = image["sop_class"] or SECONDARY_CAPTURE
            fresh.ReferencedSOPInstanceUID = image["sop_instance_id"]
            once.setdefault(str(fresh.ReferencedSOPInstanceUID), fresh)
        of.ReferencedInstanceSequence = list(once.values())
    named: dict[int, Dataset] = {}
    for frame in made.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence") or ():
            named.update({id(item): item for item in derivation.SourceImageSequence})
    named.update({id(item): item for item in made.get("SourceImageSequence") or ()})
    for item in named.values():
        image = stand_ins[str(item.ReferencedSOPInstanceUID)]
        item.ReferencedSOPClassUID = image["sop_class"] or SECONDARY_CAPTURE
        item.ReferencedSOPInstanceUID = image["sop_instance_id"]
        several = any(word in UID(image["sop_class"] or "").name for word in MULTI_FRAME)
        if several or numbers[image["sop_instance_id"]] != {1}:
            item.ReferencedFrameNumber = image["frame_number"]
