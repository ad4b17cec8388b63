"""A photo file -> its images: upright arrays of grey or RGB, and, for a JPEG that lies upright, its own bytes without metadata.

Every size is checked in the header before a pixel is inflated. Decoders never see the file: they get what is rebuilt of it from the parts
that hold pixels (JPEG, PNG), or its samples alone (TIFF, BMP).
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medspark.config import Guard
from medspark.errors import Rejected
from medspark.photos import jpeg
from medspark.photos.orient import UPRIGHT, orientation, upright
from medspark.pixels import decode

Format = Literal["jpeg", "png", "tiff", "bmp", "npz"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ZIP_START = b"PK\x03\x04"
HEAD_BYTES = 33  # PNG's signature and IHDR; more than any other format needs to be told
MAX_PAGES = 10_000  # of one TIFF; microscopes write stacks of some thousand
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # PNG 11.2.2: colour type -> bits
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_TIFF_ERRORS = (
    ValueError,
    RuntimeError,
    TypeError,
    struct.error,
    LookupError,
    OSError,
    NotImplementedError,
    AssertionError,
    ArithmeticError,
)
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # TIFF 6.0 PhotometricInterpretation

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its complaints quote tags, which no log may hold


@dataclass(frozen=True)
class Size:
    """What a header says of one image. ``pixels``: rows x cols."""

    rows: int
    cols: int

    @property
    def pixels(self) -> int:
        return self.rows * self.cols


@dataclass(frozen=True)
class Photo:
    """One image.

    array : (rows, cols) or (rows, cols, 3)     upright, palette expanded, without alpha (what is fully transparent is 0)
    bits : per sample, as the file says; bilevel and palette pictures have 8
    jpeg : bytes or None                        the received JPEG without metadata, which decodes to ``array``
    """

    array: np.ndarray
    bits: int
    jpeg: bytes | None = None


def sniff(head: bytes) -> Format | None:
    """The format by its first `HEAD_BYTES`; None for what is no photo."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(PNG_SIGNATURE):
        return "png"
    if head[:4] in TIFF_STARTS:
        return "tiff"
    if head.startswith(ZIP_START):
        return "npz"
    # "BM" alone is a word: the size of the information header (12 to 124) makes it a bitmap.
    if head.startswith(b"BM") and len(head) >= 18 and int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return "bmp"
    return None


def sizes(path: str, form: Format, guard: Guard) -> list[Size]:
    """Sizes of the images in a photo file, from headers alone; raises Rejected (PHOTO_UNREADABLE, TRUNCATED, TOO_LARGE, NO_IMAGE)."""
    if form == "tiff":
        with _open_tiff(path) as file:
            return [Size(int(page.imagelength), int(page.imagewidth)) for _, page in _pages(file, guard)]
    data = _bytes(path)
    if form == "jpeg":
        said = jpeg.parse(data)
        _refuse_inks(said)
        found = Size(said.rows, said.cols)
    elif form == "png":
        found = _png_size(data)
    else:
        found = _bmp_size(data)
    _check(found, guard)
    return [found]


def photos(path: str, form: Format, guard: Guard) -> Iterator[tuple[int, Photo]]:
    """(index, photo) of each image; the index of a TIFF is its page's number. Raises Rejected as `sizes` and where pixels do not decode."""
    if form == "tiff":
        with _open_tiff(path) as file:
            for index, page in _pages(file, guard):
                yield index, _tiff(page)
        return
    yield 0, photo(_bytes(path), form, guard)


def photo(data: bytes, form: Format, guard: Guard) -> Photo:
    """The one image of a JPEG, PNG or BMP; raises Rejected as `photos`."""
    return {"jpeg": _jpeg, "png": _png, "bmp": _bmp}[str(form)](data, guard)


