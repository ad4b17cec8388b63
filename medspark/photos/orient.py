"""EXIF's orientation: the one tag of a photo's metadata that says something of its pixels. Everything else in it is dropped."""

from __future__ import annotations

import numpy as np

UPRIGHT = 1
ORIENTATION_TAG = 0x0112
EXIF = b"Exif\0\0"
SHORT = 3  # TIFF 6.0 field type of two bytes
MAX_ENTRIES = 1000  # of the first directory; cameras write some twenty


def orientation(exif: bytes) -> int:
    """1 to 8 (EXIF 2.32, tag 274) out of a TIFF structure, with or without its ``Exif`` prefix; 1 where it does not say or is broken."""
    data = exif.removeprefix(EXIF)
    if data[:4] == b"II*\0":
        order = "little"
    elif data[:4] == b"MM\0*":
        order = "big"
    else:
        return UPRIGHT

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], order)  # type: ignore[arg-type]

    start = number(4, 4)
    for entry in range(min(number(start, 2), MAX_ENTRIES)):
        place = start + 2 + 12 * entry
        if number(place, 2) == ORIENTATION_TAG and number(place + 2, 2) == SHORT:
            value = number(place + 8, 2)
            return value if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def upright(array: np.ndarray, value: int) -> np.ndarray:
    """(rows, cols[, channels]) turned and mirrored so that its first row is the visual top; ``value`` as `orientation` gives it."""
    if value in (5, 6, 7, 8):  # rows and columns change places
        array = np.swapaxes(array, 0, 1)
    if value in (3, 4, 7, 8):
        array = array[::-1]
    if value in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
