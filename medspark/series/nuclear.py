"""Frames of a nuclear-medicine image: which energy window, detector, phase, time slot and slice each shows, when, and where it lies.

Such an image is an array of several dimensions: FrameIncrementPointer names its index vectors, each with one number (from 1) per frame.
PS3.3 C.8.4.8 (vectors), C.8.4.11 (detectors), C.8.4.14 (phases), C.8.4.12 (gating), C.8.4.15 (slices).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medspark.series import geometry
from medspark.series.header import Head

VECTORS = {
    "energy_window": 0x00540010,
    "detector": 0x00540020,
    "phase": 0x00540030,
    "time_slot": 0x00540070,
    "slice": 0x00540080,
    "time_slice": 0x00540100,
}
COLUMNS = ("energy_window", "detector", "phase")
"""Indices that are columns of ``slices``; the others are told by time, temporal position and place."""
DETECTORS, PHASES, GATED, GATED_DATA = 0x00540022, 0x00540032, 0x00540062, 0x00540063


def frame_columns(head: Head, count: int) -> list[dict[str, Any]]:
    """Columns of ``slices`` that differ between the ``count`` frames of a nuclear-medicine image, by frame.

    A vector that is absent or has another length than there are frames says nothing, and its columns are left out.
    """
    vectors = {name: found for name, tag in VECTORS.items() if (found := _vector(head, tag, count)) is not None}
    frames: list[dict[str, Any]] = [{name: vectors[name][index] for name in COLUMNS if name in vectors} for index in range(count)]
    for columns, time_ms in zip(frames, _times_ms(head, vectors, count), strict=True):
        if time_ms is not None:
            columns["time_ms"] = time_ms
    for columns, slot in zip(frames, vectors.get("time_slot", ()), strict=False):
        columns["temporal_position"] = float(slot)
    _place(head, vectors, frames)
    return frames


def _vector(head: Head, tag: int, count: int) -> list[int] | None:
    """An index vector (US, one value a frame, from 1)."""
    numbers = head.shorts(tag)
    return numbers if numbers is not None and len(numbers) == count and min(numbers) >= 1 else None


def _times_ms(head: Head, vectors: dict[str, list[int]], count: int) -> list[float | None]:
    """When each frame began: of a gated image since the R wave, of a dynamic one since the first phase."""
    slots, phases, slices = vectors.get("time_slot"), vectors.get("phase"), vectors.get("time_slice")
    if slots is not None:
        gated = head.item(GATED)
        data = gated.item(GATED_DATA) if gated is not None else None
        step = data.real(0x00181063) if data is not None else None
        return [None if step is None else (slot - 1) * step for slot in slots]
    starts = _phase_starts(head)
    if phases is None or slices is None or starts is None or max(phases) > len(starts):
        return [None] * count
    return [starts[phase - 1][0] + (place - 1) * starts[phase - 1][1] for phase, place in zip(phases, slices, strict=True)]


def _phase_starts(head: Head) -> list[tuple[float, float]] | None:
    """(start of the phase, from frame to frame) in ms; None where a duration is not told."""
    at, found = 0.0, []
    for phase in head.items(PHASES):
        duration, frames = phase.real(0x00181242), phase.shorts(0x00540033)
        if duration is None or not frames:
            return None
        at += phase.real(0x00540036) or 0.0  # since the last frame of the phase before
        pause = phase.real(0x00540038) or 0.0
        found.append((at, duration + pause))
        at += frames[0] * duration + (frames[0] - 1) * pause
    return found or None


def _place(head: Head, vectors: dict[str, list[int]], frames: list[dict[str, Any]]) -> None:
    """Position and orientation of reconstructed slices: stacked along the normal, in the direction of the spacing's sign."""
    detector, spacing = head.item(DETECTORS), head.real(0x00180088)
    if "slice" not in vectors or detector is None or not spacing:
        return
    cosines, origin = detector.floats(0x00200037), detector.floats(0x00200032)
    orientation = geometry.unit_orientation(cosines)
    if orientation is None or origin is None or len(origin) != 3:
        return
    step = np.array(geometry.normal(orientation)) * spacing
    for columns, place in zip(frames, vectors["slice"], strict=True):
        columns["image_orientation"] = cosines
        columns["image_position_mm"] = [float(value) for value in np.array(origin) + (place - 1) * step]
