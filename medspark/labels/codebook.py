"""Which value of a mask means what: ``--classes FILE`` (CSV ``value,label,role``), and codes of retired terminologies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from medspark.errors import BadRequest
from medspark.tables.options import read_csv

ROLES = ("positive", "negative", "ignore", "extent")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}$")


@dataclass(frozen=True)
class Entry:
    """One class. ``value``: int for a number, "rrggbb" for a colour."""

    value: int | str
    label: str
    role: str = "positive"


@dataclass(frozen=True)
class Codebook:
    """The classes of a mask; empty when ``--classes`` was not given. Values that it does not list are named by the default rule."""

    entries: tuple[Entry, ...] = ()

    def number(self, value: int) -> Entry | None:
        return next((entry for entry in self.entries if entry.value == value), None)

    def colour(self, rgb: int) -> Entry | None:
        """``rgb``: 0xrrggbb; a grey also answers to the number of its level."""
        text, level = f"{rgb:06x}", rgb & 0xFF
        for entry in self.entries:
            if entry.value == text or (entry.value == level and rgb == level * 0x010101):
                return entry
        return None

    @property
    def by_colour(self) -> bool:
        """Only colours are listed, so a palette is meant by its colours, not by its indices."""
        return bool(self.entries) and all(isinstance(entry.value, str) for entry in self.entries)

    def foreground(self) -> tuple[Entry, ...]:
        """The classes that an empty mask says are absent: all but 0 and black; ``foreground`` without ``--classes``."""
        listed = tuple(entry for entry in self.entries if entry.value not in (0, "000000"))
        return listed or (Entry(1, "foreground"),)


def read_codebook(path: str | Path) -> Codebook:
    """The classes in a CSV file with the header ``value,label[,role]``; raises `BadRequest`."""
    _, rows = read_csv("--classes", path)
    if not rows or not {"value", "label"} <= set(rows[0]):
        raise BadRequest(f"--classes {path}: expected the header value,label,role and at least one row")
    entries: list[Entry] = []
    for place, row in enumerate(rows, start=2):
        value, label = _value((row["value"] or "").strip()), (row["label"] or "").strip()
        role = (row.get("role") or "positive").strip() or "positive"
        if value is None:
            raise BadRequest(f"--classes {path} line {place}: value must be a whole number or #rrggbb, got {row['value']!r}")
        if not label:
            raise BadRequest(f"--classes {path} line {place}: the label is blank")
        if role not in ROLES:
            raise BadRequest(f"--classes {path} line {place}: role must be one of {', '.join(ROLES)}, got {role!r}")
        if any(entry.value == value for entry in entries):
            raise BadRequest(f"--classes {path} line {place}: value {row['value']} is listed twice")
        entries.append(Entry(value, label, role))
    return Codebook(tuple(entries))


def _value(text: str) -> int | str | None:
    if _COLOUR.match(text):
        return text[1:].lower()
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def to_snomed(code: str | None, scheme: str | None) -> tuple[str | None, str | None]:
    """(code, scheme) with SRT (also written SNM3, 99SDM) mapped to SCT, PS3.16 annex O; what has no successor stays as it is."""
    if code and scheme in ("SRT", "SNM3", "99SDM"):
        from pydicom.sr._snomed_dict import mapping

        successor = mapping["SRT"].get(code)
        if successor:
            return successor, "SCT"
    return code or None, scheme or None
