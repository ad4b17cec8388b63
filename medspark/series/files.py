"""DICOM files to data sets: bounded inflation, and files that end early told from files that are none.

`medspark.series.elements` reads the ordinary file, pydicom every other; what pydicom does not do is refuse: it inflates deflated files without a bound, reads a truncated file as a shorter data set, and
drops compressed pixels that have no end marker.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from medspark.config import Guard
from medspark.errors import Rejected
from medspark.pixels.codestream import DEFLATED, EXPLICIT_LITTLE_ENDIAN
from medspark.series.elements import BLOCK, UNDEFINED_LENGTH, tag_of, walk

PREAMBLE_BYTES = 132  # 128 bytes of anything and "DICM" (PS3.10 7.1)
ENCAPSULATED_PIXELS = (
    b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"  # pydicom drops the element, with a warning, where its end marker is missing
)
META_BYTES = 1024  # within which the file meta names the transfer syntax
PARSE_ERRORS = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pydicom raises on broken data: it promises no common base."""
FOREIGN_ERRORS = (*PARSE_ERRORS, OSError)
"""The same on elements that lie in memory, where pydicom's "no tag to read" is an OSError without a number."""

PIXEL_TAGS = {tag_of(0x7FE00010): "", tag_of(0x7FE00008): "<f4", tag_of(0x7FE00009): "<f8"}
"""PixelData, FloatPixelData, DoubleFloatPixelData, and the types of the float ones."""
_ROWS = tag_of(0x00280010)
_ELEMENT_START = 8  # bytes of tag, VR and length: fewer behind the last element are the rest of one that was cut off


def read_dicom(source: bytes | str | os.PathLike[str], guard: Guard | None = None, header_only: bool = False) -> Dataset:
    """The data set of a DICOM file, given as its bytes or its path; elements stay unparsed until they are asked for.

    header_only : stop before the pixels (they are not read from the disk)
    A data set without file meta is read when it begins like one; its ``file_meta`` then names no transfer syntax (see `syntax_of`).
    Raises Rejected: EMPTY_FILE, TOO_LARGE (also a deflated file that inflates beyond ``guard.max_file_bytes``), NOT_DICOM, TRUNCATED.
    """
    guard = guard or Guard()
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), len(source), guard, header_only)
    with open(source, "rb", buffering=BLOCK) as stream:
        return _read(stream, os.fstat(stream.fileno()).st_size, guard, header_only)


def is_deflated(path: str | os.PathLike[str]) -> bool:
    """Whether the file meta names Deflated Explicit VR Little Endian: then pydicom's ``dcmread`` would inflate the file without a bound."""
    with open(path, "rb") as stream:
        return stream.read(PREAMBLE_BYTES)[128:] == b"DICM" and _named_syntax(stream) == DEFLATED


def _named_syntax(stream: Any) -> str:
    """The transfer syntax in the file meta, which begins where ``stream`` stands; raises Rejected NOT_DICOM where it does not parse."""
    try:
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        return str(meta.get("TransferSyntaxUID", ""))
    except PARSE_ERRORS as error:
        raise Rejected("NOT_DICOM", f"the file meta cannot be parsed ({type(error).__name__})") from None


def _read(stream: Any, size: int, guard: Guard, header_only: bool) -> Dataset:
    if size == 0:
        raise Rejected("EMPTY_FILE", "the file is empty")
    if size > guard.max_file_bytes:
        raise Rejected("TOO_LARGE", "the file is larger than guard.max_file_bytes")
    head = stream.read(META_BYTES)
    if head[128:PREAMBLE_BYTES] != b"DICM" and not _begins_like_dicom(head):
        raise Rejected("NOT_DICOM", "neither a DICOM preamble nor the beginning of a data set")
    stream.seek(0)
    if DEFLATED.encode() in head:  # or so it seems: `_inflate` asks the meta
        data = stream.read()
        inflated = _inflate(data, guard)
        if inflated is not None:
            data_set = _parse(io.BytesIO(inflated), header_only)
            data_set.file_meta.TransferSyntaxUID = UID(DEFLATED)
            return data_set
        stream.seek(0)
    ordinary = _walked(stream, size, header_only)
    if ordinary is not None:
        return ordinary
    stream.seek(0)
    return _parse(stream if header_only else io.BytesIO(stream.read()), header_only)


