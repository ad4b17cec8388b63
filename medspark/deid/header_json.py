"""A header as the DICOM JSON model (PS3.18 Annex F), cleaned, written from the file's raw elements.

pydicom's ``to_json_dict`` converts every element to an object first and costs more than reading file and pixels together. Here an element that
goes is never converted, one that stays goes from its bytes to its text at once, and what was rendered is remembered: the next slice of the series
finds nine tenths of its header done.
"""

from __future__ import annotations

import re
import struct
import warnings
from functools import lru_cache
from typing import Any

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.uid import UID_dictionary

from medspark.deid.dates import cap_age, shift_da, shift_dt
from medspark.deid.echo import Identity, echo_pattern, identity_values
from medspark.deid.profile import PUBLIC_SCHEMES, STANDARD_ROOT, Action, decide, known_vr
from medspark.deid.text import clean_text, harmless_code, technical_text
from medspark.deid.values import BULK_BYTES, TEXT_VRS, charset_of, converted_values, fits, raw_values, scalar
from medspark.keys import Ids

MAX_ITEMS = 128  # a sequence with more items is a table, not a header field
MAX_DEPTH = 16  # no IOD nests deeper; hostile files do
MEMO_ENTRIES = 1 << 16  # rendered elements remembered per process, some 20 MB
MEMO_SEQUENCES = 1 << 12  # sequences remembered per process, some 20 MB
MEMO_BYTES = 256  # longer values are seldom repeated

METHOD = (
    "medspark",
    "Basic Profile",
    "Modified Dates",
    "Patient Characteristics",
    "Clean Descriptors",
)  # written into (0012,0063), VR LO, 1-n
OPTIONS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "Retain Patient Characteristics Option"),
    ("113105", "Clean Descriptors Option"),
)
"""Codes of CID 7050, written into (0012,0064)."""

_SIGN, _SCHEME, _MEANING, _PRIVATE = 0x00280103, 0x00080102, 0x00080104, 0x00010000
_PER_FRAME = 0x52009230  # kept where the caller has left one frame's item; a thousand frames' items in a thousand rows would be a million
_UID = re.compile(r"[0-9.]{1,64}")
_TIME = re.compile(r"\d\d(?::?\d\d(?::?\d\d(?:\.\d{1,6})?)?)?")
_CODE_VALUE = re.compile(r"[A-Za-z0-9.\-_]{1,64}")
_MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, NotImplementedError, struct.error)

Rendered = tuple[str | None, str]
"""(``"GGGGEEEE":{...}`` or None where the element goes, its texts that might echo an identity)."""

_GONE: Rendered = (None, "")
_memo: dict[tuple[Any, ...], Rendered] = {}
_sequences: dict[tuple[Any, ...], tuple[str | None, list[str], list[Identity]]] = {}


def header_json(ds: pydicom.Dataset, ids: Ids, subject_key: str, profile: str) -> str:
    """The kept attributes of ``ds`` as compact DICOM JSON, tags ascending.

    ds : Dataset
        As read, original values; raw and converted elements may be mixed. Only lazily read sequences are converted in it, no value changes.
    ids : Ids
        Its key makes the UIDs' pseudonyms and the subject's day shift.
    subject_key : str
        `Ids.subject` of the patient.
    profile : {"basic", "none"}
        ``none`` keeps everything but bulk, overlays, curves, icons, pixel data and private values that are no text.
    Of PerFrameFunctionalGroupsSequence a single item is kept (the caller's frame), several are not.
    An element that is malformed, or whose value does not fit its VR, is left out and nothing else.  PS3.15 Annex E, PS3.18 Annex F
    """
    return _Walk(ds, ids, subject_key, profile, None).run()


def actions(ds: pydicom.Dataset, ids: Ids, subject_key: str, profile: str = "basic") -> list[tuple[str, str]]:
    """What `header_json` does to each element: (path of tags such as ``00081140[0].00081155``, action), never a value."""
    log: list[tuple[str, str]] = []
    _Walk(ds, ids, subject_key, profile, log).run()
    return log


