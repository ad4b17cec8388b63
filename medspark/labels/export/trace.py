"""A mask to polygons along the borders of its pixels: rasterised again by the pixel-centre rule they give the identical mask.

The lattice points where an outline turns are found stripe by stripe; in each lattice row (column) they pair up to the horizontal (vertical)
edges, and walking the two kinds in turn closes the rings. A ring that meets itself at a point is cut there, so that every ring is simple and
pixels that touch at a corner alone are polygons of their own. Memory grows with the outline's corners, not with the area.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from medspark.errors import Rejected

MAX_CORNERS = 1 << 21  # of one object: a GeoJSON of 60 MB, and half a GB while it is traced; what is more ragged is noise, not a region


@dataclass(frozen=True)
class Polygon:
    """Rings of (n, 2) int64 lattice points (x, y), not closed; clockwise on the screen outside, the other way round for holes."""

    outer: np.ndarray
    holes: tuple[np.ndarray, ...] = ()


def trace(stripes: Iterable[np.ndarray]) -> list[Polygon]:
    """The polygons of a mask given from the top in stripes (n, cols) of bool; (0, 0) is the corner of its first pixel.

    Raises Rejected(TOO_LARGE) above `MAX_CORNERS`.
    """
    rings = list(_rings(*_corners(stripes)))
    areas = [_area(ring) for ring in rings]
    outer = [number for number, area in enumerate(areas) if area > 0]
    holes = [number for number, area in enumerate(areas) if area < 0]
    inside: dict[int, list[np.ndarray]] = {}
    for hole, owner in zip(holes, _owners([rings[number] for number in outer], [rings[number] for number in holes]), strict=True):
        inside.setdefault(outer[owner], []).append(rings[hole])
    return [Polygon(rings[number], tuple(inside.get(number, ()))) for number in outer]


def _corners(stripes: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, col, whether the pixel to the lower right is inside) of each turn, by row and column; points where two outlines meet stand twice."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    above: np.ndarray | None = None
    row0 = count = 0
    for stripe in stripes:
        padded = np.pad(stripe, ((0, 0), (1, 1)))
        if above is None:
            above = np.zeros((1, padded.shape[1]), bool)
        found.append(_turns(np.concatenate([above, padded]), row0))
        above, row0 = padded[-1:], row0 + len(stripe)
        count += len(found[-1][0])
        if count > MAX_CORNERS:
            raise Rejected("TOO_LARGE", f"an outline with more than {MAX_CORNERS} corners; use png or coco")
    if above is not None:
        found.append(_turns(np.concatenate([above, np.zeros_like(above)]), row0))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool)
    row, col, inside = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return row, col, inside


def _turns(pixels: np.ndarray, row0: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the lattice rows between the rows of ``pixels`` (a column of nothing on either side)."""
    a, b, c, d = pixels[:-1, :-1], pixels[:-1, 1:], pixels[1:, :-1], pixels[1:, 1:]
    times = (a ^ b ^ c ^ d).astype(np.int8) + 2 * ((a == d) & (b == c) & (a != b)).astype(np.int8)
    row, col = np.nonzero(times)
    again = times[row, col]
    return np.repeat(row, again) + row0, np.repeat(col, again), np.repeat(d[row, col], again)


def _rings(row: np.ndarray, col: np.ndarray, inside: np.ndarray) -> Iterator[np.ndarray]:
    """Simple rings, the inside to the right of their direction."""
    count = len(row)
    across = np.arange(count) ^ 1  # by row and column, corners pair up to the horizontal edges
    # Where two outlines meet at a point the walk turns around the pixels inside: of the two corners there, the one at the left end of its
    # edge takes the edge downwards if the lower right pixel is inside, else the one upwards.
    order = np.lexsort((np.where(inside, np.arange(count), -np.arange(count)), row, col))
    down = np.empty(count, np.int64)
    down[order] = order[np.arange(count) ^ 1]  # by column and row, to the vertical ones
    horizontal, vertical = across.tolist(), down.tolist()
    xs, ys = col.tolist(), row.tolist()
    seen = bytearray(count)
    for left in range(0, count, 2):  # the left end of a horizontal edge: below it the lower right pixel of that corner
        start = left if inside[left] else left + 1
        if seen[start]:
            continue
        chain: list[tuple[int, int]] = []
        place: dict[tuple[int, int], int] = {}
        at = start
        while not seen[at]:
            for corner in (at, horizontal[at]):
                seen[corner] = 1
                point = (xs[corner], ys[corner])
                if point in place:
                    first = place[point]
                    yield np.array(chain[first:], np.int64)
                    for gone in chain[first:]:
                        del place[gone]
                    del chain[first:]
                place[point] = len(chain)
                chain.append(point)
            at = vertical[horizontal[at]]
        yield np.array(chain, np.int64)


def _area(ring: np.ndarray) -> int:
    """Twice the area; positive where the ring runs clockwise on the screen (y downwards)."""
    x, y = ring[:, 0], ring[:, 1]
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def _owners(outer: list[np.ndarray], holes: list[np.ndarray]) -> list[int]:
    """The smallest outer ring around each hole."""
    if not holes:
        return []
    import shapely

    polygons = [shapely.Polygon(ring) for ring in outer]
    area = shapely.area(polygons)
    # The pixel to the lower right of a hole's topmost leftmost corner lies in the hole itself, not in an island within it.
    points = []
    for ring in holes:
        first = ring[np.lexsort((ring[:, 0], ring[:, 1]))[0]]
        points.append(shapely.Point(first[0] + 0.5, first[1] + 0.5))
    hole, around = shapely.STRtree(polygons).query(points, predicate="within")
    owners = np.full(len(holes), -1)
    for number, candidate in zip(hole.tolist(), around.tolist(), strict=True):
        if owners[number] < 0 or area[candidate] < area[owners[number]]:
            owners[number] = candidate
    return [int(owner) for owner in owners]
