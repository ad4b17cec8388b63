"""A JPEG without its metadata: segments that decoders need and no other; the compressed pixels stay as they were received.

ISO/IEC 10918-1 annex B; JFIF 1.02; Adobe TN 5116 (APP14). Colour by libjpeg's order of evidence: JFIF says YCbCr, then Adobe's transform, then
the component ids. The result says it in the plainest way: a bare JFIF marker for grey and YCbCr, APP14 with transform 0 for RGB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from medspark.errors import Rejected
from medspark.photos.orient import EXIF, UPRIGHT, orientation

Colour = Literal["grey", "rgb", "ycbcr", "inks"]

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"  # APP0, version 1.01, no unit, square pixels, no thumbnail
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # APP14, version 100, no flags, transform 0
BASELINE, LOSSLESS = 0xC0, 0xC3
_DHT, _DAC, _DQT, _DNL, _DRI, _SOS, _EOI, _APP0, _APP1, _APP14 = 0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xDA, 0xD9, 0xE0, 0xE1, 0xEE
_SOF = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, _DAC}
_NEEDED = _SOF | {_DHT, _DAC, _DQT, _DRI, _SOS}
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # in scan data FF 00 is a stuffed byte, FF D0..D7 a restart


@dataclass(frozen=True)
class Jpeg:
    """What a JPEG file says, and its bytes without anything else.

    sof : int           marker of the frame header: 0xC0 baseline, 0xC2 progressive, 0xC3 lossless ...
    precision : bits    per sample
    bare : bytes        a stand-alone JPEG of the needed segments
    """

    sof: int
    rows: int
    cols: int
    precision: int
    colour: Colour
    orientation: int
    bare: bytes

    @property
    def channels(self) -> int:
        return 1 if self.colour == "grey" else 3

    @property
    def as_received(self) -> bool:
        """Whether `bare` may be stored as it is: baseline, upright, colours that every decoder reads alike."""
        return self.sof == BASELINE and self.orientation == UPRIGHT and self.colour != "inks"


def parse(data: bytes) -> Jpeg:
    """The file's first image; what follows its EOI (thumbnails, second pictures, anything) is left out.

    Raises Rejected: PHOTO_UNREADABLE where the segments are no chain, TRUNCATED where they end before EOI.
    """
    segments = _segments(data)
    frames = [body for marker, body in segments if marker in _SOF]
    if len(frames) != 1 or not any(marker == _SOS for marker, _ in segments):
        raise Rejected("PHOTO_UNREADABLE", "a JPEG without exactly one frame and a scan")
    frame = frames[0]
    count = frame[9] if len(frame) > 9 else 0
    if len(frame) != 10 + 3 * count or count not in (1, 3, 4):
        raise Rejected("PHOTO_UNREADABLE", "a JPEG whose frame header is broken")
    rows, cols = int.from_bytes(frame[5:7], "big"), int.from_bytes(frame[7:9], "big")
    if rows == 0 or cols == 0:
        raise Rejected("PHOTO_UNREADABLE", "a JPEG that does not say its size")
    apps = [(marker, body[4:]) for marker, body in segments if marker in (_APP0, _APP1, _APP14)]
    colour = _colour(count, tuple(frame[10 + 3 * i] for i in range(count)), apps)
    turned = next((orientation(body) for marker, body in apps if marker == _APP1 and body.startswith(EXIF)), UPRIGHT)
    head = ADOBE_RGB if colour == "rgb" else b"" if colour == "inks" else JFIF
    bare = b"".join([SOI, head, *(body for marker, body in segments if marker in _NEEDED), EOI])
    return Jpeg(frame[1], rows, cols, frame[4], colour, turned, bare)


def _colour(count: int, ids: tuple[int, ...], apps: list[tuple[int, bytes]]) -> Colour:
    if count != 3:
        return "grey" if count == 1 else "inks"
    if any(marker == _APP0 and body.startswith(b"JFIF\0") for marker, body in apps):
        return "ycbcr"
    adobe = [body[11] for marker, body in apps if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12]
    if adobe:
        return "rgb" if adobe[-1] == 0 else "ycbcr"
    return "rgb" if ids == (0x52, 0x47, 0x42) else "ycbcr"


def _segments(data: bytes) -> list[tuple[int, bytes]]:
    """(marker, whole segment; of SOS with its scan data) up to EOI."""
    if data[:2] != SOI:
        raise Rejected("PHOTO_UNREADABLE", "a JPEG that does not begin as one")
    found: list[tuple[int, bytes]] = []
    place, end = 2, len(data)
    while place + 2 <= end:
        if data[place] != 0xFF:
            raise Rejected("PHOTO_UNREADABLE", "a JPEG whose segments do not follow each other")
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker == _EOI:
            return found
        if marker == _DNL:
            raise Rejected("PHOTO_UNREADABLE", "a JPEG that says its height after its pixels")
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        stop = place + 2 + length
        if marker == 0x00 or 0xD0 <= marker <= 0xD8 or (stop <= end and length < 2):
            raise Rejected("PHOTO_UNREADABLE", "a JPEG with a broken segment")
        if stop > end:
            break
        _check_length(marker, data[place:stop])
        if marker == _SOS:
            following = _NEXT_MARKER.search(data, stop)
            if following is None:
                break
            stop = following.end() - 2
        found.append((marker, data[place:stop]))
        place = stop
    raise Rejected("TRUNCATED", "a JPEG that ends before its end marker")


def _check_length(marker: int, body: bytes) -> None:
    """No room for anything else in the segments that are kept; libjpeg checks tables itself."""
    expected = {_DRI: 6, _SOS: 8 + 2 * body[4] if len(body) > 4 else 0}.get(marker, len(body))
    if len(body) != expected:
        raise Rejected("PHOTO_UNREADABLE", "a JPEG segment of another length than its kind has")
