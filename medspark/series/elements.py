"""The raw elements of an ordinary DICOM file, read in a third of the time that pydicom needs for the same dictionary.

Ordinary: file meta with a transfer syntax that is known and little endian, every VR known, nothing cut short. Of anything else `walk` says
None, and pydicom reads it (and refuses it where it must). The first eight bytes of an element (tag, VR, short length) recur from slice to
slice, so what they mean is remembered. Elements of undefined length are left to pydicom one by one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import IO, Any

from pydicom import Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, STANDARD_VR

from medspark.pixels.codestream import DEFLATED, EXPLICIT_BIG_ENDIAN, IMPLICIT_LITTLE_ENDIAN, SYNTAXES

BLOCK = 1 << 15  # bytes read at once: the header of a CT slice; pixels are read to their own place, not through it
UNDEFINED_LENGTH = 0xFFFFFFFF
_META = 132  # where the file meta begins
_LONG = -1  # stands for a length that lies in the next four bytes
_CHARSET, _SYNTAX = 0x00080005, 0x00020010
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_UNORDINARY = (0x0000, 0xFFFE)  # groups: command set; items and delimiters out of place
_VRS = {vr.encode(): str(vr) for vr in STANDARD_VR}

Start = tuple[int, BaseTag, str | None, int, bytes | None]
"""(tag number, the same as pydicom's, VR, length, what pydicom calls an empty value)."""


@lru_cache(maxsize=1 << 14)
def tag_of(number: int) -> BaseTag:
    """pydicom's tag, one object a number: a dictionary finds a key that is the same object without asking `BaseTag`, which compares in Python."""
    return BaseTag(number)


@lru_cache(maxsize=1 << 14)
def _explicit(start: bytes) -> Start | None:
    """What the first eight bytes of an element with explicit VR mean; None for a VR that the standard has not."""
    vr = _VRS.get(start[4:6])
    number = int.from_bytes(start[:2], "little") << 16 | int.from_bytes(start[2:4], "little")
    if vr is None or number >> 16 in _UNORDINARY:
        return None
    length = _LONG if vr in EXPLICIT_VR_LENGTH_32 else int.from_bytes(start[6:], "little")
    return number, tag_of(number), vr, length, empty_value_for_VR(vr, raw=True)  # type: ignore[return-value]


@lru_cache(maxsize=1 << 14)
def _implicit(start: bytes) -> Start | None:
    number = int.from_bytes(start[:2], "little") << 16 | int.from_bytes(start[2:4], "little")
    if number >> 16 in _UNORDINARY:
        return None
    return number, tag_of(number), None, int.from_bytes(start[4:], "little"), empty_value_for_VR(None, raw=True)  # type: ignore[return-value]


@lru_cache(maxsize=256)
def _encodings(raw: RawDataElement) -> tuple[str, ...]:
    """Python's names of the character sets that an element (0008,0005) lists."""
    return tuple(convert_encodings(convert_raw_data_element(raw).value))  # type: ignore[arg-type]


def _charset(elements: dict[BaseTag, Any]) -> str | list[str]:
    raw = elements.get(_CHARSET)  # type: ignore[call-overload]
    # Its place in the file is taken off: it would keep equal elements of different files apart.
    return default_encoding if raw is None else list(_encodings(raw._replace(value_tell=0)))


def walk(stream: IO[bytes], size: int, header_only: bool = False) -> Dataset | None:
    """The data set of an ordinary file of ``size`` bytes, its elements raw, as `pydicom.dcmread` gives it; None for any other file.

    header_only : stop before the pixels
    The stream is left anywhere. May raise what pydicom raises on a broken element of undefined length.
    """
    stream.seek(0)
    block = stream.read(BLOCK)
    if block[128:_META] != b"DICM":
        return None
    meta, at = _elements(stream, size, block, _META, False, True, False)
    named = meta.get(_SYNTAX) if meta else None  # type: ignore[call-overload]
    uid = named.value.rstrip(b"\0 ").decode("latin-1") if named is not None and named.value else ""
    if meta is None or uid not in SYNTAXES or uid in (DEFLATED, EXPLICIT_BIG_ENDIAN):
        return None
    implicit = uid == IMPLICIT_LITTLE_ENDIAN
    if implicit and (block[at + 4 : at + 6].isalpha() or at + 6 > len(block)):
        return None  # explicit VR after all, as pydicom recognises it (or too far on to see)
    elements, _ = _elements(stream, size, block, at, implicit, False, header_only)
    if not elements:
        return None
    data_set = Dataset(elements)
    data_set.set_original_encoding(implicit, True, _charset(elements))
    data_set.file_meta = FileMetaDataset(meta)
    data_set.file_meta.set_original_encoding(False, True, default_encoding)
    return data_set


def _elements(
    stream: IO[bytes], size: int, block: bytes, at: int, implicit: bool, meta: bool, header_only: bool
) -> tuple[dict[BaseTag, Any] | None, int]:
    """(elements, where they end): those of the file meta, or all that follow it; None for what is not ordinary.

    block : the first bytes of the file
    at : where in it the elements begin
    """
    elements: dict[BaseTag, Any] = {}
    known, base = _implicit if implicit else _explicit, 0
    make = tuple.__new__  # RawDataElement's own constructor is a Python function with two defaults to fill
    held = len(block)
    while True:
        if held < at + 12 and base + held < size:
            stream.seek(base + at)
            base, block, at = base + at, stream.read(BLOCK), 0
            held = len(block)
        start = block[at : at + 8]
        if len(start) < 8:  # a rest that is no element: padding behind the pixels, else the sign of a cut, which the caller judges
            return (None, 0) if start and header_only else (elements, base + at)
        found = known(start)
        if found is None:
            return None, 0
        number, tag, vr, length, value = found
        if (number >> 16 != 2) if meta else (header_only and number in _PIXELS):
            return elements, base + at
        first = at + 8
        if length == _LONG:
            length, first = int.from_bytes(block[first : first + 4], "little"), first + 4
        end = first + length
        if length == UNDEFINED_LENGTH:
            stream.seek(base + at)
            element = next(data_element_generator(stream, implicit, True, encoding=_charset(elements)), None)  # type: ignore[arg-type]
            if element is None:
                return None, 0
            elements[tag], end = element, stream.tell() - base
        else:
            if base + end > size or first > held:
                return None, 0
            if end <= held:
                value = block[first:end] if length else value
            else:
                stream.seek(base + first)
                value = stream.read(length)
            elements[tag] = make(RawDataElement, (tag, vr, length, value, base + first, implicit, True, True, False))
        at = end
