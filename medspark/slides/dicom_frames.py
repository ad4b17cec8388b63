"""Where the frames of a DICOM file lie: from its offset tables where they are true, from a walk over its items where not. PS3.5 A.4."""

from __future__ import annotations

import mmap
import os

import numpy as np

from medspark.errors import Rejected
from medspark.pixels.codestream import SYNTAXES
from medspark.slides.codings import J2K_START
from medspark.slides.slide import NotOurs
from medspark.slides.splice import SOI

IMPLICIT = "1.2.840.10008.1.2"
NATIVE = frozenset({IMPLICIT, "1.2.840.10008.1.2.1"})  # uncompressed, implicit and explicit, little endian
JPEG = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})  # baseline, extended (8 bits)
JPEG_2000 = frozenset({f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203)})  # 201-203: high throughput
UNDEFINED = 0xFFFFFFFF
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"  # (FFFE,E000), (FFFE,E0DD), little endian


def frame_extents(
    descriptor: int, pixels_at: int, syntax: str, n_frames: int, frame_bytes: int, extended: bytes | None
) -> tuple[np.ndarray, np.ndarray]:
    """(n_frames,) int64 offsets in the file and byte counts of the frames' own bytes.

    pixels_at : int             offset of the PixelData element
    frame_bytes : int           of an uncompressed frame
    extended : bytes or None    the Extended Offset Table (7FE0,0001)
    Raises Rejected SLIDE_UNREADABLE where frames are missing or lie outside the file; NotOurs for other syntaxes and fragmented frames.
    """
    n_bytes = os.fstat(descriptor).st_size
    head = os.pread(descriptor, 12, pixels_at)
    if len(head) < 12:
        raise Rejected("SLIDE_UNREADABLE", "the pixel data ends in its own header")
    implicit = syntax == IMPLICIT
    length, start = int.from_bytes(head[4:8] if implicit else head[8:12], "little"), pixels_at + (8 if implicit else 12)
    if syntax in NATIVE:
        if length == UNDEFINED or length < n_frames * frame_bytes or start + n_frames * frame_bytes > n_bytes:
            raise Rejected("SLIDE_UNREADABLE", "the pixel data is shorter than its frames")
        return start + frame_bytes * np.arange(n_frames, dtype=np.int64), np.full(n_frames, frame_bytes, np.int64)
    if syntax not in SYNTAXES or SYNTAXES[syntax].decoder is None:
        raise NotOurs("a DICOM transfer syntax that medspark does not read in slides")
    if length != UNDEFINED or start + 8 > n_bytes:
        raise Rejected("SLIDE_UNREADABLE", "compressed pixel data without items")
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as view:
        return _encapsulated(view, extended, start, n_frames, n_bytes)


def _encapsulated(view: mmap.mmap, extended: bytes | None, start: int, n_frames: int, n_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    if view[start : start + 4] != _ITEM:
        raise Rejected("SLIDE_UNREADABLE", "the pixel data has no basic offset table")
    table_bytes = int.from_bytes(view[start + 4 : start + 8], "little")
    first = start + 8 + table_bytes  # of the first frame's item: what offsets count from
    if first + 8 > n_bytes:
        raise Rejected("SLIDE_UNREADABLE", "the basic offset table lies outside the file")
    if extended is not None and len(extended) == 8 * n_frames:
        table = np.frombuffer(extended, "<u8")
    elif table_bytes == 4 * n_frames:
        table = np.frombuffer(view[start + 8 : first], "<u4").astype(np.uint64)
    else:
        return _walked(view, first, n_frames, n_bytes)
    if bool((table > np.uint64(n_bytes - first - 8)).any()):
        raise Rejected("SLIDE_UNREADABLE", "a frame's offset lies outside the file")
    places = table.astype(np.int64) + first
    # One gather of all item headers: each frame must be one item that ends where the next begins, else the items are walked.
    raw = np.frombuffer(view, np.uint8)
    headers = raw[places[:, None] + np.arange(8)]
    del raw  # releases the map
    lengths = np.ascontiguousarray(headers[:, 4:]).view("<u4")[:, 0].astype(np.int64)
    items = bool((headers[:, :4] == np.frombuffer(_ITEM, np.uint8)).all())
    ends = places + 8 + lengths
    if items and bool((ends[:-1] == places[1:]).all()) and view[int(ends[-1]) : int(ends[-1]) + 4] == _DELIMITER:
        return places + 8, lengths
    return _walked(view, first, n_frames, n_bytes)


def _walked(view: mmap.mmap, place: int, n_frames: int, n_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames from the items themselves: one each, or else those that begin a codestream; what continues one we leave to OpenSlide."""
    offsets, counts, begins = [], [], []
    while place + 8 <= n_bytes:
        head = view[place : place + 8]
        if head[:4] == _DELIMITER:
            break
        if head[:4] != _ITEM:
            raise Rejected("SLIDE_UNREADABLE", "the pixel data's items do not follow one another")
        length = int.from_bytes(head[4:], "little")
        if place + 8 + length > n_bytes:
            raise Rejected("SLIDE_UNREADABLE", "a frame ends outside the file")
        offsets.append(place + 8)
        counts.append(length)
        begins.append(view[place + 8 : place + 10] == SOI or view[place + 8 : place + 12] == J2K_START)
        place += 8 + length
    else:
        raise Rejected("SLIDE_UNREADABLE", "the pixel data ends without its delimiter")
    if len(offsets) > n_frames and sum(begins) <= n_frames:
        raise NotOurs("DICOM frames in several fragments")
    if len(offsets) != n_frames:
        raise Rejected("SLIDE_UNREADABLE", f"{len(offsets)} frames found, {n_frames} announced")
    return np.array(offsets, np.int64), np.array(counts, np.int64)