class _Walk:
    """One pass over one data set; a second one where a kept text echoes an identity."""

    def __init__(self, ds: pydicom.Dataset, ids: Ids, subject_key: str, profile: str, log: list[tuple[str, str]] | None) -> None:
        self.ds = ds
        self.ids = ids
        self.basic = profile != "none"
        self.days = ids.day_shift(subject_key) if self.basic else 0
        self.profile = profile
        self.log = log
        sign: Any = getattr(ds._dict.get(_SIGN), "value", None)  # type: ignore[call-overload]
        self.signed = sign in (1, b"\x01\x00", b"\x00\x01")
        self.echo: re.Pattern[str] | None = None
        self.texts: list[str] = []
        self.identities: list[Identity] = []

    def run(self) -> str:
        charset = charset_of(self.ds, ("iso8859",))
        result = self.dataset(self.ds, charset, "", 0)
        echo = echo_pattern(tuple(self.identities), charset) if self.basic else None
        if echo is None or not echo.search("\n".join(self.texts)):
            return result
        self.echo = echo
        if self.log is not None:
            self.log.clear()
        return self.dataset(self.ds, charset, "", 0)

    def dataset(self, ds: pydicom.Dataset, charset: tuple[str, ...], path: str, depth: int) -> str:
        """A data set or item as a JSON object."""
        parts: list[tuple[int, str]] = []
        elements = ds._dict
        if self.echo is None and self.basic:
            self.identities += identity_values(ds)  # of items too: equipment may name its hospital
        for tag, element in sorted([(int(tag), element) for tag, element in elements.items()]):  # BaseTag compares in Python: slow
            action = decide(tag, self.profile)
            fragment = None
            if action == "remove" and not self.basic and tag & _PRIVATE:
                action = "private_text"
            elif action == "coding":
                action = _coding(tag, elements.get(_SCHEME))  # type: ignore[call-overload]
            if action == "recurse":
                fragment = self.remembered_sequence(ds, tag, element, charset, path, depth)
            elif action != "remove":
                fragment = self.element(tag, element, action, charset)
            if fragment is not None:
                parts.append((tag, fragment))
            if self.log is not None:
                self.log.append((f"{path}{tag:08X}", action if fragment is not None else "remove"))
        if self.basic and depth == 0:
            parts += _markers()
            parts.sort()
        return "{" + ",".join([fragment for _, fragment in parts]) + "}"

    def element(self, tag: int, element: Any, action: Action, charset: tuple[str, ...]) -> str | None:
        """The element as ``"GGGGEEEE":{...}``, or None where it goes."""
        try:
            if type(element) is RawDataElement:
                rendered = self.raw(tag, element, action, charset)
            else:
                rendered = self.render(tag, element.VR, action, converted_values(element))
        except _MALFORMED:
            return None
        fragment, text = rendered
        if text:
            if self.echo is None:
                self.texts.append(text)
            elif self.echo.search(text):
                return None
        return fragment

    def raw(self, tag: int, element: RawDataElement, action: Action, charset: tuple[str, ...]) -> Rendered:
        vr, value = element.VR, element.value
        if vr is None or (vr == "UN" and not tag & _PRIVATE):
            vr = known_vr(tag)  # implicit VR, or hidden in UN by an archive that did not know the attribute (PS3.5 6.2.2)
        if vr == "US or SS":
            vr = "SS" if self.signed else "US"
        if vr is None or (value is None and element.length):
            return _GONE
        value = value or b""
        if len(value) > BULK_BYTES:
            return _GONE
        if len(value) > MEMO_BYTES:
            return self.render(tag, vr, action, raw_values(vr, value, element.is_little_endian, charset))
        depends_on = self.days if action == "shift" else self.ids.key if action in ("uid", "class_uid") else None
        key = (tag, vr, value, action, element.is_little_endian, charset, self.basic, depends_on)
        rendered = _memo.get(key)
        if rendered is None:
            rendered = self.render(tag, vr, action, raw_values(vr, value, element.is_little_endian, charset))
            if len(_memo) >= MEMO_ENTRIES:
                _memo.clear()
            _memo[key] = rendered
        return rendered

    def remembered_sequence(
        self, ds: pydicom.Dataset, tag: int, element: Any, charset: tuple[str, ...], path: str, depth: int
    ) -> str | None:
        """`sequence`, but once only for a short one that is still bytes: a series repeats its codes and references slice by slice."""
        value = element.value
        raw = type(element) is RawDataElement and isinstance(value, bytes)  # converted bytes are a sequence's tag with another VR
        if not raw or len(value) > BULK_BYTES or self.log is not None or self.echo is not None:
            return self.sequence(ds, tag, charset, path, depth)
        implicit, little = element.is_implicit_VR, element.is_little_endian
        key = (tag, element.VR, value, implicit, little, charset, self.signed, depth, self.profile, self.days, self.ids.key)
        found = _sequences.get(key)
        if found is None:
            n_texts, n_identities = len(self.texts), len(self.identities)
            fragment = self.sequence(ds, tag, charset, path, depth)
            found = (fragment, self.texts[n_texts:], self.identities[n_identities:])
            if len(_sequences) >= MEMO_SEQUENCES:
                _sequences.clear()
            _sequences[key] = found
        else:
            self.texts += found[1]
            self.identities += found[2]
        return found[0]

    def sequence(self, ds: pydicom.Dataset, tag: int, charset: tuple[str, ...], path: str, depth: int) -> str | None:
        if depth >= MAX_DEPTH:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                element = ds[tag]
            items = list(element.value or ()) if element.VR == "SQ" else None
        except Exception:  # pydicom fails on broken sequences with any of a dozen types; the element is left out
            return None
        if items is None or len(items) > (1 if tag == _PER_FRAME else MAX_ITEMS):
            return None
        if not items:
            return f'"{tag:08X}":{{"vr":"SQ"}}'
        inner = [self.dataset(item, charset_of(item, charset), f"{path}{tag:08X}[{n}].", depth + 1) for n, item in enumerate(items)]
        return f'"{tag:08X}":{{"vr":"SQ","Value":[{",".join(inner)}]}}'

    def render(self, tag: int, vr: str, action: Action, values: list[Any] | None) -> Rendered:
        """The element's fragment after ``action``; raises where a value is malformed."""
        if values is None or (action == "private_text" and vr not in TEXT_VRS) or (self.basic and not fits(tag, vr)):
            return _GONE
        if action == "empty":
            values = []
        if action == "charset":
            values = ["ISO_IR 192"]
        done = [self.carry_over(vr, action, value) if value != "" else "" for value in values]
        if all(value == "" or value is None for value in done):
            return _GONE if None in done else (f'"{tag:08X}":{{"vr":"{vr}"}}', "")
        json_values = ",".join([scalar(vr, value) if value != "" and value is not None else "null" for value in done])
        text = "\n".join(filter(None, done)) if action in ("code", "technical", "clean", "public_code") else ""
        return f'"{tag:08X}":{{"vr":"{vr}","Value":[{json_values}]}}', text

    def carry_over(self, vr: str, action: Action, value: Any) -> Any:
        """One value after ``action``, None where it must go."""
        match action:
            case "keep" | "private_text" | "charset":
                return value
            case "code":
                return value if harmless_code(value) else None
            case "technical":
                return technical_text(value)
            case "clean":
                return clean_text(value)
            case "public_code":
                return value if _CODE_VALUE.fullmatch(value) else None
            case "uid":
                return value if value in UID_dictionary else self.ids.uid(value)
            case "class_uid":
                return value if value.startswith(STANDARD_ROOT) and _UID.fullmatch(value) else self.ids.uid(value)
            case "shift":
                return shift_da(value, self.days) if vr == "DA" else shift_dt(value, self.days)
            case "time":
                return value if _TIME.fullmatch(value) else None
            case "age":
                return cap_age(value)
        raise AssertionError(f"no rule for action {action!r}")


