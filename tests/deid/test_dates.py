"""Laws of dates and ages."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from medspark.deid.dates import age_years, cap_age, parse_as, parse_da, shift_da, shift_date, shift_dt

DAYS = st.integers(-3650, -1)
REAL_DATES = st.dates(date(1900, 1, 1), date(2100, 1, 1))


@given(REAL_DATES, REAL_DATES, DAYS)
def test_shift_keeps_intervals(first: date, second: date, days: int) -> None:
    assert shift_date(second, days) - shift_date(first, days) == second - first
    moved = shift_da(f"{first:%Y%m%d}", days)
    assert moved is not None and parse_da(moved) == shift_date(first, days) != first


@given(REAL_DATES, DAYS)
def test_shift_of_dt_keeps_the_time_and_agrees_with_da(day: date, days: int) -> None:
    for rest in ("", "12", "1213", "121314", "121314.123456", "121314+0100", "-0500"):
        moved = shift_dt(f"{day:%Y%m%d}{rest}", days)
        assert moved == (shift_da(f"{day:%Y%m%d}", days) or "") + rest


def test_old_and_partial_dates() -> None:
    assert parse_da("1999.12.31") == parse_da("19991231 ") == parse_da("1999-12-31") == date(1999, 12, 31)
    assert shift_da("1999.12.31", -1) == "19991230"
    assert shift_dt("2001", -1) == "2000" and shift_dt("200103", -1) == "200102"
    assert shift_da("", -5) == "" and shift_dt("", -5) == ""


@pytest.mark.parametrize("text", ["00000000", "20011301", "2001", "yesterday", "20010101-20010202", "19431017x", "20012"])
def test_what_cannot_be_parsed_cannot_be_kept(text: str) -> None:
    assert shift_da(text, -5) is None
    if text != "2001":
        assert shift_dt(text, -5) is None


def test_shift_out_of_the_calendar_is_dropped() -> None:
    assert shift_da("00010101", -5) is None


@given(st.integers(0, 999), st.sampled_from("DWMY"))
def test_no_age_above_89_is_told(count: int, unit: str) -> None:
    text = f"{count:03d}{unit}"
    capped = cap_age(text)
    assert capped is not None
    years, told = parse_as(text), parse_as(capped)
    assert years is not None and told is not None
    assert told == (years if years <= 89 else 90.0)


@given(REAL_DATES, st.integers(0, 45_000))
def test_age_from_dates(born: date, days: int) -> None:
    ds = Dataset()
    ds.PatientBirthDate = f"{born:%Y%m%d}"
    seen = shift_date(born, days)
    ds.StudyDate = f"{seen:%Y%m%d}"
    age = age_years(ds)
    assert age is not None
    assert age == 90.0 if days > 90 * 366 else abs(age - days / 365.2425) < 1e-9 or age == 90.0
    assert 0.0 <= age <= 90.0


def test_age_examples() -> None:
    ds = Dataset()
    assert age_years(ds) is None
    ds.PatientBirthDate, ds.StudyDate = "19500101", "19491231"
    assert age_years(ds) is None
    for text, years in (("045Y", 45.0), ("006M", 0.5), ("089Y", 89.0), ("090Y", 90.0), ("103Y", 90.0)):
        ds.PatientAge = text
        assert age_years(ds) == pytest.approx(years)
