"""Annotations of a series, or of a single image, to rows of ``labels`` on its slices.

Truth is taken whole or not at all: where one contour or plane of a structure does not lie where it says, the structure is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.config import Config
from medspark.keys import Ids
from medspark.labels.label_rows import FLUSH_ROWS, Groups, LabelRows, Piece, column, settle, unite
from medspark.labels.shapes import Shapes, expand_boxes
from medspark.labels.slice_geometry import SlicePlanes
from medspark.labels.slice_images import Images, Structures
from medspark.labels.slice_masks import SliceMasks
from medspark.labels.slice_shapes import place, rasterise
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import SourceFile

Values = Callable[[list[str]], Mapping[str, np.ndarray]]
SLICES_AT_ONCE = 16  # slices whose pixels are held together: 8 MB of 512-px CT
FLUSH_SLICE_ROWS = FLUSH_ROWS // 4  # masks of slices are larger than those of tiles
BODY_SPACING = frozenset({"PixelSpacing", "us_region", "nifti"})
"""Sources of a spacing that is the body's; the others are the detector's or the film's, and give no area."""


def link_slices(
    series: Mapping[str, Any] | None,
    slices: pa.Table,
    only: set[str] | None,
    regions: pa.Table,
    planes: Iterator[pa.Table],
    values: Values,
    source: SourceFile,
    ids: Ids,
    settings: Config,
    now: datetime,
) -> Iterator[Rows | Rejection]:
    """Rows of ``labels`` for the images of one series instance, or for photos.

    series : row of ``series``; None for photos
    slices : rows of ``slices`` of all its parts, or of ``photos``
    only : write rows for these images alone (slices that came late); geometry is that of all
    regions, planes : those of ``source`` that belong here; what names an instance that is not among ``slices`` is passed over, it may come
    values : stored arrays of the given images, before rescale
    A label without pixels goes to the images that it names one by one, else to the series (written once, with the series' first slices).
    Rejections: one per structure, LABEL_GEOMETRY or LABEL_SIZE; a rejected structure has no rows.
    """
    regions = expand_boxes(regions)
    rows, groups, images, wrong = LabelRows(ids, source, now), Groups(), Images(slices), Structures()
    geometry = SlicePlanes.of(slices, series.get("orientation") if series else None)
    drawn = place(regions, groups, images, geometry, wrong, settings.labels.rtstruct_nested)
    masks = SliceMasks(groups, images, geometry, wrong)
    masks.read(planes)
    owners = _owners(slices)
    _whole_images(series, regions, groups, images, owners, only, rows)
    wanted: dict[int, set[int]] = {}
    for group, at in {*drawn.drawings, *masks.keys()}:
        if not wrong.bad(groups[group]) and (only is None or images.ids[at] in only):
            wanted.setdefault(at, set()).add(group)
    alone = len(images.ids) == 1
    order = sorted(wanted)
    value_of = Rescale(slices)
    pixel_mm2 = _pixel_mm2(slices)
    for start in range(0, len(order), SLICES_AT_ONCE):
        found: list[tuple[int, dict[int, Piece]]] = []
        for at in order[start : start + SLICES_AT_ONCE]:
            size = tuple(geometry.size[at].tolist())
            pieces: dict[int, Piece] = {}
            for group in sorted(wanted[at]):
                parts = [masks.piece(group, at)]
                if (group, at) in drawn.drawings:
                    parts.append(rasterise(drawn.drawings[group, at], *size))
                pieces[group] = unite([part for part in parts if part is not None], *size)
            pieces = settle(pieces, groups, settings.labels.overlap, *size)
            # An empty mask says that something is absent from a single image; on a slice of a larger truth it says nothing.
            kept = {group: piece for group, piece in pieces.items() if piece.mask.any() or (alone and (group, at) not in drawn.drawings)}
            if kept:
                found.append((at, kept))
        arrays = values([images.ids[at] for at, _ in found]) if found else {}
        for at, pieces in found:
            stored = arrays.get(images.ids[at])
            array = None if stored is None else value_of(at, stored)
            n_rows, n_cols = geometry.size[at].tolist()
            for group in sorted(pieces):
                size = (n_rows, n_cols)
                rows.add_mask(groups[group], images.ids[at], owners[at], pieces[group], size, n_rows * n_cols, pixel_mm2[at], array)
        yield from rows.take(FLUSH_SLICE_ROWS)
    yield from rows.take()
    yield from wrong.rejections(source)