def _coding(tag: int, scheme: Any) -> Action:
    """What is done to a code's value, designator or meaning, by whether its scheme (an element, or None) is a public one."""
    value = getattr(scheme, "value", None)
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    if text.strip(" \0") in PUBLIC_SCHEMES:
        return "technical" if tag == _MEANING else "public_code"
    if tag == _SCHEME:
        return "remove"  # a hospital's own, perhaps named after it
    return "clean"


@lru_cache(maxsize=1)
def _markers() -> list[tuple[int, str]]:
    """The four attributes that say what was done (PS3.15 E.1.1)."""
    items = ",".join(
        f'{{"00080100":{{"vr":"SH","Value":["{code}"]}},"00080102":{{"vr":"SH","Value":["DCM"]}},"00080104":{{"vr":"LO","Value":["{meaning}"]}}}}'
        for code, meaning in OPTIONS
    )
    methods = ",".join(f'"{method}"' for method in METHOD)
    return [
        (0x00120062, '"00120062":{"vr":"CS","Value":["YES"]}'),
        (0x00120063, f'"00120063":{{"vr":"LO","Value":[{methods}]}}'),
        (0x00120064, f'"00120064":{{"vr":"SQ","Value":[{items}]}}'),
        (0x00280303, '"00280303":{"vr":"CS","Value":["MODIFIED"]}'),
    ]
