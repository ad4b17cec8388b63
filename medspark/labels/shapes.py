"""The rows of ``regions`` as flat arrays: a million shapes without a million Python objects.

Arrow already keeps all points of a column in one buffer; `Shapes` only adds where each ring and each region begins and its box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from medspark.labels.raster import Edges, ranges


@dataclass(frozen=True)
class Shapes:
    """n regions with m rings and p points.

    x, y, z : (p,) float64         z is NaN where the region has none
    ring_start : (m + 1,) int64    first point of each ring
    region_start : (n + 1,) int64  first ring of each region
    box : (n, 4) float64           x0, y0, x1, y1; NaN for a region without points or with one that is not finite
    geometry : (n,) object         polygon, point, line, box or contour
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    ring_start: np.ndarray
    region_start: np.ndarray
    box: np.ndarray
    geometry: np.ndarray

    def __len__(self) -> int:
        return len(self.geometry)

    @classmethod
    def of(cls, regions: pa.Table) -> Shapes:
        """From a table with the columns ``rings`` and ``geometry`` of ``regions``."""
        rings = _array(regions.column("rings"))
        region_start = np.concatenate([[0], np.cumsum(_lengths(rings))])
        inner = rings.flatten()
        ring_start = np.concatenate([[0], np.cumsum(_lengths(inner))])
        points = inner.flatten()
        x, y, z = (points.field(name).to_numpy(zero_copy_only=False).astype(np.float64, copy=False) for name in "xyz")
        geometry = np.array(regions.column("geometry").to_pylist(), object)
        point_start = ring_start[region_start]
        return cls(x, y, z, ring_start, region_start, _boxes(x, y, point_start), geometry)

    def n_points(self) -> np.ndarray:
        """(n,) points of each region, all rings together."""
        return np.diff(self.ring_start[self.region_start])

    def points_of(self, region: int) -> np.ndarray:
        """(k, 3) points x, y, z of all rings of one region."""
        part = slice(self.ring_start[self.region_start[region]], self.ring_start[self.region_start[region + 1]])
        return np.stack([self.x[part], self.y[part], self.z[part]], axis=1)

    def rings_of(self, region: int) -> list[np.ndarray]:
        """The (k, 3) rings of one region."""
        first, stop = self.region_start[region], self.region_start[region + 1]
        cuts = self.ring_start[first + 1 : stop] - self.ring_start[first]
        return np.split(self.points_of(region), cuts) if stop > first else []

    def edges(self, regions: np.ndarray, owner: np.ndarray, closed: bool = True) -> Edges:
        """Edges of the given regions, each under its ``owner``; ``closed`` joins each ring's last point to its first."""
        ring_count = np.diff(self.region_start)[regions]
        ring = ranges(self.region_start[regions], ring_count)
        count = np.diff(self.ring_start)[ring]
        start = ranges(self.ring_start[ring], count)
        end = start + 1
        last = np.cumsum(count) - 1
        filled = count > 0
        end[last[filled]] = self.ring_start[ring][filled]
        owners = np.repeat(np.repeat(owner, ring_count), count)
        if not closed:
            keep = np.ones(len(start), bool)
            keep[last[filled & (count > 1)]] = False  # a chain of one point keeps its edge of no length
            start, end, owners = start[keep], end[keep], owners[keep]
        return Edges(owners, self.x[start], self.y[start], self.x[end], self.y[end])


def expand_boxes(regions: pa.Table) -> pa.Table:
    """The table with boxes of two corners written as rings of four points; no other shape becomes Python objects."""
    boxes = np.flatnonzero(np.array(regions.column("geometry").to_pylist(), object) == "box")
    rings = _array(regions.take(pa.array(boxes)).column("rings")) if len(boxes) else None
    if rings is None:
        return regions
    alone = np.flatnonzero(_lengths(rings) == 1)
    alone = alone[_lengths(rings.take(pa.array(alone)).flatten()) == 2]
    if not len(alone):
        return regions
    whole = []
    for ((a, b),) in rings.take(pa.array(alone)).to_pylist():
        corners = ((a["x"], a["y"]), (b["x"], a["y"]), (b["x"], b["y"]), (a["x"], b["y"]))
        whole.append([[{"x": x, "y": y, "z": a["z"]} for x, y in corners]])
    of = np.arange(regions.num_rows)
    of[boxes[alone]] = regions.num_rows + np.arange(len(alone))
    both = pa.concat_arrays([_array(regions.column("rings")), pa.array(whole, rings.type)])
    at = regions.schema.get_field_index("rings")
    return regions.set_column(at, regions.schema.field(at), both.take(pa.array(of)))


def _array(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        return pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], whole.type)
    return whole


def _lengths(lists: pa.Array) -> np.ndarray:
    import pyarrow.compute as pc

    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _boxes(x: np.ndarray, y: np.ndarray, start: np.ndarray) -> np.ndarray:
    box = np.full((len(start) - 1, 4), np.nan)
    some = np.flatnonzero(np.diff(start) > 0)
    if some.size:
        at = start[:-1][some]  # regions without points take no room: the next start is the end of this one
        columns = (np.minimum.reduceat(x, at), np.minimum.reduceat(y, at), np.maximum.reduceat(x, at), np.maximum.reduceat(y, at))
        box[some] = np.stack(columns, axis=1)
        box[some[~np.isfinite(box[some]).all(axis=1)]] = np.nan
    return box
