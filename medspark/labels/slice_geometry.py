"""Where the slices of a series lie, asked by contours and mask planes: LPS mm to pixels, and how far off a slice's plane a point is.

Conventions of DICOM PS3.3 C.7.6.2.1.1: ImagePositionPatient is the *centre* of the first pixel; the row cosines point along growing columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from medspark.labels.label_rows import column

SAME_SLICE_MM = 1e-3  # closer than this along the normal is one position: headers round to 1e-4 mm
ALONE_HALF_GAP_MM = 1.0  # reach of a single slice without SliceThickness: thin slices are 1 to 2 mm
SAME_GRID = 0.01  # voxels by which two grids may differ and still be one (contract.md §4)
HALF_PIXEL = 0.5  # px by which a plane that names its slice may be off it: further, and pixels would mean their neighbours
PARALLEL = 1e-3  # sine of the angle up to which a plane is parallel to a slice: 0.06 degrees, a tenth of the smallest tilt that counts

Fault = Literal["LABEL_GEOMETRY", "LABEL_SIZE"]


@dataclass(frozen=True)
class SlicePlanes:
    """Geometry of n slices; rows of NaN where a slice has none.

    origin, along_cols, along_rows, normal : (n, 3)    mm; the two axes are unit vectors
    spacing : (n, 2) mm                                between columns, between rows
    size : (n, 2) int                                  rows, cols
    below, above : (n,) mm                             half the gap to the neighbour on either side of the plane
    part : (n,) object                                 series_id; neighbours are looked for within one
    """

    origin: np.ndarray
    along_cols: np.ndarray
    along_rows: np.ndarray
    normal: np.ndarray
    spacing: np.ndarray
    size: np.ndarray
    below: np.ndarray
    above: np.ndarray
    part: np.ndarray

    @classmethod
    def of(cls, slices: pa.Table, orientation: list[float] | None = None) -> SlicePlanes:
        """From rows of ``slices`` (photos have no geometry); ``orientation`` stands in where a slice has none of its own."""
        count = slices.num_rows
        cosines = _vectors([item or orientation for item in column(slices, "image_orientation")], 6, count)
        origin = _vectors(column(slices, "image_position_mm"), 3, count)
        spacing = _vectors(column(slices, "pixel_spacing_mm"), 2, count)[:, ::-1]
        along_cols, along_rows = cosines[:, :3], cosines[:, 3:]
        across = np.cross(along_cols, along_rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            normal = across / np.linalg.norm(across, axis=1, keepdims=True)
        size = np.stack([np.array(column(slices, name), np.int64) for name in ("rows", "cols")], axis=1).reshape(count, 2)
        part = np.array(column(slices, "series_id"), object)
        thickness = column(slices, "slice_thickness_mm")
        below, above = _half_gaps(origin, normal, part, thickness)
        return cls(origin, along_cols, along_rows, normal, spacing, size, below, above, part)

    def __len__(self) -> int:
        return len(self.origin)

    def to_index(self, at: int, points: np.ndarray) -> np.ndarray:
        """(k, 3): column, row (pixel centres at whole numbers) and mm off the plane (positive along the normal) of (k, 3) LPS points."""
        rel = points - self.origin[at]
        col = rel @ self.along_cols[at] / self.spacing[at, 0]
        row = rel @ self.along_rows[at] / self.spacing[at, 1]
        return np.stack([col, row, rel @ self.normal[at]], axis=1)

    def reaches(self, at: int, off_mm: np.ndarray) -> bool:
        """Whether all signed distances are within half the gap to the neighbour on their side."""
        return bool(((off_mm <= self.above[at] + SAME_SLICE_MM) & (-off_mm <= self.below[at] + SAME_SLICE_MM)).all())

    def nearest(self, points: np.ndarray, among: list[int]) -> list[int]:
        """Those of the slices ``among`` whose plane all the points are nearest to: one, or one per volume where positions repeat.

        Half way between two planes is the lower one's, along the normal: on both, the truth would count twice.
        """
        normal = self.normal[among]
        off = points @ normal.T - np.einsum("nc,nc->n", self.origin[among], normal)
        far = np.abs(off).max(axis=0)
        if not np.isfinite(far).any():
            return []
        near = np.flatnonzero(far <= np.nanmin(far) + SAME_SLICE_MM)
        above = off[:, near].mean(axis=0)  # of the points over each plane: the lower one lies furthest below them
        return [among[at] for at in near[above >= above.max() - 2 * SAME_SLICE_MM].tolist()]


def _vectors(values: list[Any], length: int, count: int) -> np.ndarray:
    found = np.full((count, length), np.nan)
    for place, value in enumerate(values):
        if value is not None and len(value) == length and None not in value:
            found[place] = value
    return found


def _half_gaps(origin: np.ndarray, normal: np.ndarray, part: np.ndarray, thickness: list[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Half the gap below and above each slice; an outermost slice reaches as far outwards as inwards."""
    below, above = np.full(len(origin), np.nan), np.full(len(origin), np.nan)
    for name in dict.fromkeys(part.tolist()):
        here = np.flatnonzero((part == name) & np.isfinite(normal).all(axis=1) & np.isfinite(origin).all(axis=1))
        if not here.size:
            continue
        position = origin[here] @ normal[here[0]]
        order = np.argsort(position, kind="stable")
        steps = np.diff(position[order])
        rank = np.zeros(len(here), np.int64)
        rank[order] = np.concatenate([[0], np.cumsum(steps > SAME_SLICE_MM)])
        gaps = steps[steps > SAME_SLICE_MM]
        if gaps.size:
            below[here], above[here] = np.concatenate([gaps[:1], gaps])[rank] / 2, np.concatenate([gaps, gaps[-1:]])[rank] / 2
        else:
            known = [thickness[place] for place in here.tolist() if thickness[place]]
            below[here] = above[here] = known[0] / 2 if known and known[0] else ALONE_HALF_GAP_MM
    return below, above


