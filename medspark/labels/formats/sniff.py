"""Which label format a file is, by its content; the extension only decides whether an unreadable file was meant as one."""

from __future__ import annotations

import os
import re
import struct
import zlib

from medspark.errors import Rejected, SkippedSource
from medspark.labels.formats import asap, bands, coco, csv, geojson, json_items, nifti
from medspark.labels.formats.dicom import SOP_FORMATS, looks_bare
from medspark.labels.regions import Context

HEAD_BYTES = 4096
LOSSY_TIFF = frozenset({6, 7, 33003, 33004, 33005, 34712, 34892, 50001, 50002})
"""TIFF compressions of pictures (JPEG, JPEG 2000, JPEG XL, WebP ...): a label image is never stored so."""
IMAGE_MAGIC = (b"\xff\xd8\xff", b"BM", b"GIF8", b"PK\x03\x04", b"\xff\x4f\xff\x51")  # JPEG, BMP, GIF, zip and npz, JPEG 2000
_QUPATH = re.compile(rb'\{\s*"type"\s*:\s*"Feature(Collection)?"|\[\s*\{\s*"type"\s*:\s*"Feature"')
"""How GeoJSON begins as QuPath writes it; a document in another order is parsed to be known, which costs as much as reading it."""
TEXT_FORMATS = (".xml", ".json", ".geojson")


def sniff(path: str, context: Context) -> dict[str, str]:
    """{"format": ..., "modality": ... for DICOM}; raises SkippedSource for what is no annotation, Rejected(LABEL_FORMAT) for a broken one."""
    if os.path.getsize(path) == 0:
        raise Rejected("EMPTY_FILE", "the file is empty")
    with open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
    extension = os.path.splitext(context.uri)[1].lower()
    if head[128:132] == b"DICM" or (looks_bare(path) and extension in ("", ".dcm", ".dicom", ".ima")):
        return _dicom(path, context)
    if head.startswith(bands.PNG_SIGNATURE):
        return {"format": "mask"}
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(path)
    if nifti.is_nifti(_inflated(head)):
        return {"format": "nifti"}
    if head.startswith(IMAGE_MAGIC) or head[:2] == b"\x1f\x8b" or b"\0" in head.removeprefix(b"\xff\xfe"):
        if extension in TEXT_FORMATS:
            raise Rejected("LABEL_FORMAT", f"not a text file, although it ends in {extension}")
        raise SkippedSource("not an annotation: use explode_series, tile_slides or ingest_photos")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"<" or extension == ".xml":
        context.check_size(os.path.getsize(path))
        context.watch("xml")
        if asap.is_asap(path):
            return {"format": "asap"}
        raise Rejected("LABEL_FORMAT", "XML of another program than ASAP")
    if text[:1] in (b"{", b"[") or extension in (".json", ".geojson"):
        if _QUPATH.match(text):
            return {"format": "geojson"}
        document = json_items.outline(path, context, "features", "annotations")
        if geojson.is_geojson(document):
            return {"format": "geojson"}
        if coco.is_coco(document.rest):
            return {"format": "coco"}
        raise Rejected("LABEL_FORMAT", "JSON that is neither GeoJSON nor COCO")
    if csv.is_label_table(head.decode("utf-8", "replace").splitlines()[0] if text else ""):
        return {"format": "csv"}
    raise SkippedSource("not an annotation")


def _inflated(head: bytes) -> bytes:
    """The first bytes of a gzip member, as far as ``head`` reaches; other bytes as they are."""
    if head[:2] != b"\x1f\x8b":
        return head
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, nifti.HEADER_BYTES)
    except zlib.error:
        return b""


def _dicom(path: str, context: Context) -> dict[str, str]:
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    from medspark.series.files import is_deflated, read_dicom

    try:
        if is_deflated(path):  # read whole, within bounds; of the others only the three elements are kept
            ds = read_dicom(path, context.settings.guard, header_only=True)
        else:
            ds = pydicom.dcmread(path, stop_before_pixels=True, force=looks_bare(path), specific_tags=["SOPClassUID", "Modality", "Rows"])
        sop_class, modality, rows = str(ds.get("SOPClassUID") or ""), str(ds.get("Modality") or ""), ds.get("Rows")
        sop_class = sop_class or str(getattr(ds, "file_meta", {}).get("MediaStorageSOPClassUID") or "")
    except (
        InvalidDicomError,
        BytesLengthException,
        struct.error,
        EOFError,
        ValueError,
        NotImplementedError,
        AttributeError,
        TypeError,
        OSError,
        LookupError,
    ):
        raise Rejected("NOT_DICOM", "the DICOM header cannot be read") from None
    if sop_class in SOP_FORMATS:
        return {"format": SOP_FORMATS[sop_class], "modality": modality}
    if rows is not None:
        raise SkippedSource("a DICOM image: use explode_series or tile_slides")
    raise SkippedSource("a DICOM object that holds no labels that medspark reads")


def _tiff(path: str) -> dict[str, str]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            compression, samples = int(file.pages[0].compression), int(file.pages[0].samplesperpixel)  # type: ignore[union-attr]
    except Exception as error:  # tifffile raises whatever a broken directory leads to; the file is foreign, the fault is its own
        raise Rejected("LABEL_FORMAT", "not a readable TIFF") from error
    if compression in LOSSY_TIFF and samples > 1:
        raise SkippedSource("a picture: use tile_slides or ingest_photos")
    return {"format": "mask"}