def _bytes(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _check(size: Size, guard: Guard) -> None:
    if size.rows < 1 or size.cols < 1:
        raise Rejected("PHOTO_UNREADABLE", "a picture without pixels")
    if size.pixels > guard.max_pixels:
        raise Rejected("TOO_LARGE", "the picture exceeds guard.max_pixels")


def plain(array: np.ndarray) -> np.ndarray:
    """Samples as decoded -> (rows, cols) or (rows, cols, 3): single channels squeezed, alpha left out, bilevel as 0 and 255.

    What is fully transparent becomes 0: nobody has seen it, and it may say whose picture it is.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.ndim == 3 and array.shape[2] in (2, 4):
        seen = array[..., -1:] > 0
        array = np.where(seen, array[..., :-1], 0).astype(array.dtype)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise Rejected("PHOTO_UNREADABLE", "neither grey nor three colours")
    return np.ascontiguousarray(array)


# ---- JPEG


def _refuse_inks(said: jpeg.Jpeg) -> None:
    if said.colour == "inks":
        raise Rejected("PHOTO_UNREADABLE", "a JPEG of four inks (CMYK): which colours they print only its profile says; convert it to RGB")


def _jpeg(data: bytes, guard: Guard) -> Photo:
    said = jpeg.parse(data)
    _refuse_inks(said)
    _check(Size(said.rows, said.cols), guard)
    shape = [said.rows, said.cols] if said.channels == 1 else [said.rows, said.cols, 3]
    if said.precision == 8 and said.sof != jpeg.LOSSLESS:
        try:
            array = decode(said.bare, "jpeg", "uint8", shape)
        except ValueError:
            raise Rejected("DECODE_FAILED", "the JPEG cannot be decoded to its end") from None
    else:
        array = _wide_jpeg(said, tuple(shape))
    kept = said.bare if said.as_received and said.precision == 8 else None
    return Photo(upright(array, said.orientation), said.precision, kept)


def _wide_jpeg(said: jpeg.Jpeg, shape: tuple[int, ...]) -> np.ndarray:
    """12-bit and lossless JPEG, which libjpeg-turbo's usual interface leaves out."""
    import imagecodecs

    try:
        array = imagecodecs.jpeg_decode(said.bare)
    except (RuntimeError, ValueError):  # imagecodecs' own errors derive from RuntimeError
        raise Rejected("DECODE_FAILED", "the JPEG is of a process that is not read, or broken") from None
    if array.shape != shape:
        raise Rejected("DECODE_FAILED", "the JPEG is of another size than its header says")
    return np.asarray(array)


# ---- PNG


def _png_size(data: bytes) -> Size:
    if len(data) < HEAD_BYTES or data[12:16] != b"IHDR":
        raise Rejected("TRUNCATED", "a PNG that ends in its header")
    cols, rows, bits, kind = struct.unpack(">IIBB", data[16:26])
    if bits not in PNG_DEPTHS.get(kind, ()):
        raise Rejected("PHOTO_UNREADABLE", "a PNG of a depth or colour type that PNG does not have")
    return Size(rows, cols)


def _png(data: bytes, guard: Guard) -> Photo:
    """Only the chunks that hold pixels are read: text and profiles may be compressed, and are then never inflated."""
    import imagecodecs

    size = _png_size(data)
    _check(size, guard)
    kept, exif, ended = [PNG_SIGNATURE], b"", False
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(data) and not ended:
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        stop = place + 12 + length
        if stop > len(data):
            break
        if kind in _PNG_KEPT:
            if zlib.crc32(data[place + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], "big"):
                raise Rejected("DECODE_FAILED", "a chunk of the PNG is damaged")
            kept.append(data[place:stop])
        elif kind == b"eXIf":
            exif = data[place + 8 : stop - 4]
        ended, place = kind == b"IEND", stop
    if not ended:
        raise Rejected("TRUNCATED", "a PNG that ends before its end")
    try:
        array = imagecodecs.png_decode(b"".join(kept))
    except (RuntimeError, ValueError):
        raise Rejected("DECODE_FAILED", "the PNG cannot be decoded to its end") from None
    if array.shape[:2] != (size.rows, size.cols):
        raise Rejected("DECODE_FAILED", "the PNG is of another size than its header says")
    array = plain(array)
    return Photo(upright(array, orientation(exif)), 8 * array.itemsize)


# ---- BMP


def _bmp_size(data: bytes) -> Size:
    if len(data) < 26:
        raise Rejected("TRUNCATED", "a BMP that ends in its header")
    if int.from_bytes(data[14:18], "little") == 12:
        cols, rows = struct.unpack("<HH", data[18:22])
    else:
        cols, rows = struct.unpack("<ii", data[18:26])
    return Size(abs(rows), cols)  # a negative height: the first row is the top one


def _bmp(data: bytes, guard: Guard) -> Photo:
    from PIL import Image

    _check(_bmp_size(data), guard)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: guard.max_pixels has allowed them
            with Image.open(io.BytesIO(data), formats=["BMP"]) as image:
                image.load()
                array = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    except Image.DecompressionBombError:
        raise Rejected("TOO_LARGE", "the BMP is larger than its decoder reads") from None
    except (OSError, ValueError, SyntaxError, struct.error, LookupError):
        raise Rejected("DECODE_FAILED", "the BMP is truncated, or of a kind that is not read") from None
    return Photo(plain(array), 8)


# ---- TIFF


def _open_tiff(path: str) -> Any:
    import tifffile

    try:
        return tifffile.TiffFile(path)
    except (tifffile.TiffFileError, *_TIFF_ERRORS):
        raise Rejected("PHOTO_UNREADABLE", "the TIFF's directory cannot be read") from None


def _pages(file: Any, guard: Guard) -> Iterator[tuple[int, Any]]:
    """(number, page) of every picture; reduced copies and transparency masks (NewSubfileType 1, 4) are none of their own."""
    found = 0
    try:
        if len(file.pages) > MAX_PAGES:
            raise Rejected("TOO_LARGE", f"a TIFF of more than {MAX_PAGES} pages")
        for number in range(len(file.pages)):
            page = file.pages[number]
            if int(page.subfiletype) & 5:
                continue
            size = Size(int(page.imagelength), int(page.imagewidth))
            _check(size, guard)
            tile = Size(int(page.tilelength or 1), int(page.tilewidth or 1)) if page.is_tiled else Size(1, 1)
            if tile.pixels > guard.max_pixels:
                raise Rejected("TOO_LARGE", "a tile of the TIFF exceeds guard.max_pixels")
            if int(page.imagedepth) != 1 or int(page.samplesperpixel) > 4 or page.dtype is None:
                raise Rejected("PHOTO_UNREADABLE", "a TIFF page that is no plane of grey or colour")
            if int(page.photometric) not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR):
                raise Rejected("PHOTO_UNREADABLE", "a TIFF in inks, Lab or another model whose colours only a profile says")
            if int(page.photometric) == _YCBCR and int(page.compression) not in (6, 7):
                raise Rejected("PHOTO_UNREADABLE", "a TIFF in YCbCr that is not JPEG")
            found += 1
            yield number, page
    except _TIFF_ERRORS:
        raise Rejected("PHOTO_UNREADABLE", "a directory of the TIFF is broken") from None
    if not found:
        raise Rejected("NO_IMAGE", "the TIFF has no page that is a picture")