def _owners(slices: pa.Table) -> list[dict[str, Any]]:
    """dataset, subject_key, parent_id of each image: its series, or a photo's source."""
    parent = "series_id" if "series_id" in slices.column_names else "source_id"
    names = ("dataset", "subject_key", parent)
    return [
        {"dataset": dataset, "subject_key": subject, "parent_id": of}
        for dataset, subject, of in zip(*(column(slices, name) for name in names), strict=True)
    ]


def _whole_images(
    series: Mapping[str, Any] | None,
    regions: pa.Table,
    groups: Groups,
    images: Images,
    owners: list[dict[str, Any]],
    only: set[str] | None,
    rows: LabelRows,
) -> None:
    """Rows for labels without pixels, each target and group once."""
    empty = Shapes.of(regions).n_points() == 0
    if not empty.any():
        return
    part = regions.filter(pa.array(empty))
    group_of, refs = groups.add(part), column(part, "ref_image")
    seen: set[tuple[int, str]] = set()
    for number, ref in zip(group_of.tolist(), refs, strict=True):
        on = images.of(ref)
        by_name = series is None or ref.startswith("sop:") or len(on) == 1 < len(images.ids)
        targets = [("image", images.ids[at], owners[at]) for at in on if only is None or images.ids[at] in only]
        if not by_name:
            members: dict[str, list[int]] = {}
            for at in on:
                members.setdefault(owners[at]["parent_id"], []).append(at)
            targets = [
                ("series", series_id, owners[of[0]])
                for series_id, of in members.items()
                if only is None or {images.ids[at] for at in of} <= only
            ]
        for target, target_id, owner in targets:
            if (number, target_id) not in seen:
                seen.add((number, target_id))
                rows.add(groups[number], target, target_id, owner)


def _pixel_mm2(slices: pa.Table) -> list[float | None]:
    """Area of a pixel of each image; None where its spacing is not the body's."""
    pairs = zip(column(slices, "pixel_spacing_mm"), column(slices, "pixel_spacing_source"), strict=True)
    return [pixel_mm2(spacing, source) for spacing, source in pairs]


def pixel_mm2(spacing_mm: Sequence[float] | None, source: str | None) -> float | None:
    """Area of a pixel; None where its spacing is not known, or not the body's."""
    return spacing_mm[0] * spacing_mm[1] if spacing_mm and source in BODY_SPACING else None


class Rescale:
    """Stored arrays to values, by each slice's own slope and intercept or modality LUT."""

    def __init__(self, slices: pa.Table) -> None:
        self._slope, self._intercept = column(slices, "rescale_slope"), column(slices, "rescale_intercept")
        self._lut = column(slices, "modality_lut")

    def __call__(self, at: int, stored: np.ndarray) -> np.ndarray:
        return rescaled(stored, self._slope[at], self._intercept[at], self._lut[at])


def rescaled(stored: np.ndarray, slope: float | None, intercept: float | None, lut: bytes | None) -> np.ndarray:
    """Values of one slice. Colour stays as it is: `measures` makes its luminance."""
    if stored.ndim == 3 or (lut is None and slope is None and intercept is None):
        return stored
    from medspark.series.rescale import to_values, unpack_lut

    if lut is not None:
        entries, first = unpack_lut(lut)
        return to_values(stored, lut=entries, lut_first=first)
    return to_values(stored, slope, intercept)
