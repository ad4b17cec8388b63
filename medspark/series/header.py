"""One DICOM file -> a small dictionary for the plan, and `Head`, the view on raw elements from which all rows are made.

`Head` reads values straight from the bytes of the elements: pydicom's own conversion of a header costs more than reading the file
(facts.md §2), and a malformed value becomes None here instead of an exception somewhere later.
"""

from __future__ import annotations

import logging
import math
import os
import re
import struct
import warnings
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import pydicom
import pydicom.config
from pydicom.datadict import tag_for_keyword

from medspark.config import Config
from medspark.deid import age_years
from medspark.errors import Rejected, SkippedSource
from medspark.keys import Ids
from medspark.pixels.codestream import DEFLATED
from medspark.series import decode, geometry
from medspark.series.elements import tag_of
from medspark.series.files import FOREIGN_ERRORS
from medspark.tables.names import MASK_NAMES, basename
from medspark.tables.work import SourceFile

DICOMDIR = "1.2.840.10008.1.3.10"
SM_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
ANNOTATION_MODALITIES = frozenset({"SEG", "RTSTRUCT", "ANN", "SR"})
ANNOTATION_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.66.5",  # Surface Segmentation
    "1.2.840.10008.5.1.4.1.1.481.3",  # RT Structure Set
    "1.2.840.10008.5.1.4.1.1.91.1",  # Microscopy Bulk Simple Annotations
)
REPORT_CLASS = "1.2.840.10008.5.1.4.1.1.88."  # structured reports; 88.59 is the key object selection
KEY_OBJECT = "1.2.840.10008.5.1.4.1.1.88.59"
STATE_MODALITIES = frozenset({"PR", "KO", "REG", "FID", "SMR"})
STATE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.11.",
    "1.2.840.10008.5.1.4.1.1.66.1",
    "1.2.840.10008.5.1.4.1.1.66.2",
    "1.2.840.10008.5.1.4.1.1.66.3",
)
OTHER_JOBS = {
    **dict.fromkeys(
        (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".tif", ".tiff"), "a slide or photo: use tile_slides or ingest_photos"
    ),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".npz", ".npy"), "a photo or array: use ingest_photos"),
    **dict.fromkeys(
        (".xml", ".json", ".geojson", ".csv", ".tsv", ".txt", ".md", ".html", ".pdf", ".log", ".yml", ".yaml", ".parquet"), "not an image"
    ),
}
ORIGINALS = {"SeriesInstanceUID": 0x0020000E, "StudyInstanceUID": 0x0020000D, "FrameOfReferenceUID": 0x00200052, "PatientID": 0x00100020}
"""What the crosswalk keeps beside SOPInstanceUID."""
NUMBER_FORMATS = {2: "H", 4: "I", 8: "d"}
MEMO_ENTRIES = 1 << 13  # parsed values remembered per process, 2 MB: the slices of a series share nine tenths of theirs


def _plain(value: bytes) -> bool:
    """Whether the bytes say the same in every character set: ISO 2022 writes its names in ASCII bytes behind an escape."""
    return value.isascii() and b"\x1b" not in value


@lru_cache(maxsize=MEMO_ENTRIES)
def _parts(value: bytes) -> tuple[str, ...]:
    """The values of an ASCII string element, padding stripped."""
    return tuple([part.strip(" \0\r\n\t") for part in value.decode("ascii").split("\\")])


@lru_cache(maxsize=MEMO_ENTRIES)
def _numbers(value: bytes) -> tuple[float, ...] | None:
    """The same as finite numbers; None when any of them is none."""
    try:
        found = tuple(map(float, _parts(value)))
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