def _begins_like_dicom(head: bytes) -> bool:
    """Whether a file without preamble begins with an element of group 2 or 8, either byte order."""
    return len(head) >= 8 and head[:2] in (b"\x02\0", b"\x08\0", b"\0\x08") and b"1.2.840.10008." in head


def _walked(stream: Any, size: int, header_only: bool) -> Dataset | None:
    """The data set of an ordinary, whole file; None leaves it to `_parse`, which also says what is wrong with it."""
    try:
        data_set = walk(stream, size, header_only)
    except FOREIGN_ERRORS:
        return None
    # Pixels that pydicom drops for their missing end marker are `_parse`'s business: so is every file without pixels.
    return data_set if data_set is not None and (header_only or any(tag in data_set for tag in PIXEL_TAGS)) else None


def _parse(stream: io.BytesIO, header_only: bool) -> Dataset:
    if stream.read(PREAMBLE_BYTES)[128:] == b"DICM" and _named_syntax(stream) == DEFLATED:
        raise Rejected("NOT_DICOM", f"the file meta names its transfer syntax behind byte {META_BYTES}")  # a bomb's way around `_inflate`
    stream.seek(0)
    try:
        data_set = dcmread(stream, stop_before_pixels=header_only, force=True)
        tags = data_set.keys()
        last = data_set.get_item(max(map(int, tags))) if tags else None  # as BaseTag they compare in Python
    except EOFError:
        raise Rejected("TRUNCATED", "the file ends within an element") from None
    except FOREIGN_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:  # the operating system's; pydicom's own have no number
            raise
        if not stream.read(1):
            raise Rejected("TRUNCATED", "the file ends within a sequence") from None
        raise Rejected("NOT_DICOM", f"the data set cannot be parsed ({type(error).__name__})") from None
    if last is None:
        raise Rejected("TRUNCATED", "the file ends before its data set is complete")
    if is_short(last):
        raise Rejected("TRUNCATED", "the file ends within its last element")
    if isinstance(last, RawDataElement) and last.length != UNDEFINED_LENGTH and not any(tag in data_set for tag in PIXEL_TAGS):
        stream.seek(last.value_tell + last.length)
        rest = stream.read(_ELEMENT_START)
        if len(rest) < _ELEMENT_START and rest.strip(b"\0 \r\n"):  # padding is none
            raise Rejected("TRUNCATED", "the file ends within the start of an element")
    if (
        not header_only
        and _ROWS in data_set
        and not any(tag in data_set for tag in PIXEL_TAGS)
        and ENCAPSULATED_PIXELS in stream.getvalue()
    ):
        raise Rejected("TRUNCATED", "the file ends within its compressed pixels")
    return data_set


def is_short(element: Any) -> bool:
    """Whether the file held fewer bytes than the element's length."""
    raw = isinstance(element, RawDataElement) and element.value is not None and element.length != UNDEFINED_LENGTH
    return raw and len(element.value) < element.length


def _inflate(data: bytes, guard: Guard) -> bytes | None:
    """The same file with its data set inflated (as Explicit VR Little Endian); None when its meta names another syntax after all.

    pydicom would inflate without a bound: 2 MB of zeros in a deflated file become 2 GB.
    """
    stream = io.BytesIO(data)
    stream.seek(PREAMBLE_BYTES)
    if _named_syntax(stream) != DEFLATED:
        return None
    start = stream.tell()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = inflater.decompress(data[start:], guard.max_file_bytes)
    except zlib.error:
        raise Rejected("DECODE_FAILED", "the deflated data set is broken") from None
    if not inflater.eof:
        if len(body) >= guard.max_file_bytes:
            raise Rejected("TOO_LARGE", "the deflated data set is larger than guard.max_file_bytes")
        raise Rejected("TRUNCATED", "the deflated data set ends early")
    padded = EXPLICIT_LITTLE_ENDIAN.encode().ljust(len(DEFLATED) + len(DEFLATED) % 2, b"\0")  # keeps every length of the meta
    return data[:start].replace(DEFLATED.encode().ljust(len(padded), b"\0"), padded) + body
