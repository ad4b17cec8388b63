"""One decoder per DICOM transfer syntax: a compressed frame in, stored values out.

`SYNTAXES` is the whole table: what each syntax is called, whether it loses information and which of the small functions below reads it.
Nothing is guessed by trying libraries in turn. Before a library sees a frame, the frame's own header is compared with what the data
set says (`_check_size`), so that a stream that lies about its size is refused before anything is allocated.

pylibjpeg-libjpeg (GPL) is not used: every ITU-T T.81 process, 12-bit and lossless ones among them, is read by libjpeg-turbo 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medspark.errors import Rejected
from medspark.pixels.samples import Layout, native_bytes, native_samples, significant, to_rgb

Family = Literal["native", "jpeg", "jpegls", "jpeg2000", "jpegxl", "rle", "deflate", "video", "other"]


RLE_HEADER_BYTES = 64  # the number of segments and fifteen offsets (PS3.5 G.5)

Decoder = Callable[[bytes, Layout], tuple[np.ndarray, str]]
"""(frame, layout) -> (samples of any integer type in `Layout.shape`, the colour model they are in)."""


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax: its name, its family and the function that reads one frame of it (None: uncompressed, or not read at all)."""

    uid: str
    name: str
    family: Family
    decoder: Decoder | None
    lossy: bool = False

    @property
    def encapsulated(self) -> bool:
        """Whether PixelData is a sequence of fragments (PS3.5 A.4)."""
        return self.family != "native" or self.decoder is not None

    @property
    def little_endian(self) -> bool:
        return self.uid != EXPLICIT_BIG_ENDIAN


def decode_frame(data: bytes, transfer_syntax_uid: str, dtype: str, shape: Sequence[int], params: Mapping[str, str]) -> np.ndarray:
    """The stored values of one compressed frame kept as received: what `medspark.series.decode.read_frames` gives for it.

    dtype, shape, params : as in the row of ``pixels`` (`Layout.params`)
    Returns (rows, cols) or (rows, cols, 3), colour as RGB.
    Raises Rejected (UNSUPPORTED_SYNTAX, DECODE_FAILED, TRUNCATED, PIXEL_LENGTH).
    """
    return decode_layout(data, syntax(transfer_syntax_uid), Layout.from_params(shape, dtype, params))


def decode_layout(data: bytes, by: Syntax, layout: Layout) -> np.ndarray:
    """As `decode_frame`, for a typed `Layout`."""
    if by.decoder is None:
        raise Rejected("UNSUPPORTED_SYNTAX", "frames of this transfer syntax are not compressed")
    return finish(*by.decoder(data, layout), layout)


def syntax(uid: str) -> Syntax:
    """The table's entry; raises Rejected(UNSUPPORTED_SYNTAX) for video, pixels that lie elsewhere, and unknown or private syntaxes."""
    found = SYNTAXES.get(uid)
    if found is None:
        raise Rejected("UNSUPPORTED_SYNTAX", "the transfer syntax is private or unknown")
    if found.family in ("video", "other"):
        raise Rejected("UNSUPPORTED_SYNTAX", f"{found.name} is not read")
    return found


def finish(array: np.ndarray, photometric: str, layout: Layout) -> np.ndarray:
    """Samples as a decoder gave them -> stored values: in the layout's dtype, sign extended, colour as RGB.

    array : (rows, cols) or (rows, cols, 3)    any integer type; bit 0 of a sample is bit 0 here, whatever HighBit says (PS3.5 8.2)
    photometric : the colour model of ``array``
    Never writes into ``array``.  Raises Rejected(PIXEL_LENGTH, DECODE_FAILED).
    """
    if array.shape != layout.shape:
        raise Rejected("PIXEL_LENGTH", "the compressed frame has another size than Rows, Columns and SamplesPerPixel say")
    dtype = layout.dtype
    if array.dtype != dtype:
        if array.dtype.itemsize > dtype.itemsize and array.size and int(array.max()) - int(array.min()) >= 1 << 8 * dtype.itemsize:
            raise Rejected("DECODE_FAILED", "the compressed frame holds more bits than BitsAllocated")
        array = array.astype(dtype)
    values = significant(array, layout.bits_stored, layout.bits_stored - 1)
    return to_rgb(values, photometric) if layout.samples == 3 else values


