"""Dates and ages: parsed, moved by whole days, capped.

A date moves by one number of days per subject (option 113107, "Modified Dates"), so that intervals within a subject stay true and no date
does. A date that cannot be parsed cannot be moved, and what cannot be moved is not kept.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pydicom

OLDEST_TOLD_YEARS = 89.0  # HIPAA safe harbour, 45 CFR 164.514(b)(2)(i)(C): ages over 89 may only be told as one category
CAPPED_YEARS = 90.0  # ... which is this number here
DAYS_PER_YEAR = 365.2425  # mean Gregorian year
_UNITS_PER_YEAR = {"D": DAYS_PER_YEAR, "W": DAYS_PER_YEAR / 7.0, "M": 12.0, "Y": 1.0}

_DA = re.compile(r"(\d{4})(?:(\d\d)(\d\d)|\.(\d\d)\.(\d\d)|-(\d\d)-(\d\d))")  # PS3.5; dotted in ACR-NEMA files; dashed where exporters err
_DT = re.compile(r"(\d{4})(\d\d)?(\d\d)?((?:\d\d){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?)")
_AS = re.compile(r"(\d{1,3})([DWMY])")

_BIRTH_DATE = 0x00100030
_PATIENT_AGE = 0x00101010
_STUDY_DATES = (0x00080020, 0x00080022, 0x00080021, 0x00080023)  # study, acquisition, series, content


def shift_date(value: date, days: int) -> date:
    """``value`` moved by ``days``; raises OverflowError outside the years 1 to 9999."""
    return value + timedelta(days=days)


def parse_da(text: str | None) -> date | None:
    """A DA value (``YYYYMMDD``, old ``YYYY.MM.DD``) as a date; None where it is blank or no date.  PS3.5 6.2"""
    match = _DA.fullmatch((text or "").strip(" \0"))
    if match is None:
        return None
    year, *rest = (int(group) for group in match.groups() if group is not None)
    try:
        return date(year, rest[0], rest[1])
    except ValueError:
        return None


def shift_da(text: str, days: int) -> str | None:
    """A DA value moved by ``days``, as ``YYYYMMDD``; "" stays ""; None where it cannot be parsed."""
    if not text.strip(" \0"):
        return ""
    parsed = parse_da(text)
    return None if parsed is None else _moved(parsed, days)


def shift_dt(text: str, days: int) -> str | None:
    """A DT value moved by ``days``; time, fraction and offset stay, and so does the precision (``YYYY``, ``YYYYMM``).

    Of a partial date its first day is moved and the result cut to the same precision.
    """
    text = text.strip(" \0")
    if not text:
        return ""
    match = _DT.fullmatch(text)
    if match is None:
        return shift_da(text, days)  # a DA in a DT's place, dotted perhaps
    year, month, day, rest = match.groups()
    if day is None and rest:
        return None
    try:
        parsed = date(int(year), int(month or 1), int(day or 1))
    except ValueError:
        return None
    moved = _moved(parsed, days)
    if moved is None:
        return None
    return moved[: 4 if month is None else 6 if day is None else 8] + rest


def _moved(value: date, days: int) -> str | None:
    try:
        moved = shift_date(value, days)
    except OverflowError:
        return None
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"


def cap_age(text: str) -> str | None:
    """An AS value with ages above 89 years as ``090Y``; None where it is malformed.  PS3.5 6.2"""
    years = parse_as(text)
    if years is None:
        return None
    count, unit = text.strip(" \0").upper()[:-1], text.strip(" \0").upper()[-1]
    return f"{int(CAPPED_YEARS):03d}Y" if years > OLDEST_TOLD_YEARS else f"{int(count):03d}{unit}"


def parse_as(text: str) -> float | None:
    """An AS value in years, not capped; None where it is blank or malformed."""
    match = _AS.fullmatch(text.strip(" \0").upper())
    return None if match is None else int(match.group(1)) / _UNITS_PER_YEAR[match.group(2)]


def age_years(ds: pydicom.Dataset) -> float | None:
    """The patient's age at the study in years, above 89 as 90.0: PatientAge, else from the birth date and the first date of the study.

    ``ds`` holds the original values. None where neither is told, or where the birth lies after the study.
    """
    age = parse_as(_text(ds, _PATIENT_AGE))
    if age is None:
        born = parse_da(_text(ds, _BIRTH_DATE))
        seen = next((found for tag in _STUDY_DATES if (found := parse_da(_text(ds, tag))) is not None), None)
        if born is None or seen is None or seen < born:
            return None
        had_birthday = (seen.month, seen.day) >= (born.month, born.day)
        whole_years = seen.year - born.year - (not had_birthday)
        if whole_years > OLDEST_TOLD_YEARS:
            return CAPPED_YEARS
        age = (seen - born).days / DAYS_PER_YEAR
    return CAPPED_YEARS if age > OLDEST_TOLD_YEARS else age


def _text(ds: pydicom.Dataset, tag: int) -> str:
    try:
        element = ds[tag]
    except Exception:  # absent, or so malformed that pydicom cannot convert it: not told
        return ""
    return str(element.value or "")
