"""Slices of one series as an array with its affine, and the same on another grid. Pure numpy; reads nothing.

The lake keeps what was measured and interpolates nothing; here interpolation is what the caller asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from medspark.errors import BadRequest
from medspark.series import geometry

ROUNDING = 1e-6  # of a step: a grid whose last point misses the last slice by float noise keeps it


class Volume(NamedTuple):
    """array : (k, row, col) float32, after rescale or modality LUT;  affine : (4, 4) float64, (col, row, k, 1) to LPS mm"""

    array: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Frame:
    """Where the slices of a stack lie.

    origins_mm : (n, 3) float64, LPS       centre of the first pixel of each slice, in the order of k
    orientation : (6,) unit cosines        rows' and columns' direction
    pixel_spacing_mm : (row, col)
    step_mm : (3,)                         from origin to origin of neighbours
    """

    origins_mm: np.ndarray
    orientation: np.ndarray
    pixel_spacing_mm: tuple[float, float]
    step_mm: np.ndarray

    @property
    def affine(self) -> np.ndarray:
        matrix = np.eye(4)
        matrix[:3, 0] = self.orientation[:3] * self.pixel_spacing_mm[1]
        matrix[:3, 1] = self.orientation[3:] * self.pixel_spacing_mm[0]
        matrix[:3, 2] = self.step_mm
        matrix[:3, 3] = self.origins_mm[0]
        return matrix


def check(series: Mapping[str, Any], slices: Sequence[Mapping[str, Any]], t: int, uneven: bool) -> None:
    """Refuses (`BadRequest`, verdicts named) slices that are no volume, and unless ``uneven`` those that are not evenly spaced.

    series : row of ``series``;  slices : rows of ``slices`` of volume ``t``, in the order of k
    """
    name = f"series {series['series_id']}"
    if not slices:
        raise BadRequest(f"{name} has {series['n_volumes']} volume(s), t from 0; there is no t = {t}")
    verdicts = ", ".join(series["verdict"]) or "none"
    if any(row["k"] is None or row["image_position_mm"] is None for row in slices) or series["orientation"] is None:
        raise BadRequest(f"{name}: slices without position or orientation form no volume (verdicts: {verdicts}); read them with .image()")
    if "DUPLICATE_POSITIONS" in series["verdict"]:
        raise BadRequest(f"{name}: several slices lie at one place and nothing tells volumes apart (verdicts: {verdicts})")
    if any(row["channels"] != 1 for row in slices):
        raise BadRequest(f"{name}: colour images form no volume of values; read them with .image()")
    if series["pixel_spacing_mm"] is None:
        raise BadRequest(f"{name}: no pixel spacing, so no affine; read its slices with .image()")
    if uneven:
        return
    gaps = [row["k"] for row in slices] != list(range(slices[0]["k"], slices[0]["k"] + len(slices)))
    if series["affine_lps_mm"] is None or gaps:
        raise BadRequest(
            f"{name} is not evenly spaced{' in this volume' if gaps else ''} (verdicts: {verdicts}); "
            "uneven=True stacks its slices in order, and resamples by their true positions"
        )


def frame_of(series: Mapping[str, Any], slices: Sequence[Mapping[str, Any]]) -> Frame:
    """The stack's frame; a single slice steps by its thickness (1 mm where it has none)."""
    orientation = np.array(series["orientation"], np.float64)
    normal = np.array(geometry.normal(orientation.tolist()))
    origins = np.array([row["image_position_mm"] for row in slices], np.float64)
    if series["affine_lps_mm"] is not None:
        step = np.array(series["affine_lps_mm"], np.float64).reshape(4, 4)[:3, 2]
    elif series["step_mm"] is not None:
        step = np.array(series["step_mm"], np.float64)
    else:
        step = normal * (series["slice_thickness_mm"] or 1.0)
    row_mm, col_mm = series["pixel_spacing_mm"]
    return Frame(origins, orientation, (row_mm, col_mm), step)


