"""Shapes to pixels: a pixel belongs to a region if its centre does.

Everything becomes `Spans`: half-open runs of pixels in a row, each owned by a shape. Polygons are filled even-odd over all rings of their
owner (holes, key-holes as drawn, XOR of contours that share an owner); spans of different owners are united. Any number of polygons costs
one pass, whose only loop is numpy's.

Ties are half-open: a centre on a left or upper edge is inside, on a right or lower edge outside, so that regions that share an edge share no
pixel. RTSTRUCT differs: points on the contour are inside (PS3.3 C.8.8.6.3); `on_contour` adds them. A point labels the pixel that contains
it. A line labels, one pixel wide and 8-connected, the pixel that contains it at each pixel centre of its longer axis, and those of its ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ON_CONTOUR_PX = 1e-3  # nearer to a contour than this is on it: writers round LPS to 1e-4 mm (DS has 16 characters), pixels are >= 0.1 mm


@dataclass(frozen=True)
class Spans:
    """Runs of pixels: ``row``, columns ``col0`` to ``col1`` (half-open), of shape ``owner``; four int64 arrays, sorted by owner."""

    owner: np.ndarray
    row: np.ndarray
    col0: np.ndarray
    col1: np.ndarray

    def __len__(self) -> int:
        return len(self.owner)

    def part(self, where: slice | np.ndarray) -> Spans:
        return Spans(self.owner[where], self.row[where], self.col0[where], self.col1[where])


@dataclass(frozen=True)
class Edges:
    """Directed edges (x1, y1) -> (x2, y2) of shape ``owner``; float64 arrays, one frame of coordinates."""

    owner: np.ndarray
    x1: np.ndarray
    y1: np.ndarray
    x2: np.ndarray
    y2: np.ndarray

    def part(self, where: slice | np.ndarray) -> Edges:
        return Edges(self.owner[where], self.x1[where], self.y1[where], self.x2[where], self.y2[where])


def ring_edges(rings: list[np.ndarray], owner: int = 0) -> Edges:
    """Edges of rings of (n, 2) points (x, y), each closed from its last point to its first."""
    first = np.concatenate([np.asarray(ring, np.float64) for ring in rings])
    second = np.concatenate([np.roll(np.asarray(ring, np.float64), -1, axis=0) for ring in rings])
    return Edges(np.full(len(first), owner), first[:, 0], first[:, 1], second[:, 0], second[:, 1])


@dataclass(frozen=True)
class Runs:
    """Insides of shapes along rows of pixel centres, before columns are chosen: from ``x0`` to ``x1`` (half-open); sorted by owner, row, x."""

    owner: np.ndarray
    row: np.ndarray
    x0: np.ndarray
    x1: np.ndarray

    def on(self, xs: np.ndarray) -> Spans:
        """The pixels whose centres, at the ascending ``xs``, lie in the runs."""
        if not len(xs):
            return Spans(*(np.zeros(0, np.int64) for _ in range(4)))
        near = np.flatnonzero((self.x1 > xs[0]) & (self.x0 <= xs[-1]))
        col0, col1 = np.searchsorted(xs, self.x0[near], "left"), np.searchsorted(xs, self.x1[near], "left")
        some = np.flatnonzero(col1 > col0)
        near = near[some]
        return Spans(self.owner[near], self.row[near], col0[some], col1[some])


def runs(edges: Edges, ys: np.ndarray) -> Runs:
    """Where the rows of centres at ``ys`` (ascending) lie inside the shapes, even-odd per owner. ``edges`` must be closed rings."""
    down = edges.y1 <= edges.y2
    upper_y, lower_y = np.where(down, edges.y1, edges.y2), np.where(down, edges.y2, edges.y1)
    first, stop = np.searchsorted(ys, upper_y, "left"), np.searchsorted(ys, lower_y, "left")
    crossing = np.flatnonzero(stop > first)
    count = (stop - first)[crossing]
    edge = np.repeat(crossing, count)
    row = ranges(first[crossing], count)
    upper_x, lower_x = np.where(down, edges.x1, edges.x2)[edge], np.where(down, edges.x2, edges.x1)[edge]
    x = upper_x + (ys[row] - upper_y[edge]) * (lower_x - upper_x) / (lower_y - upper_y)[edge]
    line = edges.owner[edge].astype(np.int64) * len(ys) + row
    order = np.lexsort((x, line))  # a closed ring crosses each row an even number of times: sorted crossings pair up to runs
    owner, row = np.divmod(line[order[0::2]], max(len(ys), 1))
    return Runs(owner, row, x[order[0::2]], x[order[1::2]])


def fill(edges: Edges, xs: np.ndarray, ys: np.ndarray) -> Spans:
    """The pixels whose centre lies inside, even-odd per owner.

    edges : closed rings, in the frame of ``xs`` and ``ys``
    xs, ys : (cols,), (rows,) float64, ascending      coordinates of the pixel centres of the window; nothing else is rasterised
    Crossings are computed from the shape's own coordinates and compared with the centres themselves, so that two windows over one grid
    agree in every pixel: the tiles of a slide sum to the whole.
    """
    return runs(edges, ys).on(xs)


def paint(spans: Spans) -> tuple[int, int, np.ndarray]:
    """Union of the spans: (row0, col0, mask), the (rows, cols) bool mask cropped to its own box; an empty (0, 0) mask without spans."""
    if not len(spans):
        return 0, 0, np.zeros((0, 0), bool)
    row0, col0 = int(spans.row.min()), int(spans.col0.min())
    rows, cols = int(spans.row.max()) - row0 + 1, int(spans.col1.max()) - col0
    step = np.zeros((rows, cols + 1), np.int32)
    row = spans.row - row0
    np.add.at(step, (row, spans.col0 - col0), 1)
    np.add.at(step, (row, spans.col1 - col0), -1)
    return row0, col0, np.cumsum(step, axis=1, dtype=np.int32)[:, :cols] > 0


def canvas(spans: Spans, rows: int, cols: int) -> np.ndarray:
    """Union of the spans as a (rows, cols) bool mask."""
    mask = np.zeros((rows, cols), bool)
    row0, col0, crop = paint(spans)
    mask[row0 : row0 + crop.shape[0], col0 : col0 + crop.shape[1]] = crop
    return mask


def polygon_mask(rings: list[np.ndarray], rows: int, cols: int, closed: bool = False) -> np.ndarray:
    """(rows, cols) bool mask of one polygon with holes: rings of (n, 2) points (x, y), pixel centres at whole numbers.

    closed : points on the contour are inside (RTSTRUCT)
    """
    edges = ring_edges(rings)
    spans = fill(edges, np.arange(cols, dtype=np.float64), np.arange(rows, dtype=np.float64))
    return canvas(concat([spans, on_contour(edges, rows, cols)]) if closed else spans, rows, cols)


def on_contour(edges: Edges, rows: int, cols: int) -> Spans:
    """Pixels whose centre lies on an edge, within `ON_CONTOUR_PX`. Pixel centres at whole numbers."""
    owner, row, col, off = _walk(edges, rows, cols, ON_CONTOUR_PX)
    return _dots(owner, row, col, (off <= ON_CONTOUR_PX), rows, cols)


def lines(edges: Edges, rows: int, cols: int) -> Spans:
    """Pixels of open or closed chains of edges, one pixel wide (rule in the module's docstring). Pixel centres at whole numbers."""
    owner, row, col, _ = _walk(edges, rows, cols, 0.0)
    ends_x, ends_y = np.concatenate([edges.x1, edges.x2]), np.concatenate([edges.y1, edges.y2])
    ends = points(np.concatenate([edges.owner, edges.owner]), ends_x, ends_y, rows, cols)
    return concat([_dots(owner, row, col, np.ones(len(row), bool), rows, cols), ends])


def points(owner: np.ndarray, x: np.ndarray, y: np.ndarray, rows: int, cols: int) -> Spans:
    """The pixel that contains each point; pixel centres at whole numbers, a point between two pixels lies in the right or lower one."""
    return _dots(owner, np.floor(y + 0.5), np.floor(x + 0.5), np.ones(len(x), bool), rows, cols)


def concat(parts: list[Spans]) -> Spans:
    """All spans, sorted by owner."""
    owner = np.concatenate([part.owner for part in parts])
    order = np.argsort(owner, kind="stable")
    pick = [np.concatenate([getattr(part, name) for part in parts])[order] for name in ("row", "col0", "col1")]
    return Spans(owner[order], *pick)


def ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... (count[0] of them), start[1], ...: int64."""
    total = int(count.sum())
    begin = np.cumsum(count) - count
    return np.arange(total, dtype=np.int64) + np.repeat(start - begin, count)


def _walk(edges: Edges, rows: int, cols: int, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(owner, row, col, off): per edge and whole number along its longer axis the nearest pixel across, and how far its centre is off."""
    steep = np.abs(edges.y2 - edges.y1) >= np.abs(edges.x2 - edges.x1)
    found = []
    for along_y in (True, False):
        part = edges.part(np.flatnonzero(steep == along_y))
        a1, b1, a2, b2 = (part.y1, part.x1, part.y2, part.x2) if along_y else (part.x1, part.y1, part.x2, part.y2)
        size = rows if along_y else cols
        low, high = np.minimum(a1, a2), np.maximum(a1, a2)
        first = np.ceil(np.clip(low - reach, 0, size)).astype(np.int64)
        stop = np.floor(np.clip(high + reach, -1, size - 1)).astype(np.int64) + 1
        count = np.maximum(stop - first, 0)
        edge = np.repeat(np.arange(len(a1)), count)
        at = ranges(first, count)
        nearest = np.clip(at, low[edge], high[edge])
        length = (a2 - a1)[edge]
        share = np.divide(nearest - a1[edge], length, out=np.zeros(len(edge)), where=length != 0)
        across = b1[edge] + share * (b2 - b1)[edge]
        pixel = np.floor(across + 0.5)
        row, col = (at, pixel) if along_y else (pixel, at)
        found.append((part.owner[edge], row, col, np.abs(across - pixel)))
    merged = [np.concatenate(pair) for pair in zip(*found, strict=True)]
    return merged[0], merged[1], merged[2], merged[3]


def _dots(owner: np.ndarray, row: np.ndarray, col: np.ndarray, keep: np.ndarray, rows: int, cols: int) -> Spans:
    keep = np.flatnonzero(keep & (row >= 0) & (row < rows) & (col >= 0) & (col < cols))
    owner, row, col = owner[keep], row[keep].astype(np.int64), col[keep].astype(np.int64)
    order = np.argsort(owner, kind="stable")
    return Spans(owner[order], row[order], col[order], col[order] + 1)
