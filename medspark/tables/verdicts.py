"""Verdicts: what is odd about kept data, and how much it matters. Nothing is silently repaired; a verdict says what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

Severity = Literal["note", "warn", "block"]

SEVERITY: dict[str, Severity] = {
    # series
    "IRREGULAR_SPACING": "warn",
    "MISSING_SLICES": "warn",
    "DUPLICATE_POSITIONS": "warn",
    "MULTI_VOLUME": "note",
    "MIXED_THICKNESS": "warn",
    "MIXED_RESCALE": "note",
    "SPLIT_ORIENTATION": "note",
    "SPLIT_SIZE": "note",
    "GANTRY_TILT": "warn",
    "SINGLE_SLICE": "note",
    "LOCALIZER": "block",
    # slice
    "NO_POSITION": "block",
    "NO_RESCALE": "block",
    "MOSAIC": "block",
    "LOSSY": "note",
    "NO_UID": "warn",
    "NO_SUBJECT": "warn",
    "PADDING_DOUBT": "warn",
    "SYNTAX_ASSUMED": "warn",
    "BURNED_IN": "block",
    "BURNED_IN_POSSIBLE": "warn",
    "FACE_RECOGNISABLE": "note",
    # slide
    "NO_MPP": "warn",
    "MPP_DOUBT": "warn",
    "NON_SQUARE_PIXELS": "note",
    "NO_PYRAMID": "note",
    "COLOUR_DOUBT": "warn",
    "NO_TISSUE": "note",
}
"""Default severities; the config section ``[verdicts]`` overrides them code by code."""


def usable(verdicts: Iterable[str], overrides: Mapping[str, Severity] | None = None) -> bool:
    """False when one of the verdicts blocks."""
    severity = {**SEVERITY, **(overrides or {})}
    return not any(severity[code] == "block" for code in verdicts)
