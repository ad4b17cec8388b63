"""DICOM Segmentation (PS3.3 A.51, C.8.20): BINARY, FRACTIONAL and LABELMAP, on slices and on tiles of slides.

A plane refers to the image that its frame was derived from (``sop:``) and carries, on patients, the affine of its own frame: both are
checked when it is linked. On slides it lies at (row0, col0) of the total pixel matrix of ref_rows x ref_cols.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from medspark.labels.regions import MAX_COORDINATE, Context, Item, MaskPlane

if TYPE_CHECKING:
    from pydicom import Dataset

HALF_OF_255 = 127.5
"""Threshold of fractional planes, which are stored as fractions of 255: half of MaximumFractionalValue (contract.md section 4)."""
BACKGROUND = ("125040", "DCM")
"""Property type that says that a value of a label map is no segment (CP-2428, PS3.16 CID 7150)."""


@dataclass(frozen=True)
class Segment:
    """One item of SegmentSequence."""

    number: int
    label: str
    concept: Concept
    key: str
    annotator: str | None


@refuses_broken_values
def read(path: str, context: Context) -> Iterator[Item]:
    """One `MaskPlane` per frame and segment that has pixels; raises Rejected(LABEL_FORMAT, LABEL_SIZE, PIXEL_LENGTH, DECODE_FAILED ...)."""
    ds = open_dataset(path, context)
    kind = str(ds.get("SegmentationType") or "")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise Rejected("LABEL_FORMAT", "the segmentation is of an unknown type")
    rows, cols = int(ds.get("Rows") or 0), int(ds.get("Columns") or 0)
    context.check_pixels(rows, cols)
    segments = _segments(ds, context)
    frames = list(_frames(ds, context))
    maximum = int(ds.get("MaximumFractionalValue") or 255)
    if not 1 <= maximum <= 255:
        raise Rejected("LABEL_FORMAT", "MaximumFractionalValue is out of range")
    known = {number for number in segments}
    silent = {number for number, one in segments.items() if (one.concept.code, one.concept.code_scheme) == BACKGROUND} | {0} - known
    padding = ds.get("PixelPaddingValue")
    if kind == "LABELMAP" and padding is not None:
        silent.add(int(padding))
    for frame, pixels in zip(frames, _pixels(ds, len(frames), rows, cols, context), strict=True):
        if frame.crop is not None:
            pixels = pixels[: frame.crop[0], : frame.crop[1]]
        if kind == "LABELMAP":
            for value in np.unique(pixels):
                if int(value) in silent:
                    continue
                if int(value) not in segments:
                    raise Rejected("LABEL_FORMAT", "a frame holds a value that no segment describes")
                yield from _planes(pixels == value, segments[int(value)], frame, context)
        elif frame.segment not in segments:
            raise Rejected("LABEL_FORMAT", "a frame belongs to a segment that is not described")
        elif kind == "BINARY":
            yield from _planes(pixels != 0, segments[frame.segment], frame, context)
        else:
            if int(pixels.max(initial=0)) > maximum:
                raise Rejected("LABEL_FORMAT", "a fractional frame exceeds MaximumFractionalValue")
            scaled = pixels if maximum == 255 else (pixels.astype(np.uint32) * 510 // maximum + 1) // 2  # rounded half up
            yield from _planes(scaled.astype(np.uint8), segments[frame.segment], frame, context)


def _planes(mask: np.ndarray, segment: Segment, frame: Frame, context: Context) -> Iterator[MaskPlane]:
    if not mask.any():
        return
    rest: dict[str, Any] = {
        "affine": frame.affine,
        **dict(zip(("row0", "col0", "ref_rows", "ref_cols"), frame.place or (None,) * 4, strict=True)),
        **segment.concept.fields(),
        "instance_key": segment.key,
        "annotator": segment.annotator,
        "ref_series_id": frame.series,
    }
    for image in context.paired() or (frame.ref,):
        if not image:
            raise Rejected("LABEL_GEOMETRY", "a frame refers to neither an image nor a frame of reference with a position")
        if mask.dtype == bool:
            yield MaskPlane.of_bits(mask, image, segment.label, **rest)
        else:
            yield MaskPlane.of_fractions(mask, image, segment.label, HALF_OF_255, **rest)


def _segments(ds: Dataset, context: Context) -> dict[int, Segment]:
    found: dict[int, Segment] = {}
    for item in ds.get("SegmentSequence") or ():
        if item.get("SegmentNumber") is None:
            raise Rejected("LABEL_FORMAT", "a segment has no number")
        number = int(item.SegmentNumber)
        said, tracking = concept(item, "SegmentedPropertyTypeCodeSequence"), str(item.get("TrackingUID") or "")
        label = str(item.get("SegmentLabel") or "").strip() or said.code_meaning or f"segment_{number}"
        by_hand = str(item.get("SegmentAlgorithmType") or "") in ("MANUAL", "")
        who = annotator(context, ds.get("ContentCreatorName") if by_hand else item.get("SegmentAlgorithmName"))
        found[number] = Segment(number, label, said, context.ids.uid(tracking) if tracking else str(number), who)
    if not found:
        raise Rejected("LABEL_FORMAT", "the segmentation describes no segment")
    return found


@dataclass(frozen=True)
class Frame:
    """Where one frame lies. ``segment`` 0 in label maps; ``crop``: (rows, cols) of a tile that reaches over the edge."""

    ref: str
    segment: int
    series: str | None
    affine: tuple[float, ...] | None = None
    place: tuple[int, int, int, int] | None = None
    crop: tuple[int, int] | None = None


def _frames(ds: Dataset, context: Context) -> Iterator[Frame]:
    count = int(ds.get("NumberOfFrames") or 1)
    shared = (ds.get("SharedFunctionalGroupsSequence") or [None])[0]
    own = list(ds.get("PerFrameFunctionalGroupsSequence") or ())
    series = series_of_instances(ds, context)
    listed = {str(item.get("ReferencedSOPInstanceUID") or "") for item in ds.get("SourceImageSequence") or ()} or set(series)
    matrix = (int(ds.get("TotalPixelMatrixRows") or 0), int(ds.get("TotalPixelMatrixColumns") or 0))
    tiled = all(matrix)
    full = _tiled_full(ds) if tiled and ds.get("DimensionOrganizationType") == "TILED_FULL" else None
    if full is None and len(own) < count:  # more items than frames: an object cut down to its first frames; theirs are still theirs
        raise Rejected("LABEL_FORMAT", "the segmentation has fewer functional groups than frames")
    for place in range(count):
        groups = [group for group in (own[place] if place < len(own) else None, shared) if group is not None]
        uid, number = one_reference(
            source
            for derivation in _group(groups, "DerivationImageSequence", every=True)
            for source in derivation.get("SourceImageSequence") or ()
        )
        if not uid and tiled and len(listed) == 1:  # a tile lies by its place in the one image that the object segments
            uid = next(iter(listed))
        identity = _group(groups, "SegmentIdentificationSequence")
        segment = int(identity[0].get("ReferencedSegmentNumber") or 0) if identity else 0
        whose = series.get(uid) if uid else (next(iter(set(series.values()))) if len(set(series.values())) == 1 else None)
        if tiled:
            if full is not None:
                if place >= len(full):
                    raise Rejected("LABEL_FORMAT", "the segmentation has more frames than tiles")
                segment, row0, col0 = full[place]
            else:
                row0, col0 = _tile_corner(groups)
            rows, cols = min(int(ds.Rows), matrix[0] - row0), min(int(ds.Columns), matrix[1] - col0)
            if row0 < 0 or col0 < 0 or rows < 1 or cols < 1:
                raise Rejected("LABEL_GEOMETRY", "a tile lies outside the total pixel matrix")
            ref = f"sop:{context.ids.uid(uid)}#0" if uid else ""
            yield Frame(ref, segment, whose, place=(row0, col0, *matrix), crop=(rows, cols))
        else:
            affine = _affine(groups)
            frame = str(ds.get("FrameOfReferenceUID") or "")
            ref = f"sop:{context.ids.uid(uid)}#{number}" if uid else (f"plane:{context.ids.uid(frame)}" if frame and affine else "")
            yield Frame(ref, segment, whose, affine)


def _group(groups: list[Dataset], keyword: str, every: bool = False) -> list[Dataset]:
    """Items of a functional group, the frame's own before the shared one (PS3.3 C.7.6.16: a group is in one of the two)."""
    found: list[Dataset] = []
    for group in groups:
        found += list(group.get(keyword) or ())
        if found and not every:
            break
    return found


