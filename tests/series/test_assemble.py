"""Assembly of series: a pure function of the set of slices; verdicts on phantoms with known truth and on real series."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medspark.series.assemble import NEEDED, UPDATES, assemble
from medspark.tables.catalog import SLICES
from tests.phantoms.series import ingest, rows_of, write_enhanced, write_series
from tests.real import shared_data


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema([SLICES.arrow().field(name) for name in NEEDED])
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


def slice_row(index: int, z: float, **changes: Any) -> dict[str, Any]:
    return {
        "image_id": f"{(index * 7919) % 100_003:032x}",  # ids do not run with the positions
        "series_id": "s" * 32,
        "dataset": "d",
        "subject_key": "p",
        "study_id": "st",
        "modality": "MR",
        "series_instance_id": "2.25.1",
        "series_attributes": '{"modality": "MR", "kvp": 120.0, "study_date": "2019-05-06"}',
        "rows": 4,
        "cols": 5,
        "pixel_spacing_mm": [0.5, 0.75],
        "slice_thickness_mm": 2.0,
        "position_mm": z,
        "image_position_mm": [0.0, 0.0, z],
        "image_orientation": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "image_type": ["ORIGINAL"],
        "rescale_slope": 1.0,
        "rescale_intercept": 0.0,
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "verdict": [],
        **changes,
    }


def series_of(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    found = assemble(table_of(rows))
    (series,) = rows_of(found.series)
    return series, {row["image_id"]: row for row in found.slices.to_pylist()}


def places(rows: list[dict[str, Any]], updates: dict[str, dict[str, Any]]) -> list[tuple[int, int | None]]:
    return [(updates[row["image_id"]]["t"], updates[row["image_id"]]["k"]) for row in rows]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.integers(0, 3), st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing_and_k_is_unique_within_a_volume(positions, kinds, shuffle):
    rows = [slice_row(index, float(z), acquisition_number=index % (kinds + 1)) for index, z in enumerate(positions)]
    first = assemble(table_of(rows))
    mixed = list(rows)
    shuffle.shuffle(mixed)
    second = assemble(table_of(mixed))
    assert rows_of(first.series) == rows_of(second.series)
    assert first.slices.equals(second.slices)
    assert tuple(first.slices.column_names) == UPDATES
    (series,) = rows_of(first.series)
    updates = first.slices.to_pylist()
    assert series["n_slices"] == len(rows) == len(updates)
    assert len({(row["t"], row["k"]) for row in updates}) == len(rows)  # (t, k) is an address
    assert {row["t"] for row in updates} == set(range(series["n_volumes"]))
    for t in range(series["n_volumes"]):
        along = sorted((row["k"], row["position_mm"]) for row in updates if row["t"] == t)
        assert [position for _, position in along] == sorted(position for _, position in along)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=7), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_many_series_at_once_are_what_each_is_alone(series, shuffle):
    """Of each series some slices have no position, other thickness, orientation or size: whatever one lacks, its neighbours do not feel."""
    changes = ({}, {}, {"image_position_mm": None}, {"slice_thickness_mm": None}, {"verdict": ["BURNED_IN"]}, {"rescale_slope": 2.0})
    every = []
    for number, positions in enumerate(series):
        own = {"series_id": f"{number:032x}", "series_instance_id": f"2.25.{number}"}
        rows = [slice_row(1000 * number + i, float(z), **own, **shuffle.choice(changes)) for i, z in enumerate(positions)]
        rows[0] |= shuffle.choice(({}, {"image_orientation": None}, {"rows": 9, "series_id": f"{number + 50:032x}"}))
        every.append(rows)
    alone = [assemble(table_of(rows)) for rows in every]
    mixed = [row for rows in every for row in rows]
    shuffle.shuffle(mixed)
    together = assemble(table_of(mixed))
    key = lambda row: row["series_id"]
    assert sorted(rows_of(together.series), key=key) == sorted((row for one in alone for row in rows_of(one.series)), key=key)
    by_image = lambda row: row["image_id"]
    assert together.slices.to_pylist() == sorted((row for one in alone for row in one.slices.to_pylist()), key=by_image)


def test_acquisition_number_of_its_own_in_every_slice_is_one_volume():
    rows = [slice_row(index, 3.0 * index, acquisition_number=100 + index, time_ms=index * 950.0) for index in range(6)]
    series, updates = series_of(rows)
    assert places(rows, updates) == [(0, k) for k in range(6)]
    assert (series["n_volumes"], series["verdict"]) == (1, [])
    assert series["affine_lps_mm"] == pytest.approx([0.75, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 3, 0, 0, 0, 0, 1])
    assert series["kvp"] == 120.0
    assert series["study_date"].isoformat() == "2019-05-06"


VOLUMES = {
    "temporal position": lambda t, k: {"temporal_position": float(t + 1), "time_ms": 40.0 * t + k},
    "cardiac phase": lambda t, k: {"cardiac_phase_pct": 10.0 * t},
    "trigger times that differ from slice to slice": lambda t, k: {"time_ms": 33.3 * t + 1.7 * k},
    "echo": lambda t, k: {"echo_time_ms": 4.6 * (t + 1), "acquisition_number": 1, "time_ms": 5.0 * k},
    "b-value, two repeats of the second": lambda t, k: {"b_value": 1000.0 * (t > 0), "acquisition_number": int(t == 2)},
    "acquisition": lambda t, k: {"acquisition_number": t + 1},
    "magnitude and phase": lambda t, k: {"image_type": ["ORIGINAL", "PRIMARY", "MPR"[t]]},
}


@pytest.mark.parametrize("told_by", VOLUMES)
@pytest.mark.parametrize("n_places", [1, 2, 5])
def test_volumes_are_told_apart(told_by, n_places):
    rows = [slice_row(5 * t + k, 2.0 * k, **VOLUMES[told_by](t, k)) for t in range(3) for k in range(n_places)]
    series, updates = series_of(rows)
    assert "MULTI_VOLUME" in series["verdict"]
    assert "DUPLICATE_POSITIONS" not in series["verdict"]
    assert series["n_volumes"] == 3
    got = places(rows, updates)
    by_volume = {t: {got[index][0] for index in range(t * n_places, (t + 1) * n_places)} for t in range(3)}
    assert all(len(found) == 1 for found in by_volume.values())
    assert [k for _, k in got] == [k for _ in range(3) for k in range(n_places)]
    if told_by != "magnitude and phase":
        assert by_volume == {t: {t} for t in range(3)}


def test_a_slice_missing_from_one_volume_keeps_the_others_in_place():
    rows = [slice_row(10 * t + k, 2.0 * k, temporal_position=float(t)) for t in range(3) for k in range(5) if (t, k) != (1, 2)]
    series, updates = series_of(rows)
    assert places(rows, updates) == [(t, k) for t in range(3) for k in range(5) if (t, k) != (1, 2)]
    assert series["verdict"] == ["MULTI_VOLUME"]
    assert series["affine_lps_mm"] is not None


def test_repeats_that_nothing_tells_apart_are_duplicates():
    rows = [slice_row(index, float(z), acquisition_number=index) for index, z in enumerate([0, 1, 2, 2, 3])]
    series, updates = series_of(rows)
    assert series["verdict"] == ["DUPLICATE_POSITIONS"]
    assert series["affine_lps_mm"] is None
    assert series["slice_spacing_mm"] == 1.0  # gaps of 0 left out
    doubled = sorted(rows[2:4], key=lambda row: row["image_id"])
    assert [updates[row["image_id"]]["k"] for row in doubled] == [2, 3]


def test_mixed_split_single_localizer():
    rows = [slice_row(index, float(index)) for index in range(4)]
    rows[1] |= {"slice_thickness_mm": 2.5}
    rows[2] |= {"rescale_slope": 2.0}
    other = slice_row(
        50, 0.0, series_id="t" * 32, rows=8, cols=8, image_orientation=[0.0, 1, 0, 0, 0, 1], image_type=["A", "B", "LOCALIZER"]
    )
    found = assemble(table_of([*rows, other]))
    big, small = rows_of(found.series)
    assert big["verdict"] == ["MIXED_THICKNESS", "MIXED_RESCALE", "SPLIT_ORIENTATION", "SPLIT_SIZE"]
    assert small["verdict"] == ["SPLIT_ORIENTATION", "SPLIT_SIZE", "SINGLE_SLICE", "LOCALIZER"]
    assert (big["usable"], small["usable"]) == (True, False)
    assert big["slice_thickness_mm"] == 2.0


def test_severities_can_be_overridden_and_slices_keep_their_own_verdicts():
    rows = [slice_row(0, 0.0, verdict=["LOSSY"]), slice_row(1, 1.0, verdict=["NO_RESCALE"])]
    found = assemble(table_of(rows), {"LOSSY": "block", "NO_RESCALE": "note"})
    assert {tuple(row["verdict"]): row["usable"] for row in found.slices.to_pylist()} == {("LOSSY",): False, ("NO_RESCALE",): True}
    assert rows_of(found.series)[0]["usable"]


def test_without_positions_there_is_no_k():
    rows = [slice_row(index, 0.0, image_position_mm=None, position_mm=None, image_orientation=None) for index in range(3)]
    series, updates = series_of(rows)
    assert places(rows, updates) == [(0, None)] * 3
    assert series["orientation"] is series["affine_lps_mm"] is series["tilt_deg"] is None


def test_late_slices_give_what_all_slices_at_once_give():
    rows = [slice_row(index, float(index)) for index in range(8)]
    early = assemble(table_of(rows[::2])).slices.to_pylist()
    known = {row["image_id"]: row for row in early}
    late = [row | {name: known[row["image_id"]][name] for name in UPDATES} if row["image_id"] in known else row for row in rows]
    again, once = assemble(table_of(late)), assemble(table_of(rows))
    assert rows_of(again.series) == rows_of(once.series)
    assert again.slices.equals(once.slices)


def test_phantom_tilt_and_gap(tmp_path):
    write_series(tmp_path, [0, 5, 10, 20, 25], tilt_deg=12.0)
    slices, _, rejections, _ = ingest(tmp_path)
    assert not rejections
    series, _ = series_of(slices)
    assert series["verdict"] == ["IRREGULAR_SPACING", "MISSING_SLICES", "GANTRY_TILT"]
    assert series["tilt_deg"] == pytest.approx(12.0, abs=1e-4)
    assert series["slice_spacing_mm"] == pytest.approx(5 * np.cos(np.radians(12.0)), abs=1e-5)
    assert series["affine_lps_mm"] is None


def test_phantom_enhanced_volumes(tmp_path):
    write_enhanced(tmp_path / "mf.dcm", [0, 3, 6, 9], volumes=2)
    slices, _, _, _ = ingest(tmp_path)
    series, updates = series_of(slices)
    assert (series["n_volumes"], series["verdict"]) == (2, ["MULTI_VOLUME"])
    assert series["affine_lps_mm"] == pytest.approx([0.8, 0, 0, 1, 0, 0.9, 0, 2, 0, 0, 3, 0, 0, 0, 0, 1])
    assert places(slices, updates) == [(t, k) for t in range(2) for k in range(4)]


def test_distances_alone_order_a_volume_without_an_affine():
    rows = [slice_row(index, 2.0 * index, image_position_mm=None, image_orientation=None) for index in (3, 1, 0, 2)]
    series, updates = series_of(rows)
    assert places(rows, updates) == [(0, 3), (0, 1), (0, 0), (0, 2)]
    assert (series["slice_spacing_mm"], series["affine_lps_mm"], series["verdict"]) == (2.0, None, [])


def test_real_nifti_volumes_keep_their_places():
    slices, _, rejections, _ = ingest(shared_data("nifti"))
    assert not rejections
    volumes = []
    for instance in sorted({row["series_instance_id"] for row in slices}):
        mine = [row for row in slices if row["series_instance_id"] == instance]
        series, updates = series_of(mine)
        assert places(mine, updates) == [(row["t"], row["k"]) for row in mine]
        assert series["affine_lps_mm"] is not None
        volumes.append(series["n_volumes"])
    assert sorted(volumes)[-1] == 2


def real_series(relative: str) -> list[dict[str, Any]]:
    slices, _, rejections, _ = ingest(shared_data(relative))
    assert not [item for item in rejections if item.code not in ("DUPLICATE",)]
    return [row for instance in sorted({row["series_instance_id"] for row in slices}) for row in _assembled(slices, instance)]


def _assembled(slices: list[dict[str, Any]], instance: str) -> list[dict[str, Any]]:
    mine = [row for row in slices if row["series_instance_id"] == instance]
    random.Random(7).shuffle(mine)
    return rows_of(assemble(table_of(mine)).series)


def test_real_ge_head_is_one_tilted_series_of_two_slabs():
    slices, _, rejections, _ = ingest(shared_data("ct/ge_head_tilt"))
    series, updates = series_of(slices)
    assert not rejections
    assert series["n_slices"] == 28
    assert sorted(series["verdict"]) == ["GANTRY_TILT", "IRREGULAR_SPACING", "MIXED_THICKNESS"]
    assert series["tilt_deg"] == pytest.approx(18.5, abs=0.01)
    order = sorted(updates.values(), key=lambda row: row["k"])
    gaps = np.diff([row["position_mm"] for row in order])
    np.testing.assert_allclose(gaps, [4.0] * 13 + [1.08] + [7.0] * 13, atol=0.01)
    assert series["affine_lps_mm"] is None
    assert series["usable"]
    assert {row["is_hu"] for row in slices} == {True}
    assert {tuple(row["verdict"]) for row in slices} == {("FACE_RECOGNISABLE",)}


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ("ct/dicom2nifti_failing/gantrytilting", [(4, 1, ["GANTRY_TILT"], 4.85, True)]),
        ("ct/dicom2nifti_failing/sliceincrement", [(4, 1, ["IRREGULAR_SPACING", "MISSING_SLICES", "GANTRY_TILT"], 0.75, False)]),
        ("mr/sag_anon", [(20, 1, [], 0.9, True)]),
        ("mr/same_volume_four_syntaxes", [(4, 1, [], 1.0, True)]),
        ("ct/dcmqi_liver/ct-3slice", [(3, 1, [], 1.0, True)]),
        ("ct/dcmqi_small/24x38x3", [(3, 1, [], 2.5, True)] * 2),
        ("ct/rtutils_oriented", [(3, 1, [], 4.5, True)]),
        ("enhanced/philips_enhanced_anatomical.dcm", [(8, 1, [], 1.2, True)]),
        ("enhanced/eCT_Supplemental.dcm", [(2, 1, [], 10.0, True)]),
    ],
)
def test_real_series(relative, expected):
    found = real_series(relative)
    got = [
        (row["n_slices"], row["n_volumes"], row["verdict"], round(row["slice_spacing_mm"], 2), row["affine_lps_mm"] is not None)
        for row in found
    ]
    assert got == expected


def test_real_dicomdir_patients():
    found = real_series("dicomdir/pydicom")
    assert sum(row["n_slices"] for row in found) == 31
    scouts = [row for row in found if "LOCALIZER" in row["verdict"]]
    assert len(scouts) == 2
    assert not any(row["usable"] for row in scouts)
    assert len({row["subject_key"] for row in found}) == 2


def test_real_multiframe_has_the_geometry_of_its_single_frames():
    found = real_series("ct/dcmqi_small/23x38x3")
    assert len(found) == 2
    assert found[0]["affine_lps_mm"] == pytest.approx(found[1]["affine_lps_mm"])
    assert found[0]["pixel_spacing_mm"] == found[1]["pixel_spacing_mm"] == [0.7, 0.7]
