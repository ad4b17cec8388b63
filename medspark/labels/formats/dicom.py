"""What the three DICOM label formats share: opening, references, codes, names."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from medspark.errors import Rejected
from medspark.labels.codebook import to_snomed
from medspark.labels.regions import Context, Item

if TYPE_CHECKING:
    from pydicom import Dataset

SOP_FORMATS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "seg",  # Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.66.7": "seg",  # Label Map Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.481.3": "rtstruct",  # RT Structure Set Storage
    "1.2.840.10008.5.1.4.1.1.91.1": "ann",  # Microscopy Bulk Simple Annotations Storage
}
"""SOP class -> format of this package."""
OWN_SCHEME = "99MEDSPARK"
"""Coding scheme of labels that have no code, in segmentations of ours (`medspark.labels.export.seg`): read as none."""


@dataclass(frozen=True)
class Concept:
    """A coded concept, SRT mapped to SCT."""

    code: str | None = None
    code_scheme: str | None = None
    code_meaning: str | None = None

    def fields(self) -> dict[str, Any]:
        return asdict(self)


def refuses_broken_values(read: Callable[[str, Context], Iterator[Item]]) -> Callable[[str, Context], Iterator[Item]]:
    """A DICOM reader for which a value of the wrong type or form is the file's fault: Rejected(LABEL_FORMAT).

    pydicom converts an element when it is asked for and raises what the conversion raises, at any line that touches the data set.
    """

    @functools.wraps(read)
    def guarded(path: str, context: Context) -> Iterator[Item]:
        from pydicom.errors import BytesLengthException

        try:
            yield from read(path, context)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, NotImplementedError, RecursionError):
            raise Rejected("LABEL_FORMAT", "a value of the DICOM data set is not of the type it must have") from None
        except (struct.error, BytesLengthException):
            raise Rejected("LABEL_FORMAT", "a value of the DICOM data set is not of the length it must have") from None

    return guarded


def open_dataset(path: str, context: Context) -> Dataset:
    """The data set with its pixels; raises Rejected(NOT_DICOM, TRUNCATED, TOO_LARGE, DECODE_FAILED, LABEL_FORMAT)."""
    from pydicom.errors import BytesLengthException

    from medspark.series.files import read_dicom

    context.check_size(os.path.getsize(path))
    context.watch("dicom")
    ds = read_dicom(path, context.settings.guard)  # pydicom's own inflates a deflated file without a bound
    try:
        ds.decode()
        _touch(ds)
    except EOFError:
        raise Rejected("TRUNCATED", "the file ends early") from None
    except (
        ValueError,
        NotImplementedError,
        AttributeError,
        TypeError,
        OSError,
        LookupError,
        RecursionError,
        struct.error,
        BytesLengthException,
    ):
        raise Rejected("LABEL_FORMAT", "the DICOM data set cannot be parsed") from None
    return ds


def _touch(ds: Dataset) -> None:
    """Parse every element now, so that a bad value is a fault of the file here and not somewhere later."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                _touch(item)


def looks_bare(path: str) -> bool:
    """A data set without preamble and file meta: it begins with a tag of group 0002 or 0008, little endian."""
    with open(path, "rb") as stream:
        head = stream.read(132)
    return head[128:132] != b"DICM" and len(head) >= 8 and head[:2] in (b"\x02\x00", b"\x08\x00") and head[3] == 0


def one_reference(items: Iterable[Dataset]) -> tuple[str, int]:
    """(SOPInstanceUID, frame; 0 = whole instance) of a reference sequence; ("", 0) where it names none or several images."""
    found = set()
    for item in items:
        frames = item.get("ReferencedFrameNumber")
        frames = (
            [0] if frames is None or frames == "" else ([int(frames)] if isinstance(frames, (int, str)) else [int(one) for one in frames])
        )
        uid = str(item.get("ReferencedSOPInstanceUID") or "").strip(" \0")
        found |= {(uid, frame) for frame in frames if uid}
    return found.pop() if len(found) == 1 else ("", 0)


def series_of_instances(ds: Dataset, context: Context) -> dict[str, str]:
    """SOPInstanceUID -> pseudonym of its SeriesInstanceUID, from the sequences that list the referenced series (PS3.3 C.12.1.1.2, C.8.8.5)."""
    series = [(item, "ReferencedInstanceSequence") for item in ds.get("ReferencedSeriesSequence") or ()]
    for study in ds.get("StudiesContainingOtherReferencedInstancesSequence") or ():
        series += [(item, "ReferencedInstanceSequence") for item in study.get("ReferencedSeriesSequence") or ()]
    for frame in ds.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            series += [(item, "ContourImageSequence") for item in study.get("RTReferencedSeriesSequence") or ()]
    return {
        str(instance.ReferencedSOPInstanceUID): context.ids.uid(str(item.SeriesInstanceUID))
        for item, name in series
        if item.get("SeriesInstanceUID")
        for instance in item.get(name) or ()
        if instance.get("ReferencedSOPInstanceUID")
    }


def concept(ds: Dataset, keyword: str) -> Concept:
    """The first coded concept of a code sequence."""
    items = ds.get(keyword) or ()
    if not items:
        return Concept()
    item = items[0]
    if item.get("CodingSchemeDesignator") == OWN_SCHEME:
        return Concept(code_meaning=str(item.get("CodeMeaning") or "") or None)
    code = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
    value, scheme = to_snomed(str(code) if code else None, str(item.get("CodingSchemeDesignator") or "") or None)
    return Concept(value, scheme, str(item.get("CodeMeaning") or "") or None)


def annotator(context: Context, *names: object) -> str | None:
    """Pseudonym of the first name that is not blank."""
    for name in names:
        text = str(name or "").strip(" ^=")
        if text:
            return context.ids.annotator(text)
    return None
