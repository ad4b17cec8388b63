"""Arrays of images in an ``.npz``, read in place: one image at a time out of its compressed member, nothing unpickled, nothing unpacked.

An ``.npz`` is a zip of ``.npy`` files (numpy's NEP 1). ``images`` or ``*_images`` are (n, rows, cols[, 1 or 3]); ``*_labels`` beside them are
(n,), (n, 1) or, of several findings each, (n, m) of 0 and 1.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.lib import format as npy

from medspark.config import Guard
from medspark.errors import Rejected

IMAGES, LABELS = "images", "labels"
MAX_LABEL_BYTES = 256 << 20  # of one array of labels, read whole: 32 million labels of 8 bytes
MAX_FORTRAN_BYTES = 256 << 20  # an array in Fortran order has to be read whole
MAX_MEMBERS = 4096
BLOCK = 1 << 20
_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, OSError, SyntaxError)
"""What zipfile and numpy raise on broken archives: RuntimeError for encrypted members, SyntaxError for a header that is no literal."""


@dataclass(frozen=True)
class Part:
    """One array of images.

    name : member without ``.npy``;  part : the publisher's split, empty for plain ``images``
    labels : name of its labels, empty where there are none
    first : index in the file of its first image
    """

    name: str
    part: str
    labels: str
    first: int
    count: int
    rows: int
    cols: int
    channels: int
    dtype: str

    @property
    def image_bytes(self) -> int:
        return self.rows * self.cols * self.channels * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class _Array:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def n_bytes(self) -> int:
        size = self.dtype.itemsize
        for side in self.shape:  # numpy's product would overflow on a hostile shape
            size *= int(side)
        return size


def parts(path: str, guard: Guard) -> tuple[Part, ...]:
    """The arrays of images in the file's order; raises Rejected (PHOTO_UNREADABLE, NO_IMAGE, TOO_LARGE, LABEL_SIZE, LABEL_FORMAT)."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
            if len(listed) > MAX_MEMBERS:
                raise Rejected("TOO_LARGE", f"an .npz of more than {MAX_MEMBERS} arrays")
            names = {info.filename.removesuffix(".npy"): info for info in listed}
            found: list[Part] = []
            for name, info in names.items():
                if name != IMAGES and not name.endswith("_" + IMAGES):
                    continue
                prefix = name.removesuffix(IMAGES)
                labels = prefix + LABELS
                with archive.open(info) as member:
                    array = _header(member, info)
                    part = _part(name, prefix.rstrip("_"), labels if labels in names else "", array, sum(one.count for one in found))
                    _read_through(member)
                if part.rows * part.cols > guard.max_pixels:
                    raise Rejected("TOO_LARGE", "one image of the array exceeds guard.max_pixels")
                if part.labels:
                    with archive.open(names[labels]) as member:
                        _check_labels(_header(member, names[labels]), part)
                        _read_through(member)
                found.append(part)
    except _ERRORS:
        raise Rejected("PHOTO_UNREADABLE", "the .npz or one of its arrays cannot be read (objects are never unpickled)") from None
    if not found:
        raise Rejected("NO_IMAGE", "the .npz holds no array that is called images or *_images")
    return tuple(found)


def _part(name: str, part: str, labels: str, array: _Array, first: int) -> Part:
    shape = array.shape
    if array.dtype.kind not in "buif":
        raise Rejected("PHOTO_UNREADABLE", "an array of images holds no numbers")
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
        raise Rejected("PHOTO_UNREADABLE", "an array of images is not (n, rows, cols) or (n, rows, cols, 1 or 3)")
    if min(shape[1:], default=0) < 1:
        raise Rejected("PHOTO_UNREADABLE", "an array of images without pixels")
    if array.fortran and array.n_bytes > MAX_FORTRAN_BYTES:
        raise Rejected("TOO_LARGE", "an array in Fortran order, which cannot be read image by image; save it in C order")
    channels = shape[3] if len(shape) == 4 else 1
    return Part(name, part, labels, first, shape[0], shape[1], shape[2], channels, array.dtype.str)


def _check_labels(array: _Array, part: Part) -> None:
    if array.dtype.kind not in "biufU":
        raise Rejected("LABEL_FORMAT", "an array of labels holds neither numbers nor words")
    if array.n_bytes > MAX_LABEL_BYTES:
        raise Rejected("TOO_LARGE", "an array of labels is too large to be one")
    if len(array.shape) not in (1, 2) or array.shape[0] != part.count:
        raise Rejected("LABEL_SIZE", "there are not as many labels as images")


def _header(member: IO[bytes], info: zipfile.ZipInfo) -> _Array:
    """Shape, order and type; the member must hold exactly that many bytes."""
    version = npy.read_magic(member)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(member)
    else:
        raise Rejected("PHOTO_UNREADABLE", "an array of another version of numpy's format")
    found = _Array(tuple(int(side) for side in shape), bool(fortran), dtype)
    if dtype.hasobject or any(side < 0 for side in found.shape) or found.n_bytes != info.file_size - member.tell():
        raise Rejected("PHOTO_UNREADABLE", "an array holds objects, or another number of bytes than its shape needs")
    return found


def images(path: str, part: Part, start: int, stop: int) -> Iterator[np.ndarray]:
    """The images ``start`` to ``stop`` of a part, (rows, cols) or (rows, cols, 3), one in memory at a time."""
    shape = (part.rows, part.cols) if part.channels == 1 else (part.rows, part.cols, part.channels)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(part.name + ".npy") as member:
            array = _header(member, archive.getinfo(part.name + ".npy"))
            if array.fortran:
                whole = np.frombuffer(_exactly(member, array.n_bytes), array.dtype).reshape(array.shape, order="F")
                for index in range(start, stop):
                    yield np.ascontiguousarray(whole[index]).reshape(shape)
                return
            member.seek(start * part.image_bytes, 1)  # inflates what lies before, in blocks, and keeps nothing
            for _ in range(start, stop):
                yield np.frombuffer(_exactly(member, part.image_bytes), array.dtype).reshape(shape)
    except _ERRORS:
        raise Rejected("DECODE_FAILED", "an array of images is damaged or ends early") from None


def labels(path: str, part: Part) -> np.ndarray:
    """(n,) or (n, m) labels of a part's images."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(part.labels + ".npy") as member:
            array = _header(member, archive.getinfo(part.labels + ".npy"))
            found = np.frombuffer(_exactly(member, array.n_bytes), array.dtype)
    except _ERRORS:
        raise Rejected("DECODE_FAILED", "an array of labels is damaged or ends early") from None
    shaped = found.reshape(array.shape, order="F" if array.fortran else "C")
    return shaped[:, 0] if shaped.ndim == 2 and shaped.shape[1] == 1 else shaped


def _read_through(member: IO[bytes]) -> None:
    """To the end, where zipfile compares the checksum: it costs the whole file before any of its images is stored."""
    while member.read(BLOCK):
        pass


def _exactly(member: IO[bytes], size: int) -> bytes:
    pieces, left = [], size
    while left:
        piece = member.read(min(left, BLOCK))
        if not piece:
            raise EOFError
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
