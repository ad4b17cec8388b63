"""Our own reader of DICOM slides (VL Whole Slide Microscopy, PS3.3 A.32.8): one file per level, frames addressed without decoding.

The header is parsed by pydicom up to the pixel data; the frames' places come from the extended or basic offset table, checked against the items
they point to, or else from a walk over the items (PS3.5 A.4). Kept strict: what is not understood goes to OpenSlide (`NotOurs`), what is
broken is rejected. Of several focal planes the middle one is read, of several optical paths the first; `facts` says which.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from pydicom.errors import BytesLengthException

from medspark.config import Guard
from medspark.errors import Rejected, SkippedSource
from medspark.pixels.codestream import DEFLATED
from medspark.slides.codings import Coding, FrameCoding, Jp2Coding, JpegCoding, RawCoding
from medspark.slides.dicom_frames import JPEG, JPEG_2000, NATIVE, frame_extents
from medspark.slides.slide import Level, NotOurs, downsamples
from medspark.slides.splice import Colour, JpegHead, Splicer, parse_head
from medspark.slides.stored import StoredSlide, TileTable, checked_extents

WSM = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
ASSOCIATED = frozenset({"LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER"})  # ImageType value 3; all but VOLUME are no levels

_PIXEL_DATA = b"\xe0\x7f\x10\x00"
MM_UM = 1000.0
MAX_FRAMES = 1 << 24  # 100 times the largest slide: bounds the tables before the file backs them
MAX_TEXT = 1024  # properties longer than this are no properties
NO_TEXT = frozenset({"SQ", "OB", "OW", "UN", "OF", "OD", "OL", "OV"})  # value representations without text

UNPARSED = (  # what pydicom raises on headers that are not DICOM's
    BytesLengthException,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OSError,
    OverflowError,
    NotImplementedError,
    struct.error,
)


@dataclass(frozen=True)
class _File:
    """One level's file with its header."""

    path: str
    header: Any
    pixels_at: int  # offset of the PixelData element; 0 where there is none