# --- the headers of the streams ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Head:
    """What a codestream says about itself."""

    rows: int
    cols: int
    samples: int
    lossless: bool = False
    jfif: bool = False
    adobe_transform: int | None = None


_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF0-15 without DHT, JPG, DAC; SOF55 is JPEG-LS
_LOSSLESS_MARKERS = frozenset({0xC3, 0xC7, 0xCB, 0xCF, 0xF7})
_END_OF_IMAGE = b"\xff\xd9"  # EOI of T.81 and T.87, EOC of T.800; byte stuffing keeps it out of the coded data


def _jpeg_head(data: bytes) -> _Head:
    """Of a JPEG or JPEG-LS stream, by its markers (ITU-T T.81 B.2.2)."""
    place, jfif, adobe = 2, False, None
    if data[:2] != b"\xff\xd8":
        raise Rejected("DECODE_FAILED", "the frame does not begin as a JPEG stream")
    frame: tuple[int, int, int, bool] | None = None
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            raise Rejected("DECODE_FAILED", "the frame’s JPEG markers are broken")
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + size]
        if marker == 0xE0 and body[:4] == b"JFIF":
            jfif = True
        elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        elif marker in _FRAME_MARKERS and len(body) >= 6:
            rows, cols = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            frame = (rows, cols, body[5], marker in _LOSSLESS_MARKERS)
        elif marker == 0xDA:
            break
        place += 2 + size
    if frame is None:
        raise Rejected("DECODE_FAILED", "the frame’s JPEG stream has no frame header")
    if data.rfind(_END_OF_IMAGE) < place:
        raise Rejected("TRUNCATED", "the compressed frame ends before its end marker")
    return _Head(*frame, jfif=jfif, adobe_transform=adobe)


def _jpeg2000_head(data: bytes) -> _Head:
    """Of a bare codestream or one in a JP2 box, by its SIZ marker (ITU-T T.800 A.5.1)."""
    start = data.find(b"\xff\x4f\xff\x51")
    siz = data[start + 4 : start + 42]
    if start < 0 or len(siz) < 38:
        raise Rejected("DECODE_FAILED", "the frame holds no JPEG 2000 codestream")
    right, bottom, left, top = (int.from_bytes(siz[at : at + 4], "big") for at in (4, 8, 12, 16))
    return _Head(bottom - top, right - left, int.from_bytes(siz[36:38], "big"))


def _check_size(head: _Head, layout: Layout) -> None:
    """Before anything is allocated: the stream must be of the size that the data set says (which its reader has bounded)."""
    if (head.rows, head.cols, head.samples) != (layout.rows, layout.cols, layout.samples):
        raise Rejected("PIXEL_LENGTH", "the compressed frame has another size than Rows, Columns and SamplesPerPixel say")


def _call(decode: Callable[..., Any], data: bytes, **options: object) -> Any:
    """A foreign decoder's answer; its complaint becomes DECODE_FAILED."""
    try:
        return decode(data, **options)
    except (RuntimeError, ValueError, IndexError, OverflowError) as error:
        raise Rejected("DECODE_FAILED", f"the compressed frame is broken ({type(error).__name__})") from None


# --- the decoders -----------------------------------------------------------------------------------------------------------------


def _jpeg(data: bytes, layout: Layout) -> tuple[np.ndarray, str]:
    """Sequential, progressive and lossless processes of ITU-T T.81, 8 to 16 bits, by libjpeg-turbo.

    Lossy YCbCr becomes RGB here, because the decoder alone knows how the chroma was subsampled; lossless colour is left as coded.
    """
    import imagecodecs

    head = _jpeg_head(data)
    _check_size(head, layout)
    if layout.samples == 1:
        return _call(imagecodecs.jpeg8_decode, data), "MONOCHROME2"
    if head.lossless:
        return _call(imagecodecs.jpeg8_decode, data, colorspace="rgb", outcolorspace="rgb"), layout.photometric
    if head.adobe_transform is not None:
        coded = "ycbcr" if head.adobe_transform == 1 else "rgb"
    else:  # a JFIF marker in a frame tagged RGB means YCbCr all the same
        coded = "ycbcr" if head.jfif or layout.photometric != "RGB" else "rgb"
    return _call(imagecodecs.jpeg8_decode, data, colorspace=coded, outcolorspace="rgb"), "RGB"