def spacing_of(spacing_mm: float | Sequence[float]) -> tuple[float, float, float]:
    """(k, row, col) mm; one number is all three. Raises `BadRequest` unless they are above 0."""
    wanted = np.broadcast_to(np.asarray(spacing_mm, np.float64), (3,)) if np.ndim(spacing_mm) == 0 else np.asarray(spacing_mm, np.float64)
    if wanted.shape != (3,) or not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise BadRequest(f"spacing_mm: expected a number above 0 or three of them (k, row, col), got {spacing_mm!r}")
    return float(wanted[0]), float(wanted[1]), float(wanted[2])


def resampled(array: np.ndarray, frame: Frame, spacing_mm: tuple[float, float, float]) -> Volume:
    """The volume on an upright grid: axes along columns, rows and normal, linear between the slices' true positions.

    array : (n, rows, cols) float32        slices in the order of k, at ``frame.origins_mm``
    The grid starts at the centre of the first voxel and ends at the last one that a step reaches; nothing is extrapolated, but where slices
    are shifted sideways (a tilted gantry) the grid holds all of them and what no slice covers has the smallest value of the array.
    One plane is in memory beside input and output. Finer structure than the new step is not smoothed away before.
    """
    along_col, along_row = frame.orientation[:3], frame.orientation[3:]
    normal = np.array(geometry.normal(frame.orientation.tolist()))
    row_mm, col_mm = frame.pixel_spacing_mm
    offsets = frame.origins_mm - frame.origins_mm[0]
    z, y, x = offsets @ normal, offsets @ along_row, offsets @ along_col  # of each slice's first pixel
    n, rows, cols = array.shape
    ends = (z[0], z[-1]), (y.min(), y.max() + (rows - 1) * row_mm), (x.min(), x.max() + (cols - 1) * col_mm)
    at_z, at_y, at_x = (
        first + step * np.arange(1 + int((last - first) / step + ROUNDING)) for (first, last), step in zip(ends, spacing_mm, strict=True)
    )
    fill = float(array.min())
    out = np.empty((len(at_z), len(at_y), len(at_x)), np.float32)
    for k, place in enumerate(np.interp(at_z, z, np.arange(n))):
        below = int(min(place + ROUNDING, n - 1))
        part = max(float(place) - below, 0.0)
        values, covered = _plane(array[below], (at_y - y[below]) / row_mm, (at_x - x[below]) / col_mm)
        if part > ROUNDING:
            above, also = _plane(array[below + 1], (at_y - y[below + 1]) / row_mm, (at_x - x[below + 1]) / col_mm)
            # Where one of two shifted slices ends, the other alone says the value: nothing is mixed with what is not there.
            values = np.where(covered & also, values + part * (above - values), np.where(also, above, values))
            covered |= also
        out[k] = np.where(covered, values, fill)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = along_col * spacing_mm[2], along_row * spacing_mm[1], normal * spacing_mm[0]
    affine[:3, 3] = frame.origins_mm[0] + along_row * at_y[0] + along_col * at_x[0]
    return Volume(out, affine)


def _plane(image: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the image at fractional rows x cols, bilinear; where it has pixels: up to half a pixel beyond the outer centres)."""
    inside = [(places >= -0.5) & (places <= side - 0.5) for places, side in zip((rows, cols), image.shape, strict=True)]
    return _along(_along(image, rows, 0), cols, 1), inside[0][:, None] & inside[1]


def _along(image: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    last = image.shape[axis] - 1
    held = np.clip(places, 0, last)
    low = np.minimum(held.astype(np.intp), max(last - 1, 0))
    part = (held - low).astype(np.float32)
    part = part[:, None] if axis == 0 else part
    near, far = image.take(low, axis), image.take(np.minimum(low + 1, last), axis)
    return near + part * (far - near)
