"""PNG and TIFF as bands of rows in bounded memory; both are checked from their headers before anything is inflated.

A PNG of 100,000 px a side may be 10 MB long: size on disk says nothing, so nothing here is ever allocated for the whole image.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from medspark.errors import Rejected
from medspark.labels.regions import Context

BAND_PIXELS = 1 << 24
"""Pixels of a band: 16 MB a byte each, 2 MB as bits."""
MAX_SIDE = 1 << 20
"""Side of a mask; the largest slides have 4e5 px."""
PALETTE = 3  # TIFF's PhotometricInterpretation
_VIPS_DTYPES = {"uchar": np.uint8, "ushort": np.uint16}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Raster(Protocol):
    """An open label image. Bands are (n, cols) integers; colours are packed 0xrrggbb, transparent pixels are 0."""

    rows: int
    cols: int
    colour: bool
    band_rows: int
    n_bands: int

    def bands(self, only: Container[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, band) from top to bottom, from the start at every call; ``only``: the first rows of the bands that are wanted."""
        ...


@contextmanager
def open_raster(path: str, context: Context) -> Iterator[Raster]:
    """The label image at ``path``; raises Rejected(LABEL_FORMAT, LABEL_SIZE, TOO_LARGE)."""
    with open(path, "rb") as stream:
        head = stream.read(33)
    if head.startswith(PNG_SIGNATURE):
        yield Png(path, head, context)
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        import tifffile

        try:
            file = tifffile.TiffFile(path)
        except (tifffile.TiffFileError, ValueError, struct.error, OSError, KeyError, IndexError, TypeError, AssertionError):
            raise Rejected("LABEL_FORMAT", "not a readable TIFF") from None
        with file:
            yield Tiff(file, context)
    else:
        raise Rejected("LABEL_FORMAT", "a mask is a PNG or a TIFF")


def _check(rows: int, cols: int) -> None:
    if rows < 1 or cols < 1:
        raise Rejected("LABEL_SIZE", "the mask has no pixels")
    if rows > MAX_SIDE or cols > MAX_SIDE:
        raise Rejected("TOO_LARGE", f"a side of the mask exceeds {MAX_SIDE} px")


def to_values(band: np.ndarray, colour: bool) -> np.ndarray:
    """(rows, cols[, samples]) as decoded -> (rows, cols) integers."""
    if band.ndim == 3 and band.shape[2] == 1:
        band = band[..., 0]
    if band.ndim == 2:
        return whole_numbers(band)
    if band.dtype == np.uint16:
        band = (band >> 8).astype(np.uint8)
    if band.dtype != np.uint8:
        raise Rejected("LABEL_FORMAT", "a colour mask has samples of 8 or 16 bits")
    if not colour:  # grey and alpha
        return np.where(band[..., 1] > 0, band[..., 0], np.uint8(0))
    packed = (band[..., 0].astype(np.int32) << 16) | (band[..., 1].astype(np.int32) << 8) | band[..., 2]
    return np.where(band[..., 3] > 0, packed, 0) if band.shape[2] == 4 else packed


def whole_numbers(band: np.ndarray) -> np.ndarray:
    """The same values as integers; Rejected(LABEL_FORMAT) where one is none."""
    if band.dtype == bool:
        return band.astype(np.uint8)
    if band.dtype.kind in "iu":
        return band
    with np.errstate(invalid="ignore"):
        rounded = np.rint(band)
        if band.dtype.kind != "f" or not (np.abs(band - rounded) < 1e-3).all() or not (np.abs(rounded) < 2**31).all():
            raise Rejected("LABEL_FORMAT", "the mask holds values that are no whole numbers")  # 1e-3: what a float32 rescale leaves
    return rounded.astype(np.int64)


