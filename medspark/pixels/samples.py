"""What a frame's samples look like in memory: layout, byte order, sign, planes, colour model. Pure numpy, no codec.

`Layout` says it, `native_samples` applies it to uncompressed bytes, `significant` drops what lies outside BitsStored, `to_rgb` undoes the
YBR colour models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medspark.errors import Rejected


@dataclass(frozen=True)
class Layout:
    """What the data set says about one frame's samples (PS3.3 C.7.6.3, PS3.5 section 8)."""

    rows: int
    cols: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    photometric: str
    planar: int = 0

    @property
    def dtype(self) -> np.dtype:
        """Of the stored values: by BitsAllocated and PixelRepresentation alone, never by what a decoder returns; single bits as uint8."""
        kind = "i" if self.pixel_representation and self.bits_allocated > 1 else "u"
        return np.dtype(f"<{kind}{max(self.bits_allocated // 8, 1)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols), with colour (rows, cols, samples)."""
        return (self.rows, self.cols) if self.samples == 1 else (self.rows, self.cols, self.samples)

    def params(self) -> dict[str, str]:
        """As column ``pixels.params`` holds it beside a frame kept as received; `from_params` is the inverse."""
        return {
            "samples": str(self.samples),
            "bits_allocated": str(self.bits_allocated),
            "bits_stored": str(self.bits_stored),
            "high_bit": str(self.high_bit),
            "pixel_representation": str(self.pixel_representation),
            "photometric": self.photometric,
            "planar": str(self.planar),
        }

    @classmethod
    def from_params(cls, shape: Sequence[int], dtype: str, params: Mapping[str, str]) -> Layout:
        """From a row of ``pixels``; what ``params`` leaves out follows from dtype and shape."""
        kind = np.dtype(dtype)
        samples = int(params.get("samples", shape[2] if len(shape) == 3 else 1))
        allocated = int(params.get("bits_allocated", 8 * kind.itemsize))
        stored = int(params.get("bits_stored", allocated))
        return cls(
            rows=int(shape[0]),
            cols=int(shape[1]),
            samples=samples,
            bits_allocated=allocated,
            bits_stored=stored,
            high_bit=int(params.get("high_bit", stored - 1)),
            pixel_representation=int(params.get("pixel_representation", kind.kind == "i")),
            photometric=params.get("photometric", "MONOCHROME2" if samples == 1 else "RGB"),
            planar=int(params.get("planar", 0)),
        )


def native_bytes(layout: Layout) -> int:
    """Bytes of one uncompressed frame with full chroma; single bits are counted up to a whole byte."""
    return (layout.rows * layout.cols * layout.samples * layout.bits_allocated + 7) // 8


def native_samples(data: bytes | bytearray | memoryview, layout: Layout, planar: int, little_endian: bool = True) -> np.ndarray:
    """Uncompressed bytes -> (rows, cols) or (rows, cols, samples); a view of ``data`` where nothing has to move.

    Longer data is cut (padding to an even length); shorter raises Rejected(PIXEL_LENGTH).
    """
    count = layout.rows * layout.cols * layout.samples
    dtype = layout.dtype
    if layout.bits_allocated == 1:
        packed = np.frombuffer(data, np.uint8)
        if 8 * packed.size < count:
            raise Rejected("PIXEL_LENGTH", "the frame holds fewer bytes than its size needs")
        return np.unpackbits(packed, count=count, bitorder="little").reshape(layout.shape)
    stored = dtype if little_endian else dtype.newbyteorder(">")
    if len(data) < count * dtype.itemsize:
        raise Rejected("PIXEL_LENGTH", "the frame holds fewer bytes than its size needs")
    flat = np.frombuffer(data, stored, count)
    if not little_endian and dtype.itemsize > 1:
        flat = flat.astype(dtype)
    if layout.samples > 1 and planar:
        return np.ascontiguousarray(flat.reshape(layout.samples, layout.rows, layout.cols).transpose(1, 2, 0))
    return flat.reshape(layout.shape)


def significant(array: np.ndarray, bits_stored: int, high_bit: int) -> np.ndarray:
    """The values between HighBit and HighBit - BitsStored + 1, sign-extended for signed types (PS3.5 8.1.1).

    Bits above HighBit once held overlays and are dropped; values that lie higher than bit 0 are moved down, so that what is stored has its
    highest bit at BitsStored - 1. Returns ``array`` itself where nothing has to change.
    """
    width = 8 * array.dtype.itemsize
    if bits_stored >= width or array.size == 0:
        return array
    signed = array.dtype.kind == "i"
    least, most = (-(1 << (bits_stored - 1)), (1 << (bits_stored - 1)) - 1) if signed else (0, (1 << bits_stored) - 1)
    if high_bit == bits_stored - 1 and array.max() <= most and (not signed or array.min() >= least):
        return array
    # up to the container's top, then down again: an arithmetic shift extends the sign of signed types and clears the rest
    return np.right_shift(np.left_shift(array, width - 1 - high_bit), width - bits_stored)


def to_rgb(array: np.ndarray, photometric: str) -> np.ndarray:
    """(rows, cols, 3) of ``photometric`` -> RGB; YBR_FULL and YBR_FULL_422 (already upsampled) by full-range BT.601 (PS3.3 C.7.6.3.1.2)."""
    if photometric in ("RGB", "YBR_RCT", "YBR_ICT"):  # the two JPEG 2000 transforms are undone by its decoder (PS3.5 8.2.4)
        return array
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        if array.dtype != np.uint8:
            raise Rejected("DECODE_FAILED", "YBR_FULL is read with 8 bits per sample only")
        from medspark.pixels.codecs import ycbcr_to_rgb

        return ycbcr_to_rgb(array)
    raise Rejected("DECODE_FAILED", "the colour model is retired or unknown")
