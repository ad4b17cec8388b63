"""How one stored tile becomes pixels: a class per coding, each with ``decode`` (whole tile) and ``stand_alone`` (its JPEG, or None).

All raise ValueError for bytes that are not what the level promised; sizes are checked in the stream's header before anything is allocated.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from medspark.errors import Rejected
from medspark.pixels.codecs import decode_jpeg, ycbcr_to_rgb
from medspark.pixels.codestream import decode_layout, syntax
from medspark.pixels.samples import Layout
from medspark.slides.splice import Splicer

J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ, ISO/IEC 15444-1 A.4
JP2_HEADER_BYTES = 4096  # the boxes of a JP2 file before its codestream are far smaller


class Coding(Protocol):
    """One level's way of storing a tile."""

    @property
    def compression(self) -> str:
        """As in `medspark.slides.slide.Level`."""
        ...

    def decode(self, data: bytes) -> np.ndarray:
        """(rows, cols, 3) uint8 RGB of the whole tile."""
        ...

    def stand_alone(self, run: bytes, start: int, stop: int) -> bytes | None:
        """The tile at ``run[start:stop]`` as a JPEG of its own; None where that is not possible."""
        ...


class JpegCoding:
    """Final. JPEG tiles (TIFF 7, DICOM baseline)."""

    compression = "jpeg"

    def __init__(self, splicer: Splicer) -> None:
        self.splicer = splicer

    def decode(self, data: bytes) -> np.ndarray:
        return decode_jpeg(self.splicer.splice(data))

    def stand_alone(self, run: bytes, start: int, stop: int) -> bytes | None:
        try:
            return self.splicer.splice_run(run, start, stop)
        except ValueError:
            return None


@dataclass(frozen=True)
class Jp2Coding:
    """Final. JPEG 2000 tiles; ``ycbcr`` where the codestream's own components are Y, Cb, Cr (TIFF 33003)."""

    rows: int
    cols: int
    ycbcr: bool
    compression: str

    def decode(self, data: bytes) -> np.ndarray:
        import imagecodecs

        subsampled = check_jp2(data, self.rows, self.cols)
        try:
            array = imagecodecs.jpeg2k_decode(data)
        except RuntimeError as error:  # imagecodecs' own errors derive from it
            raise ValueError(f"JPEG 2000: {error}") from None
        if array.shape != (self.rows, self.cols, 3) or array.dtype != np.uint8:
            raise ValueError(f"JPEG 2000 tile of {array.dtype}{array.shape}")
        # Subsampled chroma is taken for YCbCr, interpolated and converted by imagecodecs itself (as OpenJPEG's own tools do).
        return ycbcr_to_rgb(array) if self.ycbcr and not subsampled else np.asarray(array)

    def stand_alone(self, run: bytes, start: int, stop: int) -> bytes | None:
        return None


@dataclass(frozen=True)
class FrameCoding:
    """Final. DICOM frames in any other transfer syntax: RLE, JPEG-LS, lossless JPEG."""

    rows: int
    cols: int
    syntax: str
    photometric: str
    planar: int
    compression: str = "other"

    def decode(self, data: bytes) -> np.ndarray:
        layout = Layout(self.rows, self.cols, 3, 8, 8, 7, 0, self.photometric, self.planar)
        try:
            return decode_layout(data, syntax(self.syntax), layout)
        except Rejected as rejected:
            raise ValueError(rejected.reason) from None

    def stand_alone(self, run: bytes, start: int, stop: int) -> bytes | None:
        return None


@dataclass(frozen=True)
class RawCoding:
    """Final. Tiles of plain samples, 8 bits each: stored, deflated or LZW, with or without TIFF's horizontal differencing.

    planar : bool           three planes one after the other
    method : "none" | "deflate" | "lzw"
    differenced : bool      TIFF Predictor 2
    """

    rows: int
    cols: int
    ycbcr: bool = False
    planar: bool = False
    method: str = "none"
    differenced: bool = False
    compression: str = "other"

    def decode(self, data: bytes) -> np.ndarray:
        size = self.rows * self.cols * 3
        if self.method == "deflate":
            data = _inflate(data, size)
        elif self.method == "lzw":
            data = _unlzw(data, size)
        if len(data) < size:
            raise ValueError(f"a tile of {len(data)} bytes, {size} expected")
        array = np.frombuffer(data, np.uint8, size)
        if self.planar:
            return self._coloured(np.moveaxis(array.reshape(3, self.rows, self.cols), 0, 2))
        array = array.reshape(self.rows, self.cols, 3)
        if self.differenced:
            array = np.cumsum(array, axis=1, dtype=np.uint8)
        return self._coloured(array)

    def _coloured(self, array: np.ndarray) -> np.ndarray:
        return ycbcr_to_rgb(array) if self.ycbcr else array

    def stand_alone(self, run: bytes, start: int, stop: int) -> bytes | None:
        return None


def check_jp2(data: bytes, rows: int, cols: int) -> bool:
    """Whether chroma is subsampled; raises ValueError unless the codestream has three 8-bit components of this size."""
    start = data.find(J2K_START, 0, JP2_HEADER_BYTES)
    if start < 0:
        raise ValueError("not a JPEG 2000 codestream")
    siz = data[start + 4 : start + 4 + 38 + 9]
    if len(siz) < 47:
        raise ValueError("JPEG 2000 header cut short")
    x1, y1, x0, y0 = (int.from_bytes(siz[at : at + 4], "big") for at in (4, 8, 12, 16))
    if (y1 - y0, x1 - x0) != (rows, cols):
        raise ValueError(f"a codestream of {x1 - x0} x {y1 - y0} pixels in a tile of {cols} x {rows}")
    depths, steps = siz[38:47:3], siz[39:47:3] + siz[40:47:3]
    if int.from_bytes(siz[36:38], "big") != 3 or any(depth != 7 for depth in depths):
        raise ValueError("not three 8-bit components")
    return any(step != 1 for step in steps)


def _inflate(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, size)  # never more than the tile, whatever the stream would give
    except zlib.error as error:
        raise ValueError(f"deflate: {error}") from None


def _unlzw(data: bytes, size: int) -> bytes:
    import imagecodecs

    try:
        return bytes(imagecodecs.lzw_decode(data, out=size))
    except RuntimeError as error:
        raise ValueError(f"LZW: {error}") from None
