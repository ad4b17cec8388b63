"""Rows of ``slices`` -> rows of ``series``, with the places of the slices and verdicts on how they lie together. Pure, order-independent.

Used for a new series and for one that received late slices alike: give it all slices of one series instance, new and old.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.series import geometry
from medspark.tables.catalog import SERIES
from medspark.tables.rows import Rows
from medspark.tables.verdicts import Severity, usable

THICKNESS_MM = 1e-3  # nominal thicknesses that differ by more are mixed: headers print them to 1e-4 mm
MIN_COVER = 0.5  # a volume told apart by an attribute holds more than this part of the positions: else the attribute just varies by slice
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

VOLUME_ATTRIBUTES = (
    "temporal_position",
    "cardiac_phase_pct",
    "time_ms",
    "echo_time_ms",
    "b_value",
    "acquisition_number",
    "image_type",
)
"""What tells the volumes of a series apart, the most explicit first; image_type parts magnitude from phase, water from fat."""
ORDERED_ATTRIBUTES = ("time_ms", "temporal_position", "acquisition_number")
"""What orders the repeats of each position where no value is shared between positions (times of a dynamic series)."""

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


def assemble(slices: pa.Table, overrides: Mapping[str, Severity] | None = None) -> Assembled:
    """The series that ``slices`` form.

    slices : rows of table ``slices`` of one series instance in one data set, all its parts, any order; payload and header_json not needed
    overrides : severities of the config section ``[verdicts]``
    A part is split off where frame of reference, orientation or size differ (``series_id``); SPLIT_ORIENTATION stands for the first two, since
    another frame of reference has other axes. Volumes are told apart only where positions
    repeat. ``k`` is the rank of the slice's position among the distinct ones of its part, so that equal ``k`` of
    two volumes is one place; where positions repeat without volumes it is the
    rank by (position, image_id).
    """
    rows = sorted(slices.select([name for name in NEEDED if name in slices.column_names]).to_pylist(), key=lambda row: row["image_id"])
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        parts[row["series_id"]].append(row)
    orientations = {(_orientation_key(part[0]), _attributes(part[0]).get("frame_of_reference_id")) for part in parts.values()}
    sizes = {(part[0]["rows"], part[0]["cols"]) for part in parts.values()}
    split = [code for code, kinds in (("SPLIT_ORIENTATION", orientations), ("SPLIT_SIZE", sizes)) if len(kinds) > 1]
    records, updates = [], []
    for series_id in sorted(parts):
        record, placed = _part(parts[series_id], split, overrides)
        records.append(record)
        updates += placed
    columns = {name: pa.array([record[name] for record in records], kind) for name, kind in SERIES_TYPES.items()}
    updates.sort(key=lambda row: row["image_id"])
    table = pa.table({name: pa.array([row[name] for row in updates], SLICE_TYPES[name]) for name in UPDATES})
    return Assembled(Rows("series", columns), table)


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


def _orientation_key(row: Mapping[str, Any]) -> str:
    return geometry.orientation_key(geometry.unit_orientation(row.get("image_orientation")))


def _attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row.get("series_attributes") or "{}")
    return found


def _part(
    rows: list[dict[str, Any]], split: list[str], overrides: Mapping[str, Severity] | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One series: its row and its slices' updates. ``rows`` by image_id; the first one speaks for the series."""
    first = rows[0]
    said = _attributes(first)
    orientation = next((found for row in rows if (found := geometry.unit_orientation(row.get("image_orientation")))), None)
    in_space = [row for row in rows if orientation is not None and row.get("image_position_mm") is not None]
    placed = in_space or [row for row in rows if row.get("position_mm") is not None]  # NIfTI without sform and qform: distances alone
    verdict: list[str] = []
    shape = geometry.Stack(np.empty(0))
    volume, place = {row["image_id"]: 0 for row in rows}, dict[str, int | None]()
    positions: dict[str, float] = {}
    if placed:
        if in_space and orientation is not None:
            origins = np.array([row["image_position_mm"] for row in placed], np.float64)
            along = origins @ np.array(geometry.normal(orientation))
        else:
            along = np.array([row["position_mm"] for row in placed], np.float64)
        ranks = geometry.distinct_places(along)
        positions = {row["image_id"]: float(value) for row, value in zip(placed, along, strict=True)}
        repeats = len(ranks) - len(set(ranks.tolist()))
        volumes = tell_volumes(placed, ranks) if repeats else np.zeros(len(placed), np.int64)
        if volumes is None:
            verdict.append("DUPLICATE_POSITIONS")
            order = sorted(range(len(placed)), key=lambda index: (ranks[index], placed[index]["image_id"]))
            place = {placed[index]["image_id"]: k for k, index in enumerate(order)}
        else:
            if repeats:
                verdict.append("MULTI_VOLUME")
                volume.update({row["image_id"]: int(t) for row, t in zip(placed, volumes, strict=True)})
            place = {row["image_id"]: int(rank) for row, rank in zip(placed, ranks, strict=True)}
        _, representatives = np.unique(ranks, return_index=True)  # the smallest image_id at each position
        if in_space and orientation is not None:
            shape = geometry.stack(origins[representatives], orientation, first.get("pixel_spacing_mm"))
        else:
            gaps = geometry.slice_gaps(along)
            shape = geometry.Stack(gaps, float(np.median(gaps)) if len(gaps) else None)
        if geometry.irregular(shape.gaps_mm):
            verdict.append("IRREGULAR_SPACING")
        if geometry.missing(shape.gaps_mm):
            verdict.append("MISSING_SLICES")
        if shape.tilt_deg is not None and shape.tilt_deg > geometry.TILT_DEG:
            verdict.append("GANTRY_TILT")
    thicknesses = [row["slice_thickness_mm"] for row in rows if row.get("slice_thickness_mm") is not None]
    if thicknesses and max(thicknesses) - min(thicknesses) > THICKNESS_MM:
        verdict.append("MIXED_THICKNESS")
    if len({(row.get("rescale_slope"), row.get("rescale_intercept")) for row in rows}) > 1:
        verdict.append("MIXED_RESCALE")
    verdict += split
    if len(rows) == 1:
        verdict.append("SINGLE_SLICE")
    if any("LOCALIZER" in (kind or "").upper() for row in rows for kind in row.get("image_type") or ()):
        verdict.append("LOCALIZER")
    clean = "DUPLICATE_POSITIONS" not in verdict and len(placed) == len(rows)  # else k is no place on an even grid
    record: dict[str, Any] = {
        **{name: said.get(name) for name in HEADER_COLUMNS},
        "series_id": first["series_id"],
        "dataset": first["dataset"],
        "subject_key": first["subject_key"],
        "study_id": first["study_id"],
        "modality": first["modality"],
        "series_instance_id": first.get("series_instance_id") or said.get("series_instance_id") or first["series_id"],
        "study_date": _date(said.get("study_date")),
        "n_slices": len(rows),
        "n_volumes": len(set(volume.values())),
        "rows": first["rows"],
        "cols": first["cols"],
        "pixel_spacing_mm": first.get("pixel_spacing_mm"),
        "slice_spacing_mm": shape.spacing_mm,
        "slice_thickness_mm": float(np.median(thicknesses)) if thicknesses else None,
        "orientation": list(orientation) if orientation is not None else None,
        "step_mm": list(shape.step_mm) if shape.step_mm is not None else None,
        "affine_lps_mm": list(shape.affine) if shape.affine is not None and clean else None,
        "tilt_deg": shape.tilt_deg,
        "transfer_syntaxes": sorted({row["transfer_syntax"] for row in rows if row.get("transfer_syntax")}),
        "verdict": verdict,
        "usable": usable(verdict, overrides),
    }
    updates = [
        {
            "image_id": row["image_id"],
            "series_id": row["series_id"],
            "t": volume[row["image_id"]],
            "k": place.get(row["image_id"]),
            "position_mm": positions.get(row["image_id"]),
            "verdict": row["verdict"],
            "usable": usable(row["verdict"], overrides),
        }
        for row in rows
    ]
    return record, updates


