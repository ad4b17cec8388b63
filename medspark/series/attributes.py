"""What a header says about its series, computed before it is cleaned: the JSON of ``slices.series_attributes``.

Every slice carries its own copy, so that late slices can re-plan a series without the original files (`medspark.series.assemble`).
"""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

from medspark.config import Config
from medspark.deid import clean_text, echoes, shift_date
from medspark.deid.dates import parse_da
from medspark.deid.text import harmless_code, technical_text
from medspark.keys import Ids
from medspark.series import rescale
from medspark.series.frames import PER_FRAME, SHARED, positive, seconds_of_day
from medspark.series.header import Head

TEXTS = ("body_part", "description", "protocol", "manufacturer", "model_name", "kernel", "contrast", "sequence_name", "patient_position")
"""Columns that are texts of the header: none may repeat what identifies the subject."""


def series_attributes(head: Head, ids: Ids, settings: Config, subject_key: str, series_uid: str) -> str:
    """JSON of this instance's values for the table ``series``: what is computed from the header before it is cleaned."""
    basic = settings.deid.profile == "basic"

    def free(tag: int) -> str | None:
        text = head.text(tag)
        return clean_text(text) if text and basic else text

    def technical(tag: int) -> str | None:
        text = "\\".join(part for part in head.texts(tag) if part) or None
        return technical_text(text) if text and basic else text

    def code(tag: int) -> str | None:
        text = head.text(tag)
        return None if text and basic and not harmless_code(text) else text

    shared = head.item(SHARED)
    first = next(iter(head.items(PER_FRAME)), None) if shared is not None or PER_FRAME in head else None

    def inner(group: int, tag: int, vr: str) -> float | None:
        for place in (first, shared):
            item = place.item(group) if place is not None else None
            value = None if item is None else item.double(tag) if vr == "FD" else item.real(tag)
            if value is not None:
                return value
        return None

    exposure = head.real(0x00181152)
    micro = head.real(0x00181153)
    if exposure is None and micro is not None:
        exposure = micro / 1000.0
    institution, frame_of_reference = head.text(0x00080080), head.text(0x00200052)
    values: dict[str, Any] = {
        "modality": code(0x00080060) or "OT",
        "series_instance_id": series_uid,
        "frame_of_reference_id": ids.uid(frame_of_reference) if frame_of_reference else None,
        "body_part": code(0x00180015),
        "description": free(0x0008103E),
        "series_number": head.whole(0x00200011),
        "protocol": free(0x00181030),
        "site": ids.digest("site", institution) if institution else None,
        "manufacturer": technical(0x00080070),
        "model_name": technical(0x00081090),
        "kernel": technical(0x00181210),
        "contrast": free(0x00180010),
        "kvp": _first(positive(head.real(0x00180060)), inner(0x00189325, 0x00180060, "DS")),
        "tube_current_time_mas": _first(positive(exposure), inner(0x00189321, 0x00189332, "FD")),
        "ctdi_vol_mgy": _first(head.double(0x00189345), inner(0x00189321, 0x00189345, "FD")),
        "field_strength_t": head.real(0x00180087),
        "sequence_name": technical(0x00180024),
        "tr_ms": _first(head.real(0x00180080), inner(0x00189112, 0x00180080, "DS")),
        "ti_ms": head.real(0x00180082),
        "flip_angle_deg": _first(head.real(0x00181314), inner(0x00189112, 0x00181314, "DS")),
        "suv_bw_factor": suv(head) if head.text(0x00080060) == "PT" else None,
        "study_date": _shifted(head.text(0x00080020), ids.day_shift(subject_key) if basic else 0),
        "patient_position": code(0x00185100),
    }
    echo = echoes(head.dataset) if basic else None
    if echo is not None:  # a technician's habit, or a publisher's: the patient's number as the name of a sequence
        values.update({name: None for name in TEXTS if values[name] and echo.search(values[name])})
    return json.dumps({name: value for name, value in values.items() if value is not None}, sort_keys=True)


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _shifted(text: str | None, days: int) -> str | None:
    """A DA value moved by whole days, as ISO date; None where it is no date."""
    digits = (text or "").replace(".", "").replace("-", "")
    if not re.fullmatch(r"\d{8}", digits):
        return None
    try:
        return shift_date(datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:])), days).isoformat()
    except (ValueError, OverflowError):
        return None


def suv(head: Head) -> float | None:
    """SUV factor by body weight of a PET header, see `rescale.suv_bw_factor`."""
    dose = head.item(0x00540016)
    started = (dose.text(0x00181078) or "") if dose else ""  # RadiopharmaceuticalStartDateTime
    injected = seconds_of_day(re.split(r"[+-]", started)[0][8:])
    days = None
    if injected is not None:
        days = _days_between(started[:8], head.text(0x00080021) or head.text(0x00080020))
    elif dose is not None:
        injected = seconds_of_day(dose.text(0x00181072))
    philips = head.real(0x70531000) if (head.text(0x70530010) or "").startswith("Philips PET") else None
    return rescale.suv_bw_factor(
        rescale.Injection(
            units=head.text(0x00541001),
            corrections=frozenset(value.upper() for value in head.texts(0x00280051)),
            decay=head.text(0x00541102),
            weight_kg=head.real(0x00101030),
            dose_bq=dose.real(0x00181074) if dose else None,
            half_life_s=dose.real(0x00181075) if dose else None,
            injected_s=injected,
            series_s=seconds_of_day(head.text(0x00080031)),
            acquired_s=seconds_of_day(head.text(0x00080032)),
            philips_suv=philips,
            days=days,
            suv_type=head.text(0x00541006),
        )
    )


def _days_between(first: str | None, second: str | None) -> int | None:
    """Whole days from one DA value to another; None where one of them is no date."""
    a, b = parse_da(first), parse_da(second)
    return None if a is None or b is None else (b - a).days