def open_dicom(paths: Sequence[str], guard: Guard) -> StoredSlide:
    """The slide whose levels are in these files.

    Raises NotOurs where OpenSlide may know better (16 bits, other syntaxes); SkippedSource when no file is a level (label, overview,
    annotation, another modality); Rejected SLIDE_UNREADABLE, SLIDE_UNSUPPORTED, NOT_A_SLIDE, TOO_LARGE.
    """
    said = _said(tuple(_Stamp.of(path) for path in paths), guard)
    descriptors: list[int] = []
    try:
        for path in said.paths:
            descriptors.append(os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return StoredSlide(
        vendor="dicom",
        levels=said.levels,
        tables=tuple(replace(table, file=file) for table, file in zip(said.tables, descriptors, strict=True)),
        max_pixels=guard.max_pixels,
        **said.rest,
    )


@dataclass(frozen=True)
class _Stamp:
    """A file as it was when its header was read."""

    path: str
    n_bytes: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: str) -> _Stamp:
        stat = os.stat(path)
        return cls(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@dataclass(frozen=True)
class _Said:
    """What the headers of one slide say; the tables' descriptors are filled in by each opening."""

    paths: tuple[str, ...]
    levels: tuple[Level, ...]
    tables: tuple[TileTable, ...]
    rest: dict[str, Any]


@lru_cache(maxsize=4)  # a worker opens the same slide for band after band, and a sparse header of 100,000 frames takes seconds to parse
def _said(stamps: tuple[_Stamp, ...], guard: Guard) -> _Said:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values against the letter of the standard; real scanners write them
        return _read([_header(stamp.path) for stamp in stamps], guard)


def _read(files: list[_File], guard: Guard) -> _Said:
    kept = [file for file in files if _is_level(file.header)]
    if not kept:
        raise SkippedSource("a DICOM object that is no level of a slide (label, overview, annotation or another kind of image)")
    if len({_text(file.header, "SeriesInstanceUID") for file in kept}) > 1:
        raise Rejected("SLIDE_UNSUPPORTED", "files of more than one DICOM series do not make one slide")
    by_size: dict[tuple[int, int], _File] = {}
    for file in sorted(kept, key=lambda file: (_int(file.header, "InstanceNumber", 0), file.path)):
        by_size.setdefault(_size(file.header), file)
    sizes = sorted(by_size, reverse=True)
    levels, tables, doubt, places = [], [], False, []
    for size, down in zip(sizes, downsamples(sizes), strict=True):
        with open(by_size[size].path, "rb") as stream:
            level, table, doubtful, place = _level(stream.fileno(), by_size[size], down, guard)
        levels.append(level)
        tables.append(table)
        places.append(place)
        doubt = doubt or doubtful
    base = by_size[sizes[0]].header
    mpp, optics, properties = _mpp(base), _first(base, "OpticalPathSequence"), _properties(base)
    burned_in = any(_text(file.header, "BurnedInAnnotation").upper() == "YES" for file in by_size.values())
    power, icc = _float(optics, "ObjectiveLensPower"), _get(optics, "ICCProfile")
    if mpp is not None:
        properties |= {"openslide.mpp-x": repr(mpp[0]), "openslide.mpp-y": repr(mpp[1])}
    if power is not None:
        properties["openslide.objective-power"] = f"{power:g}"
    rest = {
        "mpp_um": mpp,
        "objective_power": power,
        "icc_profile": bytes(icc) if isinstance(icc, bytes) and icc else None,
        "properties": properties,
        "verdict": (*(("COLOUR_DOUBT",) if doubt else ()), *(("BURNED_IN",) if burned_in else ())),
        "facts": _facts(base, optics) | {"focal_plane": places[0][0], "n_focal_planes": places[0][1]},
    }
    return _Said(tuple(by_size[size].path for size in sizes), tuple(levels), tuple(tables), rest)


def _header(path: str) -> _File:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DEFLATED:  # pydicom would inflate it without a bound; no frame could be addressed in it
            if meta.get("MediaStorageSOPClassUID") == WSM:
                raise Rejected("SLIDE_UNSUPPORTED", "a deflated DICOM file")
            raise SkippedSource("a deflated DICOM object that is no level of a slide")
        with open(path, "rb") as stream:
            header = pydicom.dcmread(stream, stop_before_pixels=True)
            place = stream.tell()
            is_pixels = stream.read(4) == _PIXEL_DATA
    except InvalidDicomError:
        raise Rejected("SLIDE_UNSUPPORTED", "not a DICOM file") from None
    except UNPARSED as error:
        raise Rejected("SLIDE_UNREADABLE", f"the DICOM header does not parse ({type(error).__name__})") from None
    return _File(path, header, place if is_pixels else 0)


def _is_level(header: Any) -> bool:
    if (_text(header, "SOPClassUID") or _text(header.file_meta, "MediaStorageSOPClassUID")) != WSM:
        return False
    image_type = [str(value).upper() for value in _values(header, "ImageType")]
    flavour = image_type[2] if len(image_type) > 2 else ""
    shows_label = _text(header, "SpecimenLabelInImage").upper() == "YES"
    return flavour not in ASSOCIATED and (flavour == "VOLUME" or not shows_label)


def _size(header: Any) -> tuple[int, int]:
    """(width, height) of the level."""
    columns = _int(header, "TotalPixelMatrixColumns", 0) or _int(header, "Columns", 0)
    rows = _int(header, "TotalPixelMatrixRows", 0) or _int(header, "Rows", 0)
    if not (0 < columns < 1 << 31 and 0 < rows < 1 << 31):
        raise Rejected("SLIDE_UNREADABLE", "a DICOM level without a possible size")
    return columns, rows


def _level(descriptor: int, file: _File, downsample: float, guard: Guard) -> tuple[Level, TileTable, bool, tuple[int, int]]:
    """The level, its table, whether its colours are in doubt, and (focal plane read, focal planes)."""
    header = file.header
    width, height = _size(header)
    tile_h, tile_w = _int(header, "Rows", 0), _int(header, "Columns", 0)
    if tile_h < 1 or tile_w < 1:
        raise Rejected("SLIDE_UNREADABLE", "a DICOM level without Rows and Columns")
    if tile_h * tile_w > guard.max_pixels:
        raise Rejected("TOO_LARGE", f"frames of {tile_w} x {tile_h} pixels are above guard.max_pixels")
    if _get(header, "ConcatenationUID") is not None:
        raise Rejected("SLIDE_UNSUPPORTED", "a level in several files (concatenation)")
    samples = _int(header, "SamplesPerPixel", 1)
    if samples == 1:
        raise Rejected("NOT_A_SLIDE", "one channel: fluorescence or a mask, not a brightfield slide")
    if samples != 3 or _int(header, "BitsAllocated", 0) != 8 or _int(header, "BitsStored", 8) != 8:
        raise NotOurs("DICOM samples other than three of 8 bits")
    if not file.pixels_at:
        raise Rejected("SLIDE_UNREADABLE", "a DICOM level without pixel data")
    grid_rows, grid_cols = -(-height // tile_h), -(-width // tile_w)
    n_frames = _int(header, "NumberOfFrames", 1)
    if not 0 < n_frames <= MAX_FRAMES or grid_rows * grid_cols > MAX_FRAMES:
        raise Rejected("SLIDE_UNREADABLE", "an impossible number of frames or tiles")
    n_bytes = os.fstat(descriptor).st_size
    syntax = _text(header.file_meta, "TransferSyntaxUID")
    extended = _get(header, "ExtendedOffsetTable")
    extended = extended if isinstance(extended, bytes) else None
    offsets, counts = frame_extents(descriptor, file.pixels_at, syntax, n_frames, tile_h * tile_w * 3, extended)
    frame_of_tile, plane, n_planes = _frame_of_tile(header, n_frames, grid_rows, grid_cols)
    stored = frame_of_tile >= 0
    offsets, counts = np.where(stored, offsets[frame_of_tile], 0), np.where(stored, counts[frame_of_tile], 0)
    offsets, counts = checked_extents(offsets, counts, n_bytes, tile_h * tile_w)
    coding, doubt = _coding(descriptor, header, syntax, offsets, counts)
    table = TileTable(descriptor, grid_rows, grid_cols, offsets, counts, coding)
    return Level(width, height, tile_w, tile_h, downsample, coding.compression), table, doubt, (plane, n_planes)


# Which frame is which tile ---------------------------------------------------------------------------------------------------------------


def _frame_of_tile(header: Any, n_frames: int, grid_rows: int, grid_cols: int) -> tuple[np.ndarray, int, int]:
    """(grid_rows * grid_cols,) frame index or -1, the focal plane read, the number of focal planes.

    TILED_FULL: frames run along columns, rows, focal planes, optical paths (PS3.3 C.7.6.17.3). Else each frame says its place.
    """
    n_tiles = grid_rows * grid_cols
    groups = _get(header, "PerFrameFunctionalGroupsSequence")
    if _text(header, "DimensionOrganizationType") == "TILED_FULL" or not groups:
        n_planes = max(1, _int(header, "TotalPixelMatrixFocalPlanes", 1))
        if n_frames < n_tiles * n_planes:
            raise Rejected("SLIDE_UNREADABLE", f"{n_frames} frames for {n_planes} focal planes of {n_tiles} tiles")
        return np.arange(n_tiles) + n_tiles * (n_planes // 2), n_planes // 2, n_planes
    if len(groups) != n_frames:
        raise Rejected("SLIDE_UNREADABLE", "the number of per-frame groups differs from the number of frames")
    places = [_place(group) for group in groups]
    wanted_path = places[0][3]
    depths = sorted({depth for _, _, depth, path in places if path == wanted_path})
    wanted_depth = depths[len(depths) // 2]
    tile_h, tile_w = _int(header, "Rows", 0), _int(header, "Columns", 0)
    frames = np.full(n_tiles, -1, np.int64)
    for frame, (column, row, depth, path) in enumerate(places):
        if depth != wanted_depth or path != wanted_path:
            continue
        if column % tile_w or row % tile_h or not (0 <= column // tile_w < grid_cols and 0 <= row // tile_h < grid_rows):
            raise NotOurs("DICOM frames that do not lie on a grid of tiles")
        frames[row // tile_h * grid_cols + column // tile_w] = frame
    return frames, len(depths) // 2, len(depths)


def _place(group: Any) -> tuple[int, int, float, str]:
    """0-based column and row of a frame's corner in the level, its depth in micrometres, its optical path."""
    position, optics = _first(group, "PlanePositionSlideSequence"), _first(group, "OpticalPathIdentificationSequence")
    if position is None:
        raise Rejected("SLIDE_UNREADABLE", "a frame without its place on the slide")
    column, row = _int(position, "ColumnPositionInTotalImagePixelMatrix", 0), _int(position, "RowPositionInTotalImagePixelMatrix", 0)
    depth = _float(position, "ZOffsetInSlideCoordinateSystem", positive=False) or 0.0
    return column - 1, row - 1, depth, _text(optics, "OpticalPathIdentifier")


# How the frames are coded ----------------------------------------------------------------------------------------------------------------


def _coding(descriptor: int, header: Any, syntax: str, offsets: np.ndarray, counts: np.ndarray) -> tuple[Coding, bool]:
    """The coding and whether the colours are in doubt (tag and stream disagree)."""
    rows, cols = _int(header, "Rows", 0), _int(header, "Columns", 0)
    photometric = _text(header, "PhotometricInterpretation")
    if syntax in NATIVE:
        if photometric not in ("RGB", "YBR_FULL"):
            raise NotOurs("uncompressed DICOM samples that are neither RGB nor YBR_FULL")
        planar = _int(header, "PlanarConfiguration", 0) == 1
        return RawCoding(rows, cols, ycbcr=photometric == "YBR_FULL", planar=planar), False
    if syntax in JPEG_2000:
        return Jp2Coding(rows, cols, photometric.startswith("YBR_FULL"), "jp2"), False
    if syntax not in JPEG:
        return FrameCoding(rows, cols, syntax, photometric, planar=_int(header, "PlanarConfiguration", 0)), False
    stored = np.flatnonzero(counts)
    if not len(stored):
        return JpegCoding(Splicer(b"", "ycbcr", rows, cols)), False
    try:
        head = parse_head(os.pread(descriptor, int(counts[stored[0]]), int(offsets[stored[0]])))
    except ValueError:
        raise Rejected("SLIDE_UNREADABLE", "the first frame is not a JPEG") from None
    colour, doubt = _jpeg_colour(head, photometric)
    return JpegCoding(Splicer(b"", colour, rows, cols)), doubt


def _jpeg_colour(head: JpegHead, photometric: str) -> tuple[Colour, bool]:
    """What the components are, and whether that is in doubt.

    Tag and stream agree in honest files. Tagged RGB with JFIF or a transforming Adobe marker is YCbCr (a JFIF stream cannot hold RGB);
    tagged RGB with subsampled chroma and no marker follows the tag, in doubt; tagged YBR but marked transform 0 is RGB.
    """
    if photometric != "RGB":
        marked_rgb = head.adobe == 0 and not head.jfif
        return ("rgb", True) if marked_rgb else ("ycbcr", False)
    if head.adobe == 0:
        return "rgb", False
    if head.jfif or head.adobe is not None:
        return "ycbcr", True
    return "rgb", head.subsampled


# What the header says --------------------------------------------------------------------------------------------------------------------


def _mpp(header: Any) -> tuple[float, float] | None:
    """(x, y) micrometres per pixel: PixelSpacing is (between rows, between columns) in mm; else the imaged volume's extent over the size."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        spacing = _values(_first(_first(header, groups), "PixelMeasuresSequence"), "PixelSpacing")
        if len(spacing) == 2 and all(isinstance(value, (int, float)) and 0 < value < float("inf") for value in spacing):
            return float(spacing[1]) * MM_UM, float(spacing[0]) * MM_UM
    (columns, rows), across, down = _size(header), _float(header, "ImagedVolumeWidth"), _float(header, "ImagedVolumeHeight")
    return None if across is None or down is None else (across / columns * MM_UM, down / rows * MM_UM)


def _facts(header: Any, optics: Any) -> dict[str, Any]:
    specimen = _first(header, "SpecimenDescriptionSequence")
    wanted = {
        "scanner_model": (header, "ManufacturerModelName"),
        "patient_id": (header, "PatientID"),
        "issuer": (header, "IssuerOfPatientID"),
        "study_uid": (header, "StudyInstanceUID"),
        "series_uid": (header, "SeriesInstanceUID"),
        "container_id": (header, "ContainerIdentifier"),
        "specimen_id": (specimen, "SpecimenIdentifier"),
        "optical_path": (optics, "OpticalPathIdentifier"),
        "patient_sex": (header, "PatientSex"),
    }
    return {name: _text(place, tag) or None for name, (place, tag) in wanted.items()}


def _properties(header: Any) -> dict[str, str]:
    """Raw top-level values as ``dicom.<Keyword>``; values that do not parse are left out."""
    found = {"openslide.vendor": "dicom"}
    for tag in header.keys():  # noqa: SIM118 - iterating a data set itself converts its values, which may raise
        try:
            element = header[tag]
            keyword, value = element.keyword, element.value
        except UNPARSED:
            continue
        if keyword and element.VR not in NO_TEXT and value not in (None, ""):
            text = str(value)
            if len(text) <= MAX_TEXT:
                found[f"dicom.{keyword}"] = text
    return found


def _get(place: Any, tag: str) -> Any:
    """A value, None where it or its place is absent; pydicom parses it only now, and what does not parse is Rejected."""
    try:
        return None if place is None else place.get(tag)
    except UNPARSED:
        raise Rejected("SLIDE_UNREADABLE", f"{tag} does not parse") from None


def _text(place: Any, tag: str) -> str:
    value = _get(place, tag)
    return "" if value is None else str(value)


def _first(place: Any, sequence: str) -> Any:
    """The first item of a sequence, None where there is none."""
    items = _get(place, sequence)
    return items[0] if isinstance(items, Sequence) and not isinstance(items, (str, bytes)) and len(items) else None


def _values(place: Any, tag: str) -> list[Any]:
    value = _get(place, tag)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, (str, int, float, bytes)) else list(value)


def _int(place: Any, tag: str, default: int) -> int:
    try:
        values = _values(place, tag)
        return int(values[0]) if values else default
    except (TypeError, ValueError, OverflowError):
        raise Rejected("SLIDE_UNREADABLE", f"{tag} is not a number") from None


def _float(place: Any, tag: str, positive: bool = True) -> float | None:
    """A finite number; None where it is absent, or no number, or not ``positive``."""
    try:
        values = _values(place, tag)
        value = float(values[0]) if values else None
    except (TypeError, ValueError):
        return None
    return None if value is None or not abs(value) < float("inf") or (positive and value <= 0) else value