def _date(text: str | None) -> datetime.date | None:
    return datetime.date.fromisoformat(text) if text else None


def tell_volumes(rows: Sequence[Mapping[str, Any]], ranks: np.ndarray) -> np.ndarray | None:
    """Which volume each slice belongs to, such that each volume has each position at most once; None where no attribute tells.

    ranks : (n,) int64 rank of each slice's position
    Tried in turn: one attribute, two, three of `VOLUME_ATTRIBUTES` whose values split the repeats, the volumes ordered by them; then, for
    positions that repeat equally often, the order of each position's repeats in time.
    """
    values = {name: [_sortable(row.get(name)) for row in rows] for name in VOLUME_ATTRIBUTES}
    varying = [name for name in VOLUME_ATTRIBUTES if len(set(values[name])) > 1]
    places = ranks.tolist()
    n_places, most = len(set(places)), max(Counter(places).values())
    for size in (1, 2, 3):
        for names in itertools.combinations(varying, size):
            keys = list(zip(*(values[name] for name in names), strict=True))
            members = Counter(keys)
            if len(set(zip(keys, places, strict=True))) < len(keys):
                continue  # a volume would hold a position twice
            if len(members) == most or min(members.values()) > MIN_COVER * n_places:
                order = {key: t for t, key in enumerate(sorted(members))}
                return np.array([order[key] for key in keys], np.int64)
    if len(set(Counter(places).values())) == 1:
        for name in ORDERED_ATTRIBUTES:
            if len(set(zip(values[name], places, strict=True))) == len(places):
                volumes = np.empty(len(places), np.int64)
                met: Counter[int] = Counter()
                for index in sorted(range(len(places)), key=lambda index: (places[index], values[name][index])):
                    volumes[index] = met[places[index]]
                    met[places[index]] += 1
                return volumes
    return None


def _sortable(value: Any) -> tuple[int, float, str]:
    """A value's place in an order that takes absent ones (first), numbers and lists of text."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, (int, float)):
        return (1, float(value), "")
    return (2, 0.0, "\\".join(map(str, value)))
