"""Stand-alone JPEGs from the abbreviated streams that TIFF and DICOM slides store: tables in, pixels untouched.

Everything up to the scan data is worked out once per encoder (`_Known`); tiles of one encoder begin with the same bytes, so that splicing a
tile is one comparison and one concatenation. A tile with another beginning is parsed anew. ISO/IEC 10918-1 annex B; TIFF Technical Note 2
(JPEGTables); Adobe TN 5116 (APP14); the order of evidence is libjpeg's: JFIF says YCbCr, then Adobe's transform, then component ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Colour = Literal["rgb", "ycbcr"]

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # APP14, version 100, no flags, transform 0: components are R, G, B
TAIL_BYTES = 16  # an EOI may be followed by padding (DICOM: to an even length; some TIFF writers: to a word)

_DQT, _DHT, _DRI, _SOS, _EOI, _APP0, _APP14, _COM = 0xDB, 0xC4, 0xDD, 0xDA, 0xD9, 0xE0, 0xEE, 0xFE
_SOF_HUFFMAN = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: what libjpeg-turbo decodes
_SOF_ANY = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class JpegHead:
    """What a JPEG stream says before its first scan.

    sof : int                    marker of the frame header (0xC0 baseline ...)
    ids : tuple[int, ...]        component ids
    subsampled : bool            chroma has fewer samples than the first component
    adobe : int or None          transform of an Adobe APP14 marker
    segments : tuple             (marker, whole segment with its marker and length), in file order
    size : int                   bytes up to the first byte of scan data
    """

    sof: int
    rows: int
    cols: int
    precision: int
    ids: tuple[int, ...]
    subsampled: bool
    jfif: bool
    adobe: int | None
    segments: tuple[tuple[int, bytes], ...]
    size: int

    @property
    def colour(self) -> Colour:
        """What libjpeg would take the three components for."""
        if self.jfif:
            return "ycbcr"
        if self.adobe is not None:
            return "rgb" if self.adobe == 0 else "ycbcr"
        return "rgb" if self.ids == (0x52, 0x47, 0x42) else "ycbcr"


def segments(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Marker segments after SOI up to and including SOS (or EOI, the end of a tables-only stream), and the offset behind them.

    Raises ValueError where the bytes are not a chain of marker segments.
    """
    if data[:2] != SOI:
        raise ValueError("does not begin with SOI")
    found: list[tuple[int, bytes]] = []
    place, end = 2, len(data)
    while place + 4 <= end:
        if data[place] != 0xFF:
            raise ValueError(f"no marker at byte {place}")
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker == _EOI:
            return found, place + 2
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0x00 or 0xD0 <= marker <= 0xD8 or length < 2 or place + 2 + length > end:
            raise ValueError(f"broken segment at byte {place}")
        found.append((marker, data[place : place + 2 + length]))
        place += 2 + length
        if marker == _SOS:
            return found, place
    if data[place : place + 2] == EOI:
        return found, place + 2
    raise ValueError("ends before its scan")


def parse_head(data: bytes) -> JpegHead:
    """What the stream says before its first scan; raises ValueError when that is not a JPEG's beginning."""
    found, size = segments(data)
    if not found or found[-1][0] != _SOS:
        raise ValueError("no scan")
    frames = [(marker, body) for marker, body in found if marker in _SOF_ANY]
    if len(frames) != 1 or len(frames[0][1]) < 10:
        raise ValueError("not exactly one frame header")
    sof, frame = frames[0]
    n = frame[9]
    if len(frame) != 10 + 3 * n or n == 0:
        raise ValueError("broken frame header")
    sampling = [frame[11 + 3 * i] for i in range(n)]
    adobe = [body[15] for marker, body in found if marker == _APP14 and body[4:9] == b"Adobe" and len(body) >= 16]
    return JpegHead(
        sof=sof,
        rows=int.from_bytes(frame[5:7], "big"),
        cols=int.from_bytes(frame[7:9], "big"),
        precision=frame[4],
        ids=tuple(frame[10 + 3 * i] for i in range(n)),
        subsampled=any(factor != sampling[0] for factor in sampling),
        jfif=any(marker == _APP0 and body[4:9] == b"JFIF\x00" for marker, body in found),
        adobe=adobe[-1] if adobe else None,
        segments=tuple(found),
        size=size,
    )


def table_segments(tables: bytes) -> bytes:
    """DQT, DHT and DRI of a tables-only stream (TIFF tag 347), concatenated; b"" for no tables. Raises ValueError when broken."""
    if not tables:
        return b""
    return b"".join(body for marker, body in segments(tables)[0] if marker in (_DQT, _DHT, _DRI))


@dataclass(frozen=True)
class _Known:
    """Tiles that begin with ``head`` become ``prefix`` + the rest."""

    head: bytes
    prefix: bytes


class Splicer:
    """Makes stand-alone JPEGs of one level's tiles.

    tables : bytes                  tables-only stream shared by the tiles, b"" for none
    colour : "rgb" | "ycbcr"        what the components are; the result says so in libjpeg's terms whatever the stream said
    rows, cols : int                every tile has exactly this size
    """

    def __init__(self, tables: bytes, colour: Colour, rows: int, cols: int) -> None:
        self.colour = colour
        self.rows, self.cols = rows, cols
        self._tables = table_segments(tables)
        self._known = _Known(b"\x00", b"")  # no JPEG begins so: the first tile is parsed

    def splice(self, data: bytes) -> bytes:
        """The stand-alone JPEG; raises ValueError for a stream of another size or kind, or without its end."""
        known = self._known
        if not data.startswith(known.head):
            known = self._learn(data)
        if data[-2:] != EOI:
            data = _without_tail(data)
        return known.prefix + data[len(known.head) :]

    def splice_run(self, run: bytes, start: int, stop: int) -> bytes:
        """The same for the tile at ``run[start:stop]``, copied once."""
        known = self._known
        if run.startswith(known.head, start, stop) and run[stop - 2 : stop] == EOI:
            return known.prefix + run[start + len(known.head) : stop]
        return self.splice(run[start:stop])

    def _learn(self, data: bytes) -> _Known:
        head = parse_head(data)
        if head.sof not in _SOF_HUFFMAN or head.precision != 8 or len(head.ids) != 3:
            raise ValueError("not an 8-bit JPEG of three components")
        if (head.rows, head.cols) != (self.rows, self.cols):
            raise ValueError(f"a stream of {head.cols} x {head.rows} pixels in a tile of {self.cols} x {self.rows}")
        kept = [body for marker, body in head.segments if marker in _SOF_ANY or marker in (_DQT, _DHT, _DRI, _SOS)]
        first = b""
        if self.colour == "rgb":
            first = ADOBE_RGB
        elif head.jfif:
            first = next(body for marker, body in head.segments if marker == _APP0)
        elif head.colour == "rgb":  # the ids or Adobe's marker would mislead a decoder: say YCbCr
            first = ADOBE_RGB[:-1] + b"\x01"
        prefix = b"".join([SOI, first, self._tables, *kept])
        self._known = _Known(data[: head.size], prefix)
        return self._known


def _without_tail(data: bytes) -> bytes:
    end = data.rfind(EOI, max(0, len(data) - TAIL_BYTES))
    if end < 0:
        raise ValueError("ends without EOI")
    return data[: end + 2]
