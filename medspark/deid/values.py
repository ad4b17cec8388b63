"""An element's values, from raw bytes or from what pydicom has converted; and one value as JSON.

Only VRs that hold header fields have values here: byte streams, unknown VRs and sequences have none. Malformed values raise ValueError
(`struct.error` for odd lengths), so that the caller leaves out the element and nothing else.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterable
from functools import lru_cache
from json.encoder import encode_basestring
from math import isfinite
from typing import Any

import pydicom
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.valuerep import TEXT_VR_DELIMS

from medspark.deid.profile import known_vr

BULK_BYTES = 2048  # an element above this is a table, a letter or an array, not a header field
TEXT_VRS = frozenset({"LO", "SH", "ST", "LT", "UT", "UC"})
_SINGLE_VRS = frozenset({"ST", "LT", "UT", "UR"})  # a backslash is an ordinary character in these
_STRING_VRS = frozenset({"AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})
_CODED_CHARSET_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_BINARY: dict[str, tuple[str, int]] = {
    "US": ("H", 2),
    "SS": ("h", 2),
    "UL": ("I", 4),
    "SL": ("i", 4),
    "UV": ("Q", 8),
    "SV": ("q", 8),
    "FL": ("f", 4),
    "FD": ("d", 8),
}
_KIND: dict[str, str] = dict.fromkeys(_BINARY, "number") | dict.fromkeys(("DS", "IS"), "decimal") | dict.fromkeys(TEXT_VRS, "text")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")
_CHARSET = 0x00080005
LONGEST_DECIMAL = 64  # characters; PS3.5 allows 16, real files 20 and more
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def raw_values(vr: str, value: bytes, little_endian: bool, charset: tuple[str, ...]) -> list[Any] | None:
    """The values of a raw element: str for string VRs (DS and IS too), numbers for binary ones; None for a VR that holds no header field."""
    binary = _BINARY.get(vr)
    if binary is not None:
        letter, size = binary
        return list(struct.unpack(f"{'<' if little_endian else '>'}{len(value) // size}{letter}", value)) if value else []
    if vr == "AT":
        pairs = struct.unpack(f"{'<' if little_endian else '>'}{len(value) // 2}H", value)
        if len(pairs) % 2:
            raise ValueError("half a tag")
        return [f"{group:04X}{element:04X}" for group, element in zip(pairs[::2], pairs[1::2], strict=True)]
    if vr not in _STRING_VRS and vr not in ("DS", "IS"):
        return None
    if not value:
        return []
    if value.isascii() and b"\x1b" not in value:
        text = value.decode("ascii")
    elif vr in _CODED_CHARSET_VRS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # undecodable bytes are replaced; the warning would quote them
            text = decode_bytes(value, charset, TEXT_VR_DELIMS).encode("utf-8", "replace").decode("utf-8")
    else:
        raise ValueError("bytes outside the default repertoire")
    text = text.rstrip(" \0")
    if vr in _SINGLE_VRS:
        return [text] if text else []
    return [item.strip(" \0") for item in text.split("\\")] if text else []


def converted_values(element: Any) -> list[Any] | None:
    """The same of an element that pydicom has converted already."""
    vr, value = element.VR, element.value
    if vr in ("SQ", "OB", "OW", "OF", "OD", "OL", "OV", "UN") or isinstance(value, bytes):
        return None
    if value is None or (isinstance(value, str) and not value):
        return []
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, str) and vr != "PN" else None
    if vr == "PN":
        values = list(value) if element.VM > 1 else [value]
    if values is None:
        values = [value]
    if len(values) > BULK_BYTES // 2:
        return None
    if vr in _BINARY:
        return [float(item) if vr in ("FL", "FD") else int(item) for item in values]
    if vr == "AT":
        return [f"{int(item):08X}" for item in values]
    texts = ["" if item is None else str(item).strip(" \0") for item in values]
    return None if sum(map(len, texts)) > BULK_BYTES else texts


def scalar(vr: str, value: Any) -> str:
    """One value as JSON; raises ValueError where its VR does not allow it. Decimals keep their digits where JSON can write them."""
    if vr == "DS":
        text = value if isinstance(value, str) else str(value)
        if len(text) > LONGEST_DECIMAL or not _DECIMAL.fullmatch(text):
            raise ValueError("not a decimal string")
        return text if _JSON_NUMBER.fullmatch(text) else _number(float(text))
    if vr == "IS":
        text = value if isinstance(value, str) else str(value)
        number = float(text) if len(text) <= LONGEST_DECIMAL and _DECIMAL.fullmatch(text) else None
        if number is None or not number.is_integer() or not -(2**31) <= number < 2**31:
            raise ValueError("not an integer string")
        return str(int(number))
    if vr == "PN":
        groups = [encode_basestring(group) for group in str(value).split("=")[:3]]
        names = [
            f'"{name}":{group}' for name, group in zip(("Alphabetic", "Ideographic", "Phonetic"), groups, strict=False) if group != '""'
        ]
        return "{" + ",".join(names) + "}"
    if isinstance(value, str):
        return encode_basestring(value)
    if vr == "FL":
        return _number(float(f"{value:.9g}"))  # nine digits tell every float32 apart
    return _number(value)


def _number(value: float) -> str:
    if not isfinite(value):
        raise ValueError("JSON knows no infinite number")
    return repr(value)


@lru_cache(maxsize=4096)
def fits(tag: int, vr: str) -> bool:
    """Is the file's VR one that the dictionary's could be mistaken for? A text in a number's place has been judged as a number and must go."""
    known = known_vr(tag)
    if known is None:
        return False
    if known == vr:
        return True
    if known == "US or SS":
        return vr in ("US", "SS")
    kinds = {_KIND.get(known, known), _KIND.get(vr, vr)}
    return len(kinds) == 1 or kinds in ({"text", "CS"}, {"DA", "DT"})


def charset_of(ds: pydicom.Dataset, inherited: tuple[str, ...]) -> tuple[str, ...]:
    """Python encodings of SpecificCharacterSet, else ``inherited`` (an item without one has its parent's, PS3.3 C.12.1.1.2)."""
    element = ds._dict.get(_CHARSET)  # type: ignore[call-overload]
    if element is None:
        return inherited
    value = element.value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace").rstrip(" \0").split("\\")
    return encodings(tuple([value] if isinstance(value, str) else [str(item) for item in value or ()]))


@lru_cache(maxsize=256)
def encodings(names: tuple[str, ...]) -> tuple[str, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return tuple(convert_encodings(list(names))) if names else ("iso8859",)
        except (LookupError, ValueError):
            return ("iso8859",)