def _affine(groups: list[Dataset]) -> tuple[float, ...] | None:
    """(col, row, 0, 1) -> LPS mm, row-major (PS3.3 C.7.6.2.1.1); the third column is the unit normal. None where the frame has no place."""
    position, orientation = _group(groups, "PlanePositionSequence"), _group(groups, "PlaneOrientationSequence")
    measures = _group(groups, "PixelMeasuresSequence")
    if not (position and orientation and measures):
        return None
    try:
        origin = np.array(position[0].ImagePositionPatient, np.float64)
        cosines = np.array(orientation[0].ImageOrientationPatient, np.float64)
        spacing = np.array(measures[0].PixelSpacing, np.float64)
    except (AttributeError, TypeError, ValueError):
        return None
    if origin.shape != (3,) or cosines.shape != (6,) or spacing.shape != (2,):
        raise Rejected("LABEL_GEOMETRY", "a frame's position, orientation or spacing is incomplete")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = cosines[:3] * spacing[1], cosines[3:] * spacing[0]
    affine[:3, 2], affine[:3, 3] = np.cross(cosines[:3], cosines[3:]), origin
    if not (np.abs(affine) <= MAX_COORDINATE).all() or not (spacing > 0).all():
        raise Rejected("LABEL_GEOMETRY", "a frame's position, orientation or spacing is not finite or out of bounds")
    return tuple(float(value) for value in affine.ravel())


