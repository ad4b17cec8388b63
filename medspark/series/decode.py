"""Data sets to stored pixel values, with every bound checked before the memory is taken.

`read_dicom` (from ``files.py``) opens a file, `read_frames` yields its frames, `raw_frames` the compressed frames as
they were received. What a frame's bytes mean is `medspark.pixels.codestream`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.encaps import generate_frames
from pydicom.tag import BaseTag

from medspark.config import Guard
from medspark.errors import Rejected
from medspark.pixels.codestream import (
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    SYNTAXES,
    Syntax,
    decode_layout,
    syntax,
)
from medspark.pixels.equal import pixel_hash
from medspark.pixels.samples import Layout, native_samples, significant, to_rgb
from medspark.series.elements import tag_of
from medspark.series.files import ENCAPSULATED_PIXELS, FOREIGN_ERRORS, PARSE_ERRORS, PIXEL_TAGS, is_short, read_dicom

__all__ = [
    "ENCAPSULATED_PIXELS",
    "PARSE_ERRORS",
    "SYNTAXES",
    "check_frames",
    "frame_count",
    "is_lossy",
    "keeps_as_received",
    "layout_of",
    "pixel_hash",
    "raw_frames",
    "read_dicom",
    "read_frames",
    "syntax_of",
    "text_of",
]

_SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES = map(tag_of, (0x00280002, 0x00280004, 0x00280006, 0x00280008))
_ROWS, _COLUMNS = tag_of(0x00280010), tag_of(0x00280011)
_BITS_ALLOCATED, _BITS_STORED, _HIGH_BIT, _REPRESENTATION = map(tag_of, (0x00280100, 0x00280101, 0x00280102, 0x00280103))
_SYNTAX, _LOSSY = tag_of(0x00020010), tag_of(0x00282110)


def _unwatched(frame: int) -> None:
    """Nobody listens."""


# --- what the header says -----------------------------------------------------------------------------------------------------------


def syntax_of(ds: Dataset) -> Syntax:
    """The data set's transfer syntax; where its meta names none, the uncompressed one that its encoding shows (SYNTAX_ASSUMED).

    Raises Rejected(UNSUPPORTED_SYNTAX).
    """
    named = text_of(ds.file_meta, _SYNTAX) if hasattr(ds, "file_meta") else ""
    if named:
        return syntax(named)
    implicit, little = ds.original_encoding
    if little is False:
        return syntax(EXPLICIT_BIG_ENDIAN)
    return syntax(EXPLICIT_LITTLE_ENDIAN if implicit is False else IMPLICIT_LITTLE_ENDIAN)


def is_lossy(ds: Dataset) -> bool:
    """Whether the pixels have ever lost information: LossyImageCompression says so, or the transfer syntax does.

    Syntaxes that can be either (JPEG-LS .81, JPEG 2000 .91, HTJ2K .203, JPEG XL .112) are believed when the header says 00.
    """
    said = text_of(ds, _LOSSY)
    by_syntax = syntax_of(ds)
    if said == "01":
        return True
    return by_syntax.lossy and not (said == "00" and by_syntax.family != "jpeg")


def layout_of(ds: Dataset) -> Layout:
    """The samples' layout, checked; float pixel data counts as 32 or 64 bits.

    Raises Rejected: MISSING_ATTRIBUTE where a required attribute is absent or no number, DECODE_FAILED where the values contradict each
    other or are of a kind that nothing reads.
    """
    rows, cols = _number(ds, _ROWS, "Rows"), _number(ds, _COLUMNS, "Columns")
    photometric = text_of(ds, _PHOTOMETRIC)
    samples = _number(ds, _SAMPLES, "SamplesPerPixel", 3 if photometric.startswith(("RGB", "YBR")) else 1)
    allocated = _number(ds, _BITS_ALLOCATED, "BitsAllocated")
    stored = _number(ds, _BITS_STORED, "BitsStored", allocated)
    high_bit = _number(ds, _HIGH_BIT, "HighBit", stored - 1)
    representation = _number(ds, _REPRESENTATION, "PixelRepresentation", 0)
    planar = _number(ds, _PLANAR, "PlanarConfiguration", 0) if samples > 1 else 0
    if rows < 1 or cols < 1:
        raise Rejected("NO_IMAGE", "Rows or Columns is 0")
    if samples not in (1, 3) or planar not in (0, 1):
        raise Rejected("DECODE_FAILED", "only one or three samples per pixel are read")
    if allocated not in (1, 8, 16, 32, 64):
        raise Rejected("DECODE_FAILED", "only 1, 8, 16, 32 or 64 bits allocated are read")
    if not 1 <= stored <= allocated or not stored - 1 <= high_bit < allocated:
        raise Rejected("DECODE_FAILED", "BitsStored, HighBit and BitsAllocated contradict each other")
    return Layout(
        rows,
        cols,
        samples,
        allocated,
        stored,
        high_bit,
        representation & 1,
        photometric or ("RGB" if samples == 3 else "MONOCHROME2"),
        planar,
    )


def frame_count(ds: Dataset) -> int:
    """NumberOfFrames, 1 where it is absent; raises Rejected(MISSING_ATTRIBUTE) where it is no number."""
    text = text_of(ds, _FRAMES)
    if not text:
        return 1
    try:
        return max(int(float(text)), 1)
    except (ValueError, OverflowError):
        raise Rejected("MISSING_ATTRIBUTE", "NumberOfFrames is not a number") from None


def _number(ds: Dataset, tag: BaseTag, name: str, default: int | None = None) -> int:
    """An unsigned short, taken from the raw bytes where it has not been parsed yet (ten times as fast)."""
    value: Any = None
    element: Any = ds._dict.get(tag)
    if element is not None:
        value = element.value
        if isinstance(element, RawDataElement):
            if value is not None and len(value) == 2 and element.VR in (None, "US", "SS", "UN"):
                return int.from_bytes(value, "little" if element.is_little_endian else "big")
            try:
                value = ds[tag].value
            except FOREIGN_ERRORS:
                raise Rejected("MISSING_ATTRIBUTE", f"{name} cannot be parsed") from None
    if value is None or value == "":
        if default is None:
            raise Rejected("MISSING_ATTRIBUTE", f"{name} is missing")
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise Rejected("MISSING_ATTRIBUTE", f"{name} is not one number") from None


def text_of(ds: Dataset, tag: BaseTag) -> str:
    """A code string, integer string or UID; "" where it is absent."""
    element: Any = ds._dict.get(tag)
    value = None if element is None else element.value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return "" if value is None else str(value).strip(" \0")


# --- frames -------------------------------------------------------------------------------------------------------------------------


def read_frames(ds: Dataset, watch_frame: Callable[[int], None] = _unwatched, guard: Guard | None = None) -> Iterator[np.ndarray]:
    """The stored values of each frame, in the file's order.

    watch_frame : called with the frame's index (from 0) before each piece of foreign decoding
    Yields (rows, cols), colour (rows, cols, 3) as RGB (palettes expanded in their own depth), little endian; dtype by BitsAllocated and
    PixelRepresentation (single bits and float data: uint8, float32, float64), before rescale, MONOCHROME1 not inverted. Uncompressed
    frames are read-only views of the data set's bytes.
    Raises Rejected: NO_IMAGE, TOO_LARGE, PIXEL_LENGTH, TRUNCATED, UNSUPPORTED_SYNTAX, MISSING_ATTRIBUTE, DECODE_FAILED.
    """
    tag, element, data = _pixel_data(ds)
    by, layout, count = syntax_of(ds), layout_of(ds), frame_count(ds)
    if layout.rows * layout.cols > (guard or Guard()).max_pixels:
        raise Rejected("TOO_LARGE", "a frame has more pixels than guard.max_pixels")
    expand = _palette(ds, layout, by) if layout.photometric == "PALETTE COLOR" else None
    if PIXEL_TAGS[tag]:
        frames = _native_frames(data, layout, count, by, np.dtype(PIXEL_TAGS[tag]))
    elif by.encapsulated:
        frames = _compressed_frames(ds, data, by, layout, count, watch_frame)
    else:
        if not by.little_endian and layout.bits_allocated <= 8 and element.VR == "OW":  # bytes lie swapped within words (PS3.5 8.1.1)
            even = data[: len(data) // 2 * 2]
            data = np.frombuffer(even, ">u2").astype("<u2").tobytes()
        frames = _native_frames(data, layout, count, by)
    for index, frame in enumerate(frames):
        if index == count:
            return
        yield frame if expand is None else expand(frame)


def check_frames(ds: Dataset) -> None:
    """Raises Rejected(PIXEL_LENGTH) where the pixels cannot hold as many frames as the header says: to be asked before anything is made
    for each of them (two thousand million frames fit into an integer string). Raises also what `read_frames` raises of the header.
    """
    count = frame_count(ds)
    if count == 1:  # `read_frames` finds it soon enough
        return
    tag, _, data = _pixel_data(ds)
    layout = layout_of(ds)
    if syntax_of(ds).encapsulated and not PIXEL_TAGS[tag]:
        _items_enough(data, count)
        return
    samples = layout.rows * layout.cols * layout.samples
    bits = 8 * np.dtype(PIXEL_TAGS[tag]).itemsize if PIXEL_TAGS[tag] else layout.bits_allocated
    if layout.photometric == "YBR_FULL_422" and layout.samples == 3 and layout.bits_allocated == 8:
        bits, samples = 8, 2 * layout.rows * layout.cols  # at least: chroma may be whole all the same
    _long_enough(data, (count * samples * bits + 7) // 8)


def raw_frames(ds: Dataset) -> Iterator[bytes]:
    """The compressed frames as received (fragments joined), for ``series.store = as_received``; decoded by codec ``dicom:<UID>``.

    Raises Rejected: NO_IMAGE, UNSUPPORTED_SYNTAX for uncompressed data sets, PIXEL_LENGTH when frames are missing.
    """
    _, _, data = _pixel_data(ds)
    if not syntax_of(ds).encapsulated:
        raise Rejected("UNSUPPORTED_SYNTAX", "an uncompressed data set has no compressed frames")
    yield from _fragments(ds, data, frame_count(ds))


def keeps_as_received(ds: Dataset) -> bool:
    """Whether a frame and `Layout.params` are enough to decode it: compressed, and no palette that only the header holds."""
    return syntax_of(ds).encapsulated and text_of(ds, _PHOTOMETRIC) != "PALETTE COLOR"


def _pixel_data(ds: Dataset) -> tuple[BaseTag, Any, bytes]:
    for tag in PIXEL_TAGS:
        element: Any = ds._dict.get(tag)
        if element is not None:
            if is_short(element):
                raise Rejected("TRUNCATED", "the file ends within its pixels")
            value = element.value if element.value is not None else ds[tag].value
            if value is not None and not isinstance(value, bytes):
                value = value.read() if hasattr(value, "read") else bytes(value)
            if value:
                return tag, element, value
    raise Rejected("NO_IMAGE", "the data set holds no pixels")


def _native_frames(data: bytes, layout: Layout, count: int, by: Syntax, as_float: np.dtype | None = None) -> Iterator[np.ndarray]:
    """Frames that lie one after the other; single bits without any gap between frames (PS3.5 8.1.1)."""
    pixels, samples = layout.rows * layout.cols, layout.rows * layout.cols * layout.samples
    if as_float is not None:
        _long_enough(data, count * samples * as_float.itemsize)
        stored = np.frombuffer(data, as_float.newbyteorder("<" if by.little_endian else ">"), count * samples)
        yield from (frame.astype(as_float, copy=False) for frame in stored.reshape(count, *layout.shape))
    elif layout.bits_allocated == 1:
        _long_enough(data, (count * samples + 7) // 8)
        for first in range(0, count * samples, samples):
            packed = np.frombuffer(data, np.uint8, (first + samples + 7) // 8 - first // 8, first // 8)
            yield np.unpackbits(packed, bitorder="little")[first % 8 :][:samples].reshape(layout.shape)
    elif layout.photometric == "YBR_FULL_422" and layout.samples == 3 and layout.bits_allocated == 8 and len(data) < count * samples:
        _long_enough(data, count * pixels * 2)
        for index in range(count):
            yield to_rgb(_upsampled(np.frombuffer(data, np.uint8, pixels * 2, index * pixels * 2), layout), "YBR_FULL")
    else:
        size = samples * layout.dtype.itemsize
        _long_enough(data, count * size)
        view = memoryview(data)
        for index in range(count):
            frame = native_samples(view[index * size : (index + 1) * size], layout, layout.planar, by.little_endian)
            frame = significant(frame, layout.bits_stored, layout.high_bit)
            yield to_rgb(frame, layout.photometric) if layout.samples == 3 else frame


def _long_enough(data: bytes, needed: int) -> None:
    if len(data) < needed:
        raise Rejected("PIXEL_LENGTH", "the pixels hold fewer bytes than Rows, Columns and NumberOfFrames need")


def _items_enough(data: bytes, count: int) -> None:
    if 8 * count > len(data):  # every frame needs an item of its own, with 8 bytes of tag and length
        raise Rejected("PIXEL_LENGTH", "there are fewer fragments than frames")


def _upsampled(data: np.ndarray, layout: Layout) -> np.ndarray:
    """Y1 Y2 Cb Cr ... -> (rows, cols, 3) Y, Cb, Cr; the pair shares its chroma (PS3.3 C.7.6.3.1.2)."""
    if layout.cols % 2:
        raise Rejected("DECODE_FAILED", "YBR_FULL_422 needs an even number of columns")
    quads = data.reshape(layout.rows, layout.cols // 2, 4)
    out = np.empty((layout.rows, layout.cols, 3), np.uint8)
    out[:, 0::2, 0], out[:, 1::2, 0] = quads[..., 0], quads[..., 1]
    out[..., 1:] = np.repeat(quads[..., 2:], 2, axis=1)
    return out


def _fragments(ds: Dataset, data: bytes, count: int) -> Iterator[bytes]:
    """The frames of encapsulated pixels, with or without offset tables (PS3.5 A.4)."""
    _items_enough(data, count)
    extended = None
    if "ExtendedOffsetTable" in ds and "ExtendedOffsetTableLengths" in ds:
        extended = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
    found = 0
    try:
        for frame in generate_frames(data, number_of_frames=count, extended_offsets=extended):
            if found == count:
                return
            found += 1
            yield frame
    except FOREIGN_ERRORS as error:
        raise Rejected("DECODE_FAILED", f"the fragments of the pixels cannot be told apart ({type(error).__name__})") from None
    if found < count:
        raise Rejected("PIXEL_LENGTH", "there are fewer frames than NumberOfFrames says")


def _compressed_frames(
    ds: Dataset, data: bytes, by: Syntax, layout: Layout, count: int, watch_frame: Callable[[int], None]
) -> Iterator[np.ndarray]:
    for index, frame in enumerate(_fragments(ds, data, count)):
        watch_frame(index)
        yield decode_layout(frame, by, layout)


def _palette(ds: Dataset, layout: Layout, by: Syntax) -> Callable[[np.ndarray], np.ndarray]:
    """indices (rows, cols) -> RGB (rows, cols, 3) of the tables' own depth (PS3.3 C.7.6.3.1.5, C.7.6.3.1.6)."""
    if layout.samples != 1:
        raise Rejected("DECODE_FAILED", "PALETTE COLOR with more than one sample per pixel")
    try:
        entries, first, _ = (int(number) for number in ds.RedPaletteColorLookupTableDescriptor)
        entries = entries or 1 << 16  # 0 stands for 65,536
        if "RedPaletteColorLookupTableData" not in ds:  # segmented tables: pydicom expands them
            from pydicom.pixels.processing import apply_color_lut

            return lambda indices: apply_color_lut(indices, ds)[..., :3]
        tables = [bytes(ds[f"{colour}PaletteColorLookupTableData"].value) for colour in ("Red", "Green", "Blue")]
        depth = "u1" if len(tables[0]) < 2 * entries else ("<u2" if by.little_endian else ">u2")
        lut = np.stack([np.frombuffer(table, depth, entries) for table in tables], axis=-1)
    except FOREIGN_ERRORS as error:
        raise Rejected("DECODE_FAILED", f"the palette is missing or broken ({type(error).__name__})") from None
    lut = np.ascontiguousarray(lut, lut.dtype.newbyteorder("<"))

    def expand(indices: np.ndarray) -> np.ndarray:
        return lut[np.clip(indices.astype(np.int64) - first, 0, entries - 1)]  # values outside take the first or last entry

    return expand