class Png:
    """A PNG read by libvips, row after row. Palettes are read as their indices (of which they are made) unless classes are colours."""

    def __init__(self, path: str, head: bytes, context: Context) -> None:
        if len(head) < 33 or head[12:16] != b"IHDR":
            raise Rejected("TRUNCATED", "the PNG ends in its header")
        self.cols, self.rows, bits, kind, _, _, interlaced = struct.unpack(">IIBBBBB", head[16:29])
        _check(self.rows, self.cols)
        if bits not in (1, 2, 4, 8, 16):
            raise Rejected("LABEL_FORMAT", "the PNG is of a depth that PNG does not have")
        self._context, self._path = context, path
        palette = kind == 3
        self._data = _palette_as_grey(path, context) if palette and not context.classes.by_colour else None
        self.colour = kind in (2, 6) or (palette and self._data is None)
        self._divide = 255 // ((1 << bits) - 1) if bits < 8 and not self.colour else 1  # libpng stretches 1, 2, 4 bits to 0..255
        if interlaced:
            context.check_pixels(self.rows, self.cols)  # libvips holds an interlaced picture whole
        self.band_rows = max(1, BAND_PIXELS // self.cols)
        self.n_bands = -(-self.rows // self.band_rows)

    def bands(self, only: Container[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        import pyvips

        try:
            if self._data is not None:
                image = pyvips.Image.new_from_buffer(self._data, "", access="sequential", fail_on="truncated")
            else:
                image = pyvips.Image.pngload(self._path, access="sequential", fail_on="truncated")
            if (image.width, image.height) != (self.cols, self.rows):
                raise Rejected("LABEL_SIZE", "the PNG is of another size than its header says")
            dtype, shape = np.dtype(_VIPS_DTYPES[image.format]), (self.cols, image.bands)
            region = pyvips.Region.new(image)  # one reader for all bands: a sequential source cannot be opened twice at different rows
            for row0 in range(0, self.rows, self.band_rows):
                if only is not None and row0 not in only:
                    continue
                self._context.watch(f"row {row0}")
                raw = region.fetch(0, row0, self.cols, min(self.band_rows, self.rows - row0))
                band = np.frombuffer(raw, dtype).reshape(-1, *shape)
                yield row0, to_values(band // self._divide if self._divide > 1 else band, self.colour)
        except pyvips.Error:
            raise Rejected("DECODE_FAILED", "the PNG cannot be decoded to its end") from None


def _palette_as_grey(path: str, context: Context) -> bytes:
    """The file with colour type 0 and without palette: the stored indices of a palette PNG are laid out as grey levels are (PNG 11.2.2)."""
    import os

    context.check_size(os.path.getsize(path))
    with open(path, "rb") as stream:
        data = stream.read()
    kept, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            body = body[:9] + b"\0" + body[10:]
            kept.append(struct.pack(">I", length) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
        elif kind in (b"IDAT", b"IEND"):
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)


class Tiff:
    """The first page of a TIFF, a row of tiles (or strips) at a time. Palettes are read as a PNG's: their indices unless classes are colours."""

    def __init__(self, file: Any, context: Context) -> None:
        try:
            page = file.pages[0]
            self.rows, self.cols, samples = int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel)
            planar, depth = int(page.planarconfig), int(page.imagedepth)
            palette = page.colormap if int(page.photometric) == PALETTE and context.classes.by_colour else None
            tile_rows = int(page.tilelength) if page.is_tiled else int(min(page.rowsperstrip, page.imagelength))
            tile_cols = int(page.tilewidth) if page.is_tiled else self.cols
            dtype = page.dtype
        except (IndexError, AttributeError, TypeError, ValueError):
            raise Rejected("LABEL_FORMAT", "the TIFF has no readable picture") from None
        _check(self.rows, self.cols)
        if dtype is None or depth != 1 or (planar != 1 and samples > 1) or not 1 <= samples <= 4:
            raise Rejected("LABEL_FORMAT", "the TIFF is no plane of values or colours")
        if tile_rows < 1 or tile_cols < 1:
            raise Rejected("LABEL_SIZE", "the TIFF's tiles have no pixels")
        context.check_pixels(tile_rows, max(tile_cols, self.cols))
        self._page, self._context, self._dtype, self._samples = page, context, dtype, samples
        self._tile, self.colour = (tile_rows, tile_cols), samples >= 3 or palette is not None
        self._palette = None if palette is None else (np.asarray(palette) >> 8).astype(np.uint8).T
        self._across = -(-self.cols // tile_cols)
        self.band_rows = max(1, BAND_PIXELS // self.cols // tile_rows) * tile_rows
        self.n_bands = -(-self.rows // self.band_rows)

    def bands(self, only: Container[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        for row0 in range(0, self.rows, self.band_rows):
            if only is not None and row0 not in only:
                continue
            self._context.watch(f"row {row0}")
            band = np.zeros((min(self.band_rows, self.rows - row0), self.cols, self._samples), self._dtype)
            for first in range(row0, row0 + len(band), self._tile[0]):
                for place in range(self._across):
                    self._fill(band, first - row0, place, (first // self._tile[0]) * self._across + place)
            values = band if self._samples > 1 else band[..., 0]
            if self._palette is not None:
                if values.dtype.kind != "u" or int(values.max()) >= len(self._palette):
                    raise Rejected("LABEL_FORMAT", "a value of the TIFF is not in its palette")
                values = self._palette[values]
            yield row0, to_values(values, self.colour)

    def _fill(self, band: np.ndarray, top: int, place: int, index: int) -> None:
        page, left = self._page, place * self._tile[1]
        try:
            if index >= len(page.dataoffsets) or index >= len(page.databytecounts):
                raise Rejected("TRUNCATED", "the TIFF lists fewer tiles than it has")
            if page.databytecounts[index] == 0:  # a sparse file leaves empty tiles out
                return
            self._context.check_size(int(page.databytecounts[index]))
            page.parent.filehandle.seek(page.dataoffsets[index])
            raw = page.parent.filehandle.read(page.databytecounts[index])
            tile, _, _ = page.decode(raw, index, jpegtables=page.jpegtables)
        except (ValueError, RuntimeError, TypeError, struct.error, KeyError, IndexError, OSError, NotImplementedError):
            raise Rejected("DECODE_FAILED", "a tile of the TIFF cannot be decoded") from None
        if tile is None:
            return
        tile = tile[0]  # (depth, rows, cols, samples)
        target = band[top : top + self._tile[0], left : left + self._tile[1]]
        if tile.shape[0] < target.shape[0] or tile.shape[1] < target.shape[1] or tile.shape[2] != target.shape[2]:
            raise Rejected("LABEL_SIZE", "a tile of the TIFF is of another size than it says")
        target[...] = tile[: target.shape[0], : target.shape[1]]
