"""Drawn truth on slices: which contour lies on which slice, and its pixels.

Shapes with a z are in LPS mm and must lie in the plane of a slice; shapes without are in pixels of their image, (0, 0) the corner of the
first one (SCOORD, COCO). Only RTSTRUCT's contours (geometry ``contour``) hold the points that they run through.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from medspark.labels.label_rows import Groups, Piece, column
from medspark.labels.raster import Edges, Spans, concat, fill, lines, on_contour, points
from medspark.labels.regions import MAX_COORDINATE
from medspark.labels.shapes import Shapes
from medspark.labels.slice_geometry import SlicePlanes
from medspark.labels.slice_images import Images, Structures

XOR = "CLOSEDPLANAR_XOR"
MIN_CORNERS = {"point": 1, "line": 1}  # of any other geometry fewer than three enclose nothing


@dataclass(frozen=True)
class Drawing:
    """One shape on one image, in its pixels with centres at whole numbers. ``xor``: contours of a group that cancel each other."""

    rings: tuple[np.ndarray, ...]
    geometry: str
    xor: bool


@dataclass
class Drawn:
    """(group, image) -> its drawings, and image -> its groups."""

    drawings: dict[tuple[int, int], list[Drawing]] = field(default_factory=dict)

    def groups_of(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for group, image in self.drawings:
            found.setdefault(image, []).append(group)
        return found


def place(regions: pa.Table, groups: Groups, images: Images, planes: SlicePlanes, wrong: Structures, nested: str) -> Drawn:
    """Every shape on its image; what lies nowhere is counted in ``wrong``.

    nested : "fill": contours of a structure are united unless they say CLOSEDPLANAR_XOR; "xor": contours within others are holes
    """
    shapes, group_of = Shapes.of(regions), groups.add(regions)
    properties, refs = column(regions, "properties"), column(regions, "ref_image")
    drawn = Drawn()
    for region in np.flatnonzero(shapes.n_points() > 0).tolist():
        group = groups[int(group_of[region])]
        ref, geometry = refs[region], shapes.geometry[region]
        candidates = images.of(ref)
        if ref.startswith("sop:") and not candidates:
            continue  # its image is not here, and may still come
        wrong.count(group)
        rings = shapes.rings_of(region)
        flat = np.isnan(rings[0][:, 2]).all()
        every = np.concatenate(rings)
        corners = min(len(np.unique(ring, axis=0)) for ring in rings)
        if not (np.abs(every[:, : 2 if flat else 3]) <= MAX_COORDINATE).all() or corners < MIN_CORNERS.get(geometry, 3):
            wrong.fault(group, "LABEL_GEOMETRY")
            continue
        if flat:
            if len(candidates) != 1:  # in pixels of which of them?
                wrong.fault(group, "LABEL_GEOMETRY")
                continue
            on, index = candidates, [ring[:, :2] - 0.5 for ring in rings]
        else:
            on = planes.nearest(every, candidates)
            off = [planes.to_index(at, every)[:, 2] for at in on]
            if not on or not all(planes.reaches(at, one) for at, one in zip(on, off, strict=True)):
                wrong.fault(group, "LABEL_GEOMETRY", max((float(np.abs(one).max()) for one in off), default=float("nan")))
                continue
        said = dict(properties[region] or ()).get("contour_geometric_type")
        xor = geometry == "contour" and (said == XOR or nested == "xor")
        for at in on:
            if not flat:
                index = [planes.to_index(at, ring)[:, :2] for ring in rings]
            drawn.drawings.setdefault((int(group_of[region]), at), []).append(Drawing(tuple(index), geometry, xor))
    return drawn


def rasterise(drawings: list[Drawing], rows: int, cols: int) -> Piece:
    """The union of the drawings of one group on one image of rows x cols; those that say so XORed first."""
    parts: dict[str, list[Edges]] = {"area": [], "contour": [], "line": [], "point": []}
    for number, drawing in enumerate(drawings, start=1):
        kind = drawing.geometry if drawing.geometry in parts else "area"
        parts[kind].append(_edges(drawing, 0 if drawing.xor else number, closed=kind not in ("line", "point")))
    spans: list[Spans] = []
    filled = parts["area"] + parts["contour"]
    if filled:
        spans.append(fill(_join(filled), np.arange(cols, dtype=np.float64), np.arange(rows, dtype=np.float64)))
    if parts["contour"]:
        spans.append(on_contour(_join(parts["contour"]), rows, cols))
    if parts["line"]:
        spans.append(lines(_join(parts["line"]), rows, cols))
    for edges in parts["point"]:
        both = np.concatenate([edges.owner, edges.owner])
        spans.append(points(both, np.concatenate([edges.x1, edges.x2]), np.concatenate([edges.y1, edges.y2]), rows, cols))
    return Piece.of(concat(spans))


def _edges(drawing: Drawing, owner: int, closed: bool) -> Edges:
    begin, end = [], []
    for ring in drawing.rings:
        chain = ring if closed or len(ring) == 1 else ring[:-1]
        begin.append(chain)
        end.append(np.roll(ring, -1, axis=0)[: len(chain)])
    first, second = np.concatenate(begin), np.concatenate(end)
    return Edges(np.full(len(first), owner), first[:, 0], first[:, 1], second[:, 0], second[:, 1])


def _join(parts: list[Edges]) -> Edges:
    return Edges(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("owner", "x1", "y1", "x2", "y2")))
