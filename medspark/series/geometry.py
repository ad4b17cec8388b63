"""Where slices lie: normal, positions, gaps, tilt, affine (DICOM PS3.3 C.7.6.2.1.1). Plain numpy, LPS millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COSINE_TOLERANCE = (
    0.01  # row and column cosines further than this from unit length or from a right angle are no orientation: noise is < 1e-4
)
ORIENTATION_DECIMALS = 2  # two orientations equal to 0.6 degrees are one: scanners print 5 to 7 digits and jitter in the last ones
SAME_SLICE_MM = 1e-3  # closer than this along the normal is one position: headers round to 1e-4 mm, the thinnest slices are 0.01 mm
IRREGULAR_MM, IRREGULAR_FRACTION = 0.1, 0.05  # a gap off the median by more than the larger of the two is irregular (contract.md §5)
MISSING_FRACTION = 0.10  # a gap within this part of the median from n >= 2 medians means n - 1 missing slices (contract.md §5)
EVEN_MM, EVEN_FRACTION = 0.01, 0.01  # steps even within the larger of the two have an affine (contract.md §3)
TILT_DEG = 0.5  # a step further than this from the normal is a tilted gantry (contract.md §5)
ROUNDING = 1e-9  # relative slack of the comparisons above, so that a gap exactly at the limit does not depend on float rounding


def unit_orientation(orientation: Sequence[float] | None) -> tuple[float, ...] | None:
    """Row and column cosines at unit length, or None where the six numbers are no orientation (missing, zero, not perpendicular)."""
    if orientation is None or len(orientation) != 6:
        return None
    ax, ay, az, bx, by, bz = orientation
    a, b = (ax * ax + ay * ay + az * az) ** 0.5, (bx * bx + by * by + bz * bz) ** 0.5
    if not (abs(a - 1.0) <= COSINE_TOLERANCE and abs(b - 1.0) <= COSINE_TOLERANCE):
        return None
    if abs(ax * bx + ay * by + az * bz) > COSINE_TOLERANCE:
        return None
    return (ax / a, ay / a, az / a, bx / b, by / b, bz / b)


def normal(orientation: Sequence[float]) -> tuple[float, float, float]:
    """Row x column cosines at unit length: the direction in which k grows."""
    ax, ay, az, bx, by, bz = orientation
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    length = (x * x + y * y + z * z) ** 0.5
    return (x / length, y / length, z / length)


def position_mm(image_position: Sequence[float], orientation: Sequence[float]) -> float:
    """Distance of the first pixel's centre from the origin along the normal, mm."""
    x, y, z = normal(orientation)
    return x * image_position[0] + y * image_position[1] + z * image_position[2]


def orientation_key(orientation: Sequence[float] | None) -> str:
    """Equal for the slices of one series: cosines rounded to `ORIENTATION_DECIMALS`; empty without an orientation."""
    if orientation is None:
        return ""
    return "\\".join(f"{round(value, ORIENTATION_DECIMALS) + 0.0:.{ORIENTATION_DECIMALS}f}" for value in orientation)


def distinct_places(positions_mm: np.ndarray) -> np.ndarray:
    """For each position its rank among the distinct ones, from 0.

    positions_mm : (n,) float64, any order
    Returns (n,) int64; positions within `SAME_SLICE_MM` of their lower neighbour share a rank.
    """
    order = np.argsort(positions_mm, kind="stable")
    steps = np.diff(positions_mm[order]) > SAME_SLICE_MM
    ranks = np.empty(len(positions_mm), np.int64)
    ranks[order] = np.concatenate([[0], np.cumsum(steps)]) if len(order) else []
    return ranks


def slice_gaps(positions_mm: np.ndarray) -> np.ndarray:
    """Distances between neighbouring distinct positions, mm, > 0, along the normal; gaps of 0 left out.  Returns (m - 1,) float64."""
    gaps = np.diff(np.sort(positions_mm))
    return gaps[gaps > SAME_SLICE_MM]


def irregular(gaps_mm: np.ndarray) -> bool:
    """Whether a gap is off the median by more than max(0.1 mm, 5 %)."""
    if len(gaps_mm) == 0:
        return False
    median = float(np.median(gaps_mm))
    return bool((np.abs(gaps_mm - median) > max(IRREGULAR_MM, IRREGULAR_FRACTION * median) * (1 + ROUNDING)).any())


def missing(gaps_mm: np.ndarray) -> int:
    """How many slices are missing: gaps within 10 % of the median from n >= 2 medians, n - 1 for each."""
    if len(gaps_mm) == 0:
        return 0
    median = float(np.median(gaps_mm))
    times = np.round(gaps_mm / median)
    hit = (times >= 2) & (np.abs(gaps_mm - times * median) <= MISSING_FRACTION * median * (1 + ROUNDING))
    return int((times[hit] - 1).sum())


@dataclass(frozen=True)
class Stack:
    """The geometry of one series.

    spacing_mm : median gap along the normal, None for a single position
    step_mm : from origin to origin of neighbouring slices, LPS; its component along the normal is the gap
    tilt_deg : angle between step and normal
    affine : 16 numbers, row-major, (col, row, k, 1) -> LPS mm; None unless every step is even
    """

    gaps_mm: np.ndarray
    spacing_mm: float | None = None
    step_mm: tuple[float, ...] | None = None
    tilt_deg: float | None = None
    affine: tuple[float, ...] | None = None


def stack(origins_mm: np.ndarray, orientation: Sequence[float], pixel_spacing_mm: Sequence[float] | None) -> Stack:
    """The geometry of slices at distinct positions.

    origins_mm : (n, 3) float64, LPS mm        ImagePositionPatient, one per distinct position, any order
    orientation : (6,) unit cosines
    pixel_spacing_mm : (between rows, between columns); None leaves the affine out
    The step is the mean one where steps are even, else the median gap along the median direction, so that one odd slice does not bend it.
    """
    axis = np.array(normal(orientation))
    along = origins_mm @ axis
    origins = origins_mm[np.argsort(along, kind="stable")]
    steps = np.diff(origins, axis=0)
    gaps = steps @ axis
    if len(gaps) == 0:
        return Stack(gaps)
    median = float(np.median(gaps))
    mean_step = (origins[-1] - origins[0]) / len(gaps)
    mean_gap = float(mean_step @ axis)
    even = bool((np.linalg.norm(steps - mean_step, axis=1) <= max(EVEN_MM, EVEN_FRACTION * mean_gap) * (1 + ROUNDING)).all())
    if even:
        step = mean_step
    else:
        sideways = np.median(steps / gaps[:, None] - axis, axis=0)
        sideways -= (sideways @ axis) * axis
        step = median * (axis + sideways)
    gap = float(step @ axis)
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(step - gap * axis), gap)))
    affine = None
    if even and pixel_spacing_mm is not None:
        matrix = np.eye(4)
        matrix[:3, 0] = np.array(orientation[:3]) * pixel_spacing_mm[1]
        matrix[:3, 1] = np.array(orientation[3:]) * pixel_spacing_mm[0]
        matrix[:3, 2] = step
        matrix[:3, 3] = origins[0]
        affine = tuple(float(value) for value in matrix.ravel())
    return Stack(gaps, median, tuple(float(value) for value in step), tilt, affine)