def _tiff(page: Any) -> Photo:
    try:
        array = np.asarray(page.asarray())
        bits = int(page.bitspersample) if isinstance(page.bitspersample, int) else 8 * array.itemsize
        turned = page.tags.valueof(274, UPRIGHT)
    except _TIFF_ERRORS:
        raise Rejected("DECODE_FAILED", "a page of the TIFF cannot be decoded") from None
    if int(page.planarconfig) == 2 and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    if array.dtype == bool or bits == 1:
        array = array.astype(bool)
    photometric = int(page.photometric)
    if photometric == _PALETTE:
        array = _expanded(array, page.colormap)
    elif 1 < bits < 8:  # stretched as a PNG of few bits is
        array = array * np.uint8(255 // ((1 << bits) - 1))
    array = plain(array)
    if photometric == _MINISWHITE and array.dtype.kind == "u":
        array = ((1 << max(bits, 8)) - 1 - array).astype(array.dtype)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return Photo(upright(array, int(turned) if turned in range(1, 9) else UPRIGHT), max(bits, 8))


def _expanded(indices: np.ndarray, colormap: np.ndarray | None) -> np.ndarray:
    """Palette (3, n) uint16 of TIFF 6.0 -> RGB of 8 bits; those of old writers that hold 8 bits already stay as they are."""
    if colormap is None or indices.ndim != 2 or int(indices.max(initial=0)) >= colormap.shape[1]:
        raise Rejected("PHOTO_UNREADABLE", "a TIFF with a palette that lacks colours")
    eight = colormap if colormap.max() < 256 else colormap >> 8
    return eight.T.astype(np.uint8)[indices]