class Head:
    """Raw elements of a data set by tag number; every reader gives None where the element is absent, empty or malformed."""

    __slots__ = ("assumed", "dataset", "elements", "order")

    def __init__(self, dataset: pydicom.Dataset) -> None:
        self.dataset = dataset
        self.elements = dict(zip(map(int, dataset._dict), dataset._dict.values(), strict=True))
        implicit_little = dataset.original_encoding
        self.order = ">" if implicit_little[1] is False else "<"
        self.assumed = not str(self.meta("TransferSyntaxUID"))

    def meta(self, keyword: str) -> str:
        """A value of the file meta information; empty where there is none."""
        meta = getattr(self.dataset, "file_meta", None)
        return decode.text_of(meta, tag_of(tag_for_keyword(keyword) or 0)) if meta is not None else ""

    def __contains__(self, tag: int) -> bool:
        return tag in self.elements

    def _value(self, tag: int) -> Any:
        element = self.elements.get(tag)
        return None if element is None else element.value

    def text(self, tag: int) -> str | None:
        """First value of a string element without padding; None when blank."""
        element = self.elements.get(tag)
        if element is None:
            return None
        value = element.value
        if type(value) is bytes and value and _plain(value):
            return _parts(value)[0] or None
        values = self.texts(tag)
        return values[0] if values and values[0] else None

    def texts(self, tag: int) -> list[str]:
        """All values of a string element, padding stripped; other bytes than plain ASCII go through pydicom's character sets."""
        value = self._value(tag)
        if value is None or value == b"":
            return []
        if isinstance(value, bytes):
            if _plain(value):
                return list(_parts(value))
            try:
                value = self.dataset[tag].value
            except FOREIGN_ERRORS:
                return []
        if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
            return [str(part).strip(" \0") for part in value]
        return [str(value).strip(" \0")]

    def floats(self, tag: int) -> list[float] | None:
        """Values of a DS, FD or FL element; None when any of them is no finite number."""
        element = self.elements.get(tag)
        if element is None:
            return None
        value = element.value
        if type(value) is bytes and value and element.VR not in ("FD", "FL") and value.isascii():
            known = _numbers(value)
            return None if known is None else list(known)
        if isinstance(value, bytes) and value and element.VR in ("FD", "FL"):
            width = 8 if element.VR == "FD" else 4
            if len(value) % width:
                return None
            found = list(struct.unpack(f"{self.order}{len(value) // width}{'d' if width == 8 else 'f'}", value))
        else:
            if value is not None and not isinstance(value, (bytes, str, list, tuple, pydicom.multival.MultiValue)):
                parts: list[Any] = [value]
            elif isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
                parts = list(value)
            else:
                parts = list(self.texts(tag))
            try:
                found = [float(part) for part in parts]
            except (ValueError, TypeError):
                return None
        return found if found and all(map(math.isfinite, found)) else None

    def real(self, tag: int) -> float | None:
        values = self.floats(tag)
        return values[0] if values else None

    def doubles(self, tag: int) -> list[float] | None:
        """Values of an element that is FD by the dictionary, also where the file has implicit VR."""
        value = self._value(tag)
        if isinstance(value, bytes) and value and self.elements[tag].VR not in ("DS", "FL"):
            if len(value) % 8:
                return None
            found = list(struct.unpack(f"{self.order}{len(value) // 8}d", value))
            return found if all(map(math.isfinite, found)) else None
        return self.floats(tag)

    def double(self, tag: int) -> float | None:
        values = self.doubles(tag)
        return values[0] if values else None

    def whole(self, tag: int) -> int | None:
        """An IS element that fits 32 bits."""
        number = self.real(tag)
        return int(number) if number is not None and abs(number) < 2**31 and number == int(number) else None

    def short(self, tag: int) -> int | None:
        """A US, SS or UL element as unsigned number (a sign is put on by who knows it); None where the length is wrong."""
        value = self._value(tag)
        if isinstance(value, bytes):
            pattern = NUMBER_FORMATS.get(len(value))
            return struct.unpack(self.order + pattern, value)[0] if pattern in ("H", "I") else None
        if isinstance(value, int):
            return value & 0xFFFF if -32768 <= value < 0 else value
        return None

    def shorts(self, tag: int) -> list[int] | None:
        """Values of a US element; None where it is absent, empty or of odd length."""
        value = self._value(tag)
        if isinstance(value, bytes) and value and len(value) % 2 == 0:
            return list(struct.unpack(f"{self.order}{len(value) // 2}H", value))
        if isinstance(value, int):
            return [value]
        if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) and value and all(isinstance(part, int) for part in value):
            return list(value)
        return None

    def items(self, tag: int) -> list[Head]:
        """The items of a sequence."""
        if tag not in self.elements:
            return []
        try:
            sequence = self.dataset[tag].value
            heads = [Head(item) for item in sequence] if sequence else []
        except FOREIGN_ERRORS:
            return []
        for head in heads:
            head.order = self.order
        return heads

    def item(self, tag: int) -> Head | None:
        found = self.items(tag)
        return found[0] if found else None


pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its complaints quote header values, which no log may hold
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # ... nor may those that it makes while parsing


def open_head(path: str, settings: Config, header_only: bool = False) -> Head:
    """The view on a file's data set; ``assumed`` says whether its transfer syntax had to be guessed.

    Raises `Rejected`: EMPTY_FILE, TOO_LARGE, NOT_DICOM, TRUNCATED (`medspark.series.decode.read_dicom`).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom warns of becomes a code or a verdict
        try:
            return Head(decode.read_dicom(path, settings.guard, header_only))
        except OSError as error:
            if error.errno is None:  # pydicom's, not the operating system's
                raise Rejected("NOT_DICOM", "the data set cannot be parsed") from None
            raise


def sop_class(head: Head) -> str:
    return head.text(0x00080016) or head.meta("MediaStorageSOPClassUID")


def sop_instance(head: Head) -> str:
    """The data set's SOPInstanceUID; where the attribute is absent the file meta's; empty where it is there and blank."""
    if 0x00080018 in head:
        return head.text(0x00080018) or ""
    return head.meta("MediaStorageSOPInstanceUID")


def folder_uri(uri: str) -> str:
    """The uri without its last part: what a series without a UID is formed by."""
    name = basename(uri)
    return uri[: len(uri) - len(name)] if name else uri


def series_parts(head: Head, source_uri: str) -> tuple[str, str]:
    """(SeriesInstanceUID, "") or ("", folder) where it is blank."""
    uid = head.text(0x0020000E)
    return (uid, "") if uid else ("", folder_uri(source_uri))


def series_instance_id(ids: Ids, dataset: str, uid: str, folder: str) -> str:
    """Pseudonym of the SeriesInstanceUID; of (dataset, folder) where there is none."""
    return ids.uid(uid) if uid else "folder." + ids.digest("series_folder", dataset, folder)


def subject_of(
    patient_id: str | None, issuer: str | None, study_uid: str | None, by_folder: str, source: SourceFile, ids: Ids
) -> tuple[str, bool]:
    """(subject_key, whether nothing but a study, folder or file names the subject).  contract.md §2."""
    domain = source.domain or source.dataset
    if source.subject:
        return ids.subject(domain, source.subject), False
    if patient_id:
        return ids.subject(issuer or domain, patient_id), False
    if study_uid:
        return ids.subject(domain, "study:" + study_uid), True
    if by_folder:
        return ids.subject(domain, "folder:" + by_folder), True
    return ids.subject(domain, "source:" + source.source_id), True


def frame_count(head: Head) -> int:
    number = head.whole(0x00280008)
    return number if number is not None and number > 0 else 1


def check_image(head: Head, settings: Config) -> None:
    """Raises `SkippedSource` for objects that another job reads, `Rejected` for what holds no image or too large a one."""
    what, modality = sop_class(head), (head.text(0x00080060) or "").upper()
    if what == DICOMDIR or (not what and 0x00041220 in head):
        raise SkippedSource("a DICOMDIR: its files are read themselves")
    if what == KEY_OBJECT or modality in STATE_MODALITIES or what.startswith(STATE_CLASSES[0]) or what in STATE_CLASSES[1:]:
        raise SkippedSource("a presentation state, key object or registration: holds no image")
    if what in ANNOTATION_CLASSES or what.startswith(REPORT_CLASS) or modality in ANNOTATION_MODALITIES:
        raise SkippedSource("an annotation: use import_labels")
    if what == SM_IMAGE or modality == "SM":
        raise SkippedSource("a whole-slide image: use tile_slides")
    if not what and not modality and 0x00280010 not in head:
        raise Rejected("TRUNCATED", "the data set ends before it says what it is")
    rows, cols = head.short(0x00280010), head.short(0x00280011)
    if not rows or not cols:
        raise Rejected("NO_IMAGE", "the object has no rows and columns")
    if rows * cols > settings.guard.max_pixels:
        raise Rejected("TOO_LARGE", "one frame exceeds guard.max_pixels")


def _check_frames(head: Head, size: int, settings: Config) -> None:
    """Refuses a number of frames that no file of ``size`` bytes holds, so that no plan counts on them; `decode.check_frames` is exact."""
    count = frame_count(head)
    if count <= size:  # before anything is parsed: so it is in every honest file
        return
    if count > settings.guard.max_file_bytes or decode.syntax_of(head.dataset).uid != DEFLATED:
        raise Rejected("PIXEL_LENGTH", "NumberOfFrames is larger than the number of bytes in the file")


def scan(path: str, uri: str, ids: Ids, settings: Config) -> dict[str, Any]:
    """What the plan needs to know of one file: a few hundred bytes.

    ``uid`` and ``study`` are pseudonyms; ``patient_id`` and ``issuer`` stay in memory between scan and plan and are written nowhere, and so does
    ``original`` (with ``deid.crosswalk``), which the engine hands to `medspark.deid.crosswalk`.
    Raises `Rejected` or `SkippedSource`.
    """
    size = os.stat(path).st_size
    name = basename(uri).lower()
    if size == 0:
        raise Rejected("EMPTY_FILE", "the file has no bytes")
    if size > settings.guard.max_file_bytes:
        raise Rejected("TOO_LARGE", "the file exceeds guard.max_file_bytes")
    if name.endswith((".nii", ".nii.gz")):
        from medspark.series import nifti

        if re.search(MASK_NAMES, name):
            raise SkippedSource("a label volume by its name: import_labels reads it")

        return nifti.scan(path, uri, ids, settings)
    with open(path, "rb") as stream:
        start = stream.read(132)
    if start[128:132] != b"DICM":
        _other_kind(start, name)
    head = open_head(path, settings, header_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_image(head, settings)
        _check_frames(head, size, settings)
        said = _header(head, uri, ids)
        if settings.deid.crosswalk:
            said["original"] = {name: head.text(tag) or "" for name, tag in ORIGINALS.items()} | {"SOPInstanceUID": sop_instance(head)}
        return said


def _other_kind(start: bytes, name: str) -> None:
    suffix = PurePosixPath(name).suffix
    if start[:2] == b"\x1f\x8b" or start[:4] == b"PK\x03\x04" or suffix in (".gz", ".zip"):
        raise Rejected("UNKNOWN_KIND", "a compressed file that is no NIfTI: unpack it")
    if start[344:348] in (b"n+1\0", b"ni1\0"):
        raise Rejected("UNKNOWN_KIND", "a NIfTI file without its extension")
    if name == "dicomdir":
        raise SkippedSource("a DICOMDIR: its files are read themselves")
    if suffix in OTHER_JOBS and not _plausible(start):
        raise SkippedSource(f"{suffix}: {OTHER_JOBS[suffix]}")


def _plausible(start: bytes) -> bool:
    """Whether the bytes may begin a data set without preamble: a first tag of group 0002 or 0008, in either byte order."""
    return len(start) >= 8 and start[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def _header(head: Head, uri: str, ids: Ids) -> dict[str, Any]:
    uid, _ = series_parts(head, uri)
    sop = sop_instance(head)
    orientation = geometry.unit_orientation(head.floats(0x00200037))
    image_position = head.floats(0x00200032)
    position = None
    if orientation is not None and image_position is not None and len(image_position) == 3:
        position = geometry.position_mm(image_position, orientation)
    rows, cols = head.short(0x00280010) or 0, head.short(0x00280011) or 0
    part = (head.text(0x00200052) or "", geometry.orientation_key(orientation), f"{rows}x{cols}")
    return {
        "kind": "dicom",
        "uid": ids.uid(uid) if uid else "",
        "sop": ids.uid(sop) if sop else "",
        "part": ids.digest("part", *part)[:16],
        "study": head.text(0x0020000D) or "",
        "patient_id": head.text(0x00100020),
        "issuer": head.text(0x00100021),
        "sex": next((letter for letter in "MFO" if (head.text(0x00100040) or "").upper().startswith(letter)), None),
        "age_years": age_years(head.dataset),
        "position_mm": position,
        "rows": rows,
        "cols": cols,
        "frames": frame_count(head),
        "frame_bytes": rows * cols * (head.short(0x00280002) or 1) * max((head.short(0x00280100) or 8) // 8, 1),
        "modality": head.text(0x00080060) or "OT",
        "syntax": decode.syntax_of(head.dataset).uid,
    }
