"""Which volume a slice belongs to where a series has several at one place: echoes, phases, times, b-values. Pure, order-independent."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MIN_COVER = 0.5  # a volume told apart by an attribute holds more than this part of the positions: else the attribute just varies by slice
VOLUME_ATTRIBUTES = (
    "temporal_position",
    "cardiac_phase_pct",
    "time_ms",
    "echo_time_ms",
    "b_value",
    "acquisition_number",
    "image_type",
)
"""What tells the volumes of a series apart, the most explicit first; image_type parts magnitude from phase, water from fat."""
ORDERED_ATTRIBUTES = ("time_ms", "temporal_position", "acquisition_number")
"""What orders the repeats of each position where no value is shared between positions (times of a dynamic series)."""


def tell_volumes(rows: Sequence[Mapping[str, Any]], ranks: np.ndarray) -> np.ndarray | None:
    """Which volume each slice belongs to, such that each volume has each position at most once; None where no attribute tells.

    ranks : (n,) int64 rank of each slice's position
    Tried in turn: one attribute, two, three of `VOLUME_ATTRIBUTES` whose values split the repeats, the volumes ordered by them; then, for
    positions that repeat equally often, the order of each position's repeats in time.
    """
    values = {name: [_sortable(row.get(name)) for row in rows] for name in VOLUME_ATTRIBUTES}
    varying = [name for name in VOLUME_ATTRIBUTES if len(set(values[name])) > 1]
    places = ranks.tolist()
    n_places, most = len(set(places)), max(Counter(places).values())
    for size in (1, 2, 3):
        for names in itertools.combinations(varying, size):
            keys = list(zip(*(values[name] for name in names), strict=True))
            members = Counter(keys)
            if len(set(zip(keys, places, strict=True))) < len(keys):
                continue  # a volume would hold a position twice
            if len(members) == most or min(members.values()) > MIN_COVER * n_places:
                order = {key: t for t, key in enumerate(sorted(members))}
                return np.array([order[key] for key in keys], np.int64)
    if len(set(Counter(places).values())) == 1:
        for name in ORDERED_ATTRIBUTES:
            if len(set(zip(values[name], places, strict=True))) == len(places):
                volumes = np.empty(len(places), np.int64)
                met: Counter[int] = Counter()
                for index in sorted(range(len(places)), key=lambda index: (places[index], values[name][index])):
                    volumes[index] = met[places[index]]
                    met[places[index]] += 1
                return volumes
    return None


def _sortable(value: Any) -> tuple[int, float, str]:
    """A value's place in an order that takes absent ones (first), numbers and lists of text."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, (int, float)):
        return (1, float(value), "")
    return (2, 0.0, "\\".join(map(str, value)))
