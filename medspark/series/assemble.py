"""Rows of ``slices`` -> rows of ``series``, with the places of the slices and verdicts on how they lie together. Pure, order-independent.

Used for new series and for those that received late slices alike: give it all slices of the series instances, new and old. It works on
columns and takes many series at once: what is Python costs per series, not per slice, so that the driver of a cluster keeps up with its
tasks.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medspark.series import geometry
from medspark.series.volumes import VOLUME_ATTRIBUTES, tell_volumes
from medspark.tables.catalog import SERIES, SLICES
from medspark.tables.rows import Rows
from medspark.tables.verdicts import SEVERITY, Severity, usable

THICKNESS_MM = 1e-3  # nominal thicknesses that differ by more are mixed: headers print them to 1e-4 mm
UPDATES = ("image_id", "series_id", "t", "k", "position_mm", "verdict", "usable")
"""Columns of `Assembled.slices`."""

NEEDED = (
    "image_id",
    "series_id",
    "dataset",
    "subject_key",
    "study_id",
    "modality",
    "series_instance_id",
    "series_attributes",
    "rows",
    "cols",
    "pixel_spacing_mm",
    "slice_thickness_mm",
    "position_mm",
    "image_position_mm",
    "image_orientation",
    "image_type",
    "temporal_position",
    "cardiac_phase_pct",
    "time_ms",
    "echo_time_ms",
    "b_value",
    "acquisition_number",
    "rescale_slope",
    "rescale_intercept",
    "transfer_syntax",
    "verdict",
)
"""Columns of ``slices`` that are read; nothing else has to be fetched."""

HEADER_COLUMNS = (
    "modality",
    "series_instance_id",
    "frame_of_reference_id",
    "body_part",
    "description",
    "series_number",
    "protocol",
    "site",
    "manufacturer",
    "model_name",
    "kernel",
    "contrast",
    "kvp",
    "tube_current_time_mas",
    "ctdi_vol_mgy",
    "field_strength_t",
    "sequence_name",
    "tr_ms",
    "ti_ms",
    "flip_angle_deg",
    "suv_bw_factor",
    "study_date",
    "patient_position",
)
"""Columns of ``series`` that come from ``slices.series_attributes`` of the slice with the smallest image_id."""


@dataclass(frozen=True)
class Assembled:
    """series : Rows of table ``series``, one per part;  slices : the columns `UPDATES`, one row per slice, by image_id."""

    series: Rows
    slices: pa.Table


SERIES_TYPES = {field.name: field.type for field in SERIES.arrow() if field.name not in ("run_id", "batch_id")}
SLICE_TYPES = {
    "image_id": pa.string(),
    "series_id": pa.string(),
    "t": pa.int32(),
    "k": pa.int32(),
    "position_mm": pa.float64(),
    "verdict": pa.list_(pa.field("element", pa.string())),
    "usable": pa.bool_(),
}


def assemble(slices: pa.Table, overrides: Mapping[str, Severity] | None = None) -> Assembled:
    """The series that ``slices`` form.

    slices : rows of table ``slices`` of whole series instances with all their parts, any order; payload and header_json not needed
    overrides : severities of the config section ``[verdicts]``
    A part is split off where frame of reference, orientation or size differ (``series_id``); SPLIT_ORIENTATION stands for the first two,
    since another frame of reference has other axes. Volumes are told apart only where positions repeat. ``k`` is the rank of the slice's
    position among the distinct ones of its part, so that equal ``k`` of two volumes is one place; where positions repeat without volumes
    it is the rank by (position, image_id).
    """
    table = slices.select([name for name in NEEDED if name in slices.column_names])
    order = pc.sort_indices(table, sort_keys=[("series_id", "ascending"), ("image_id", "ascending")])
    columns = _Columns(table.take(order).combine_chunks())
    splits = _splits(columns)
    records = [_part(columns, part, splits[part], overrides) for part in range(len(columns.starts))]
    series = Rows("series", {name: pa.array([record[name] for record in records], kind) for name, kind in SERIES_TYPES.items()})
    updates = pa.table({name: values.cast(SLICE_TYPES[name]) for name, values in columns.updates(overrides).items()})
    ids = updates.column("image_id")
    if len(ids) > 1 and not pc.all(pc.less_equal(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py():
        updates = updates.take(pc.sort_indices(ids))
    return Assembled(series, updates.select(UPDATES))


class _Columns:
    """Final. Slices by (series_id, image_id) as arrays: what `_part` reads of its rows, and ``t``, ``k``, ``position_mm`` that it fills in.

    starts, stops : (parts,) rows of each part;  first : the row that speaks for each part;  said : what it says about its series
    origin_mm : (n, 3) float64, NaN without ImagePositionPatient;  oriented : (n,) bool, six cosines are there
    """

    def __init__(self, table: pa.Table) -> None:
        self.table, n = table, table.num_rows
        codes = table.column("series_id").combine_chunks().dictionary_encode().indices.to_numpy()
        self.starts = np.flatnonzero(np.diff(codes, prepend=-1)) if n else np.empty(0, np.int64)
        self.stops = np.append(self.starts[1:], n).astype(np.int64) if n else np.empty(0, np.int64)
        self.first: list[dict[str, Any]] = table.take(pa.array(self.starts)).to_pylist()
        self.said: list[dict[str, Any]] = [json.loads(row.get("series_attributes") or "{}") for row in self.first]
        self.origin_mm, self.has_origin = self._vectors("image_position_mm", 3)
        self.orientation, self.oriented = self._vectors("image_orientation", 6)
        self.along_mm, self.has_along = self._numbers("position_mm")
        self.thickness_mm, self.has_thickness = self._numbers("slice_thickness_mm")
        self.rescale = [self._numbers(name) for name in ("rescale_slope", "rescale_intercept")]
        syntax = self._column("transfer_syntax").dictionary_encode()
        self.syntax, self.syntaxes = syntax.indices.fill_null(-1).to_numpy(), syntax.dictionary.to_pylist()
        self.localizer = _holding(self._column("image_type"), lambda values: pc.match_substring(values, "LOCALIZER", ignore_case=True))
        self.t = np.zeros(n, np.int32)
        self.k, self.placed = np.zeros(n, np.int32), np.zeros(n, bool)
        self.position_mm = np.zeros(n)

    def _column(self, name: str) -> pa.Array:
        if name in self.table.column_names:
            return self.table.column(name).combine_chunks().cast(SERIES_OR_SLICE[name])
        return pa.nulls(self.table.num_rows, SERIES_OR_SLICE[name])

    def _numbers(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(values, which of them are there)."""
        column = self._column(name)
        return column.fill_null(0.0).to_numpy(zero_copy_only=False), column.is_valid().to_numpy(zero_copy_only=False)

    def _vectors(self, name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
        """((n, width) float64, which of them are there)."""
        column = self._column(name)
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        there = lengths == width
        found = np.full((len(lengths), width), np.nan)
        flat = column.flatten().to_numpy(zero_copy_only=False)
        found[there] = flat[(np.cumsum(lengths) - lengths)[there, None] + np.arange(width)]
        return found, there

    def updates(self, overrides: Mapping[str, Severity] | None) -> dict[str, pa.Array]:
        """The columns `UPDATES`."""
        severity = {**SEVERITY, **(overrides or {})}
        blocking = pa.array([code for code, said in severity.items() if said == "block"], pa.string())
        verdict = self._column("verdict")
        blocked = _holding(verdict, lambda values: pc.is_in(values, value_set=blocking))
        return {
            "image_id": self._column("image_id"),
            "series_id": self._column("series_id"),
            "t": pa.array(self.t),
            "k": pa.array(self.k, mask=~self.placed),
            "position_mm": pa.array(self.position_mm, mask=~self.placed),
            "verdict": verdict,
            "usable": pa.array(~blocked),
        }


SERIES_OR_SLICE = {name: SLICES.arrow().field(name).type for name in NEEDED}


def _holding(lists: pa.Array, test: Callable[[pa.Array], pa.Array]) -> np.ndarray:
    """(n,) bool: whether one of a list's values passes the test."""
    found = np.zeros(len(lists), bool)
    hits = test(lists.flatten()).fill_null(False).to_numpy(zero_copy_only=False)
    found[pc.list_parent_indices(lists).to_numpy()[hits]] = True
    return found


def _splits(columns: _Columns) -> list[list[str]]:
    """For each part the verdicts on how its series instance is split."""
    orientations: dict[tuple[Any, Any], set[Any]] = defaultdict(set)
    sizes: dict[tuple[Any, Any], set[Any]] = defaultdict(set)
    keys = [(row["dataset"], row.get("series_instance_id")) for row in columns.first]
    for key, row, said in zip(keys, columns.first, columns.said, strict=True):
        axes = geometry.orientation_key(geometry.unit_orientation(row.get("image_orientation")))
        orientations[key].add((axes, said.get("frame_of_reference_id")))
        sizes[key].add((row["rows"], row["cols"]))
    codes = (("SPLIT_ORIENTATION", orientations), ("SPLIT_SIZE", sizes))
    return [[code for code, kinds in codes if len(kinds[key]) > 1] for key in keys]


def _part(columns: _Columns, part: int, split: list[str], overrides: Mapping[str, Severity] | None) -> dict[str, Any]:
    """The row of one series; the places of its slices go into ``columns``. The slice with the smallest image_id speaks for the series."""
    start, stop = int(columns.starts[part]), int(columns.stops[part])
    mine = slice(start, stop)
    first, said = columns.first[part], columns.said[part]
    orientation = _orientation(columns, start, stop)
    spatial = orientation is not None and bool(columns.has_origin[mine].any())  # NIfTI without sform and qform: distances alone
    placed = start + np.flatnonzero((columns.has_origin if spatial else columns.has_along)[mine])
    verdict: list[str] = []
    shape = geometry.Stack(np.empty(0))
    if placed.size:
        along = columns.along_mm[placed]
        if spatial and orientation is not None:
            along = columns.origin_mm[placed] @ np.asarray(geometry.normal(orientation))
        ranks = geometry.distinct_places(along)
        columns.position_mm[placed], columns.placed[placed] = along, True
        n_places = int(ranks.max()) + 1
        volumes = None
        if n_places < len(ranks):
            attributes = [name for name in VOLUME_ATTRIBUTES if name in columns.table.column_names]
            volumes = tell_volumes(columns.table.select(attributes).take(pa.array(placed)).to_pylist(), ranks)
            verdict.append("DUPLICATE_POSITIONS" if volumes is None else "MULTI_VOLUME")
        if volumes is not None:
            columns.t[placed] = volumes
        if "DUPLICATE_POSITIONS" in verdict:
            columns.k[placed[np.argsort(ranks, kind="stable")]] = np.arange(len(ranks))
        else:
            columns.k[placed] = ranks
        representatives = placed[np.unique(ranks, return_index=True)[1]]  # the smallest image_id at each position
        if spatial and orientation is not None:
            shape = geometry.stack(columns.origin_mm[representatives], orientation, first.get("pixel_spacing_mm"))
        else:
            gaps = geometry.slice_gaps(along)
            shape = geometry.Stack(gaps, float(np.median(gaps)) if len(gaps) else None)
        if geometry.irregular(shape.gaps_mm):
            verdict.append("IRREGULAR_SPACING")
        if geometry.missing(shape.gaps_mm):
            verdict.append("MISSING_SLICES")
        if shape.tilt_deg is not None and shape.tilt_deg > geometry.TILT_DEG:
            verdict.append("GANTRY_TILT")
    thicknesses = columns.thickness_mm[mine][columns.has_thickness[mine]]
    if thicknesses.size and thicknesses.max() - thicknesses.min() > THICKNESS_MM:
        verdict.append("MIXED_THICKNESS")
    if any((values[mine] != values[start]).any() or (there[mine] != there[start]).any() for values, there in columns.rescale):
        verdict.append("MIXED_RESCALE")
    verdict += split
    if stop - start == 1:
        verdict.append("SINGLE_SLICE")
    if columns.localizer[mine].any():
        verdict.append("LOCALIZER")
    clean = "DUPLICATE_POSITIONS" not in verdict and placed.size == stop - start  # else k is no place on an even grid
    return {
        **{name: said.get(name) for name in HEADER_COLUMNS},
        "series_id": first["series_id"],
        "dataset": first["dataset"],
        "subject_key": first["subject_key"],
        "study_id": first["study_id"],
        "modality": first["modality"],
        "series_instance_id": first.get("series_instance_id") or said.get("series_instance_id") or first["series_id"],
        "study_date": _date(said.get("study_date")),
        "n_slices": stop - start,
        "n_volumes": int(np.unique(columns.t[mine]).size),
        "rows": first["rows"],
        "cols": first["cols"],
        "pixel_spacing_mm": first.get("pixel_spacing_mm"),
        "slice_spacing_mm": shape.spacing_mm,
        "slice_thickness_mm": float(np.median(thicknesses)) if thicknesses.size else None,
        "orientation": list(orientation) if orientation is not None else None,
        "step_mm": list(shape.step_mm) if shape.step_mm is not None else None,
        "affine_lps_mm": list(shape.affine) if shape.affine is not None and clean else None,
        "tilt_deg": shape.tilt_deg,
        "transfer_syntaxes": sorted(columns.syntaxes[code] for code in np.unique(columns.syntax[mine]).tolist() if code >= 0),
        "verdict": verdict,
        "usable": usable(verdict, overrides),
    }


def _orientation(columns: _Columns, start: int, stop: int) -> tuple[float, ...] | None:
    """Unit cosines of the part's first slice that has some."""
    for row in (start + np.flatnonzero(columns.oriented[start:stop])).tolist():
        found = geometry.unit_orientation(columns.orientation[row].tolist())
        if found is not None:
            return found
    return None


def _date(text: str | None) -> datetime.date | None:
    return datetime.date.fromisoformat(text) if text else None