def _jpegls(data: bytes, layout: Layout) -> tuple[np.ndarray, str]:
    """ITU-T T.87 by CharLS; samples come out unsigned, colour as coded."""
    import imagecodecs

    _check_size(_jpeg_head(data), layout)
    return _call(imagecodecs.jpegls_decode, data), layout.photometric


def _jpeg2000(data: bytes, layout: Layout) -> tuple[np.ndarray, str]:
    """ITU-T T.800 and T.814 (high throughput) by OpenJPEG, which undoes the component transform."""
    import imagecodecs

    _check_size(_jpeg2000_head(data), layout)
    return _call(imagecodecs.jpeg2k_decode, data, numthreads=1), layout.photometric


def _jpegxl(data: bytes, layout: Layout) -> tuple[np.ndarray, str]:
    """ISO/IEC 18181; the output array is given, so that a stream of another size is refused before it is decoded."""
    import imagecodecs

    out = np.empty(layout.shape, layout.dtype.str.replace("i", "u"))
    photometric = "RGB" if layout.samples == 3 else "MONOCHROME2"  # its decoder always answers in RGB or grey
    return _call(imagecodecs.jpegxl_decode, data, numthreads=1, out=out), photometric


def _rle(data: bytes, layout: Layout) -> tuple[np.ndarray, str]:
    """PS3.5 annex G: byte planes, most significant first, each packed by PackBits; grows at most 64 times, so its length bounds it.

    The header of offsets is checked here: imagecodecs.dicomrle_decode trusts it and crashed within a second of damaged frames.
    """
    width, size = layout.bits_allocated // 8, layout.rows * layout.cols
    if layout.bits_allocated % 8:
        raise Rejected("DECODE_FAILED", "run-length frames of single bits are not read")
    if len(data) < RLE_HEADER_BYTES:
        raise Rejected("TRUNCATED", "the run-length frame ends within its header")
    count, *starts = (int(number) for number in np.frombuffer(data, "<u4", RLE_HEADER_BYTES // 4))
    if count != layout.samples * width:
        raise Rejected("PIXEL_LENGTH", "the run-length frame has another number of byte planes than its samples need")
    ends = [*starts[1:count], len(data)]
    planes = np.empty((layout.samples, size, width), np.uint8)
    for place, (start, end) in enumerate(zip(starts, ends, strict=False)):
        if not RLE_HEADER_BYTES <= start <= end <= len(data):
            raise Rejected("DECODE_FAILED", "the run-length frame’s segments lie outside it")
        sample, byte = divmod(place, width)
        planes[sample, :, width - 1 - byte] = _unpacked(data[start:end], size)
    flat = planes.reshape(layout.samples, layout.rows, layout.cols, width).view(layout.dtype)[..., 0]
    return (flat[0] if layout.samples == 1 else np.ascontiguousarray(flat.transpose(1, 2, 0))), layout.photometric


def _unpacked(segment: bytes, size: int) -> np.ndarray:
    """(size,) uint8 of one PackBits segment; a byte of padding at its end is ignored."""
    import imagecodecs

    raw = _call(imagecodecs.packbits_decode, segment, out=size)
    if len(raw) != size:
        raise Rejected("PIXEL_LENGTH", "the run-length frame has another size than Rows, Columns and SamplesPerPixel say")
    return np.frombuffer(raw, np.uint8)


def _deflated(data: bytes, layout: Layout) -> tuple[np.ndarray, str]:
    """PS3.5 A.4.13 (deflated image frame): one raw deflate stream per frame, inflated to the frame's size and no further."""
    import zlib

    size = native_bytes(layout)
    try:
        raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 2)
    except zlib.error:
        raise Rejected("DECODE_FAILED", "the deflated frame is broken") from None
    return native_samples(raw, layout, layout.planar), layout.photometric


def _uncompressed(data: bytes, layout: Layout) -> tuple[np.ndarray, str]:
    """PS3.5 A.4.11 (encapsulated uncompressed): little endian samples, one frame per item."""
    return native_samples(data, layout, layout.planar), layout.photometric


# --- the table --------------------------------------------------------------------------------------------------------------------

_ROOT = "1.2.840.10008.1.2"
IMPLICIT_LITTLE_ENDIAN = _ROOT
EXPLICIT_LITTLE_ENDIAN = f"{_ROOT}.1"
EXPLICIT_BIG_ENDIAN = f"{_ROOT}.2"
DEFLATED = f"{_ROOT}.1.99"


def _table() -> dict[str, Syntax]:
    lossless, lossy = False, True
    rows: list[tuple[str, str, Family, Decoder | None, bool]] = [
        ("", "Implicit VR Little Endian", "native", None, lossless),
        (".1", "Explicit VR Little Endian", "native", None, lossless),
        (".2", "Explicit VR Big Endian", "native", None, lossless),
        (".1.99", "Deflated Explicit VR Little Endian", "native", None, lossless),
        (".1.98", "Encapsulated Uncompressed Explicit VR Little Endian", "native", _uncompressed, lossless),
        (".8.1", "Deflated Image Frame Compression", "deflate", _deflated, lossless),
        (".4.50", "JPEG Baseline (Process 1)", "jpeg", _jpeg, lossy),
        (".4.51", "JPEG Extended (Process 2 and 4)", "jpeg", _jpeg, lossy),
        (".4.53", "JPEG Spectral Selection, Non-Hierarchical (Process 6 and 8), retired", "jpeg", _jpeg, lossy),
        (".4.55", "JPEG Full Progression, Non-Hierarchical (Process 10 and 12), retired", "jpeg", _jpeg, lossy),
        (".4.57", "JPEG Lossless, Non-Hierarchical (Process 14)", "jpeg", _jpeg, lossless),
        (".4.70", "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14, Selection Value 1)", "jpeg", _jpeg, lossless),
        (".4.80", "JPEG-LS Lossless", "jpegls", _jpegls, lossless),
        (".4.81", "JPEG-LS Lossy (Near-Lossless)", "jpegls", _jpegls, lossy),
        (".4.90", "JPEG 2000 (Lossless Only)", "jpeg2000", _jpeg2000, lossless),
        (".4.91", "JPEG 2000", "jpeg2000", _jpeg2000, lossy),
        (".4.201", "High-Throughput JPEG 2000 (Lossless Only)", "jpeg2000", _jpeg2000, lossless),
        (".4.202", "High-Throughput JPEG 2000 with RPCL Options (Lossless Only)", "jpeg2000", _jpeg2000, lossless),
        (".4.203", "High-Throughput JPEG 2000", "jpeg2000", _jpeg2000, lossy),
        (".4.110", "JPEG XL Lossless", "jpegxl", _jpegxl, lossless),
        (".4.111", "JPEG XL JPEG Recompression", "jpegxl", _jpegxl, lossy),
        (".4.112", "JPEG XL", "jpegxl", _jpegxl, lossy),
        (".5", "RLE Lossless", "rle", _rle, lossless),
    ]
    for last in ("100", "101", "102", "103", "104", "105", "106"):
        rows.append((f".4.{last}", "video (MPEG)", "video", None, lossy))
        rows.append((f".4.{last}.1", "video (fragmentable MPEG)", "video", None, lossy))
    rows += [(f".4.{last}", "video (HEVC)", "video", None, lossy) for last in ("107", "108")]
    rows += [(f".7.{last}", "video (SMPTE ST 2110)", "video", None, lossless) for last in ("1", "2", "3")]
    rows += [
        (f".4.{last}", "a retired process of JPEG", "other", None, lossy) for last in ("52", "54", "56", "59", "60", "61", "62", "63", "64")
    ]
    rows += [(f".4.{last}", "a retired lossless process of JPEG", "other", None, lossless) for last in ("58", "65", "66")]
    rows += [(".4.92", "JPEG 2000 Part 2 (Lossless Only)", "other", None, lossless), (".4.93", "JPEG 2000 Part 2", "other", None, lossy)]
    rows += [(f".4.{last}", "JPIP (pixels that lie elsewhere)", "other", None, lossy) for last in ("94", "95", "204", "205")]
    return {_ROOT + tail: Syntax(_ROOT + tail, name, family, decoder, is_lossy) for tail, name, family, decoder, is_lossy in rows}


SYNTAXES: dict[str, Syntax] = _table()
"""Every transfer syntax of PS3.6 table A-1 that carries pixels, by UID; those of family ``video`` and ``other`` are known and refused."""