def _tile_corner(groups: list[Dataset]) -> tuple[int, int]:
    """(row, column), 0-based, of a tile in the total pixel matrix (PS3.3 C.8.12.6.1: 1-based in the file)."""
    position = _group(groups, "PlanePositionSlideSequence")
    if not position:
        raise Rejected("LABEL_GEOMETRY", "a tile has no position in the total pixel matrix")
    row, col = position[0].get("RowPositionInTotalImagePixelMatrix"), position[0].get("ColumnPositionInTotalImagePixelMatrix")
    if row is None or col is None:
        raise Rejected("LABEL_GEOMETRY", "a tile has no position in the total pixel matrix")
    return int(row) - 1, int(col) - 1


def _tiled_full(ds: Dataset) -> list[tuple[int, int, int]]:
    """(segment, row, column) of each frame: columns fastest, then rows, then focal planes, then segments (PS3.3 C.7.6.17.3)."""
    down, across = -(-int(ds.TotalPixelMatrixRows) // int(ds.Rows)), -(-int(ds.TotalPixelMatrixColumns) // int(ds.Columns))
    planes = int(ds.get("TotalPixelMatrixFocalPlanes") or 1)
    if planes != 1:
        raise Rejected("LABEL_FORMAT", "the segmentation has several focal planes")
    labelmap = ds.get("SegmentationType") == "LABELMAP"
    numbers = [0] if labelmap else [int(item.SegmentNumber) for item in ds.get("SegmentSequence") or ()]
    if int(ds.get("NumberOfFrames") or 1) > len(numbers) * down * across:
        raise Rejected("LABEL_FORMAT", "the segmentation has more frames than tiles")
    return [(number, row * int(ds.Rows), col * int(ds.Columns)) for number in numbers for row in range(down) for col in range(across)]


def _pixels(ds: Dataset, count: int, rows: int, cols: int, context: Context) -> Iterator[np.ndarray]:
    """(rows, cols) stored values of each frame; packed bits by numpy, the rest by pydicom."""
    bits = int(ds.get("BitsAllocated") or 0)
    if "PixelData" not in ds or bits not in (1, 8, 16):
        raise Rejected("LABEL_FORMAT", "the segmentation has no pixels of 1, 8 or 16 bits")
    syntax = getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", None)
    if bits == 1 and (syntax is None or not syntax.is_encapsulated):
        data = np.frombuffer(ds.PixelData, np.uint8)
        size = rows * cols
        if len(data) * 8 < count * size:
            raise Rejected("PIXEL_LENGTH", "the segmentation holds fewer pixels than its size says")
        for place in range(count):
            context.watch(f"frame {place + 1}")
            first, last = place * size // 8, -(-(place + 1) * size // 8)
            skip = place * size - first * 8  # frames follow each other without padding to a byte (PS3.5 8.1.1)
            yield np.unpackbits(data[first:last], bitorder="little")[skip : skip + size].reshape(rows, cols)
        return
    if syntax is None:
        raise Rejected("LABEL_FORMAT", "the segmentation does not say how its pixels are encoded")
    if not syntax.is_encapsulated and len(ds.PixelData) < count * rows * cols * bits // 8:
        raise Rejected("PIXEL_LENGTH", "the segmentation holds fewer pixels than its size says")
    from pydicom.pixels import iter_pixels

    source = iter_pixels(ds, raw=True)
    for place in range(count):
        context.watch(f"frame {place + 1}")
        try:
            frame = next(source)
        except StopIteration:
            raise Rejected("PIXEL_LENGTH", "the segmentation holds fewer frames than it says") from None
        except (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError, KeyError, IndexError, EOFError):
            raise Rejected("DECODE_FAILED", "a frame of the segmentation cannot be decoded") from None
        if frame.shape != (rows, cols):
            raise Rejected("LABEL_SIZE", "a frame of the segmentation is of another size than it says")
        yield frame