@dataclass(frozen=True)
class Turn:
    """How a plane's pixels become a slice's: transposed first, then flipped."""

    swap: bool = False
    flip_rows: bool = False
    flip_cols: bool = False

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        mask = mask.T if self.swap else mask
        return mask[:: -1 if self.flip_rows else 1, :: -1 if self.flip_cols else 1]


def corners(affine: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """(4, 3) LPS mm: centres of a plane's corner pixels (0, 0), (0, last), (last, 0), (last, last) as (row, col)."""
    index = np.array([(0, 0, 0, 1), (cols - 1, 0, 0, 1), (0, rows - 1, 0, 1), (cols - 1, rows - 1, 0, 1)], np.float64)
    return (index @ affine.T)[:, :3]


def parallel(planes: SlicePlanes, at: int, affine: np.ndarray) -> bool:
    """Whether a plane is cut as the slice is."""
    across = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(across)
    return bool(length > 0 and np.linalg.norm(np.cross(across / length, planes.normal[at])) <= PARALLEL)


def turn_onto(planes: SlicePlanes, at: int, affine: np.ndarray, rows: int, cols: int, named: bool) -> Turn | Fault:
    """How a plane of rows x cols pixels lies on slice ``at``.

    affine : (4, 4), (col, row, 0, 1) of the plane to LPS mm
    named : the plane names this slice: then half the local gap and half a pixel are forgiven, else `SAME_GRID`
    Returns LABEL_GEOMETRY where it lies elsewhere, LABEL_SIZE where grids agree but not their sizes.
    """
    index = planes.to_index(at, corners(affine, rows, cols))
    if not np.isfinite(index).all():
        return "LABEL_GEOMETRY"
    off = index[:, 2]
    limit = SAME_GRID * 2 * min(planes.below[at], planes.above[at])
    if not (planes.reaches(at, off) if named else np.abs(off).max() <= limit):
        return "LABEL_GEOMETRY"
    size = tuple(planes.size[at].tolist())
    exact: Turn | None = None
    for swap in (False, True):
        for flip_rows in (False, True):
            for flip_cols in (False, True):
                turn = Turn(swap, flip_rows, flip_cols)
                if exact is None and np.abs(index[:, :2] - _turned_corners(turn, rows, cols)).max() <= SAME_GRID:
                    exact = turn
    if exact is not None:
        return exact if ((cols, rows) if exact.swap else (rows, cols)) == size else "LABEL_SIZE"
    if named and (rows, cols) == size and np.abs(index[:, :2] - _turned_corners(Turn(), rows, cols)).max() <= HALF_PIXEL:
        return Turn()
    return "LABEL_GEOMETRY" if (rows, cols) == size else "LABEL_SIZE"


def off_mm(planes: SlicePlanes, at: int, affine: np.ndarray, rows: int, cols: int) -> float:
    """How far the corner pixels of a plane of rows x cols lie from those of slice ``at``, at most; off its plane alone where sizes differ."""
    index = planes.to_index(at, corners(affine, rows, cols))
    across = np.zeros((4, 2))
    if (rows, cols) == tuple(planes.size[at].tolist()):
        across = (index[:, :2] - _turned_corners(Turn(), rows, cols)) * planes.spacing[at]
    return float(np.hypot(np.hypot(across[:, 0], across[:, 1]), index[:, 2]).max())


def _turned_corners(turn: Turn, rows: int, cols: int) -> np.ndarray:
    """(4, 2) column and row on the slice of the corners that `corners` gives."""
    found = []
    for row, col in ((0, 0), (0, cols - 1), (rows - 1, 0), (rows - 1, cols - 1)):
        at_row, at_col, n_rows, n_cols = (col, row, cols, rows) if turn.swap else (row, col, rows, cols)
        found.append((n_cols - 1 - at_col if turn.flip_cols else at_col, n_rows - 1 - at_row if turn.flip_rows else at_row))
    return np.array(found, np.float64)


@dataclass(frozen=True)
class Volume:
    """Slices of one series at even steps: (col, row, k) to LPS mm, and the slices at each k (several where positions repeat)."""

    affine: np.ndarray
    shape: tuple[int, int, int]
    at: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, planes: SlicePlanes, part: str | None) -> Volume | None:
        """None where the slices of the part have no even grid within `SAME_GRID` voxels."""
        here = np.flatnonzero((planes.part == part) & np.isfinite(planes.below))
        if here.size < 2:
            return None
        first = int(here[0])
        position = planes.origin[here] @ planes.normal[first]
        order = here[np.argsort(position, kind="stable")]
        new = np.concatenate([[True], np.diff(np.sort(position)) > SAME_SLICE_MM])
        rank = np.cumsum(new) - 1
        origins = planes.origin[order][new]
        if len(origins) < 2:
            return None
        step = (origins[-1] - origins[0]) / (len(origins) - 1)
        affine = np.eye(4)
        affine[:3, 0] = planes.along_cols[first] * planes.spacing[first, 0]
        affine[:3, 1] = planes.along_rows[first] * planes.spacing[first, 1]
        affine[:3, 2], affine[:3, 3] = step, origins[0]
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
            return None
        index = np.linalg.solve(affine[:3, :3], (planes.origin[order] - origins[0]).T).T
        if np.abs(index - np.stack([0 * rank, 0 * rank, rank], axis=1)).max() > SAME_GRID:
            return None
        rows, cols = planes.size[first].tolist()
        at = tuple(tuple(order[rank == k].tolist()) for k in range(len(origins)))
        return cls(affine, (len(origins), rows, cols), at)

    def voxels(self, affine: np.ndarray, mask: np.ndarray) -> np.ndarray | Fault:
        """(m, 3) int64 k, row, col of the plane's pixels that are set, for a plane that cuts the volume along any of its axes."""
        rows, cols = mask.shape
        index = np.linalg.solve(self.affine[:3, :3], (corners(affine, rows, cols) - self.affine[:3, 3]).T).T
        whole = np.round(index)
        if not np.isfinite(index).all() or np.abs(index - whole).max() > SAME_GRID:
            return "LABEL_GEOMETRY"
        along_col = (whole[1] - whole[0]) / max(cols - 1, 1)
        along_row = (whole[2] - whole[0]) / max(rows - 1, 1)
        if not (cols == 1 or _unit(along_col)) or not (rows == 1 or _unit(along_row)):
            return "LABEL_GEOMETRY"
        if (whole < 0).any() or (whole >= np.array(self.shape)[::-1]).any():
            return "LABEL_SIZE"
        row, col = np.nonzero(mask)
        found = whole[0] + col[:, None] * along_col + row[:, None] * along_row
        return found[:, ::-1].astype(np.int64)


def _unit(step: np.ndarray) -> bool:
    """Exactly one axis by exactly one voxel."""
    return sorted(np.abs(step).tolist()) == [0.0, 0.0, 1.0]
