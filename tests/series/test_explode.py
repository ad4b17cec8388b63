"""scan -> plan -> explode: laws on phantoms, verdicts and codes one by one, and every real file accounted for."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medspark import pixels
from medspark.config import Config, Deid, Guard, Series
from medspark.keys import PARENT_DIGITS, Ids
from medspark.series import rescale
from medspark.series.decode import pixel_hash
from medspark.series.kind import SERIES
from medspark.tables.catalog import SLICES
from medspark.tables.work import Kind
from tests.phantoms.series import (
    IDS,
    MR,
    PT,
    ROOT,
    US,
    explode_units,
    files_of,
    ingest,
    slice_dataset,
    write,
    write_enhanced,
    write_series,
)
from tests.real import shared_data

FILLED_LATER = {"run_id", "batch_id"}


def one(tmp_path: Path, settings: Config | None = None, **attributes):
    """The single row of slices that a phantom with these attributes gives."""
    write(tmp_path / "one", "a.dcm", slice_dataset(**attributes))
    slices, _, rejections, others = ingest(tmp_path / "one", settings)
    assert (rejections, others) == ([], [])
    (row,) = slices
    return row


def decoded(payload: dict) -> np.ndarray:
    return pixels.decode(payload["bytes"], payload["codec"], payload["dtype"], payload["shape"], payload["params"])


# --- laws -------------------------------------------------------------------------------------------------------------------------


def test_the_kind_is_one():
    kind: Kind = SERIES
    assert (kind.job, kind.source_kind, kind.sections) == ("explode_series", "dicom", ("series", "deid"))


def test_rows_are_complete_and_payload_gives_back_what_the_rows_measured(tmp_path):
    write_series(tmp_path, [0, 2, 4, 6], PixelPaddingValue=0)
    files, _ = files_of(tmp_path)
    plan = SERIES.plan(files, IDS, Config())
    (unit,) = plan.units
    assert unit.images == 4
    items = list(SERIES.explode(unit, IDS, Config(), lambda source, what="": None))
    assert [item.table for item in items] == ["slices", "pixels"]
    assert set(items[0].columns) == set(SLICES.names) - FILLED_LATER
    slices, payload, _ = explode_units(plan.units)
    for row, stored in zip(slices, payload, strict=True):
        array = decoded(stored)
        assert row["image_id"] == stored["image_id"]
        assert stored["parent_id"] == row["series_id"]
        assert row["image_id"][:PARENT_DIGITS] == row["series_id"][:PARENT_DIGITS]
        assert row["pixel_hash"] == pixel_hash(array)
        values = array[array != 0] - 1024.0
        assert [row[f"value_{name}"] for name in ("min", "max", "mean", "std")] == pytest.approx(
            [values.min(), values.max(), values.mean(), values.std()]
        )
        source = next(file for file in files if file.source_id == row["source_id"])
        np.testing.assert_array_equal(array, pydicom.dcmread(source.path).pixel_array)


def test_nothing_that_names_the_patient_leaves(tmp_path):
    ds = slice_dataset(SeriesDescription="Chest for Doe Jane", InstitutionName="St. Elsewhere", ReferringPhysicianName="Foster^Kim")
    block = ds.private_block(0x0011, "SOME VENDOR", create=True)
    block.add_new(0x01, "LO", "Doe Jane 1950-01-01")
    block.add_new(0x02, "PN", "Doe^Jane")
    write(tmp_path, "Doe_Jane.dcm", ds)
    files, _ = files_of(tmp_path)
    slices, payload, _ = explode_units(SERIES.plan(files, IDS, Config()).units)
    told = json.dumps(slices, default=str) + json.dumps([{**row, "bytes": ""} for row in payload])
    for secret in ("Doe", "Jane", "Elsewhere", "Foster", "1950", ROOT, "20200229", "2020-02-29", str(tmp_path)):
        assert secret not in told, secret
    said = json.loads(slices[0]["series_attributes"])
    assert said["modality"] == "CT"
    assert said["study_date"] != "2020-02-29"


def test_without_a_profile_headers_stay(tmp_path):
    write(tmp_path, "a.dcm", slice_dataset(SeriesDescription="Chest for Doe Jane"))
    slices, _, _, _ = ingest(tmp_path, Config(deid=Deid(profile="none")), Ids(None))
    said = json.loads(slices[0]["series_attributes"])
    assert said["description"] == "Chest for Doe Jane"
    assert said["study_date"] == "2020-02-29"
    assert slices[0]["sop_instance_id"] == ROOT + "1.1"


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1 << 30))
def test_the_plan_does_not_depend_on_the_order_of_files(seed):
    files = _planned_files()
    plan = SERIES.plan(files, IDS, Config())
    mixed = list(files)
    random.Random(seed).shuffle(mixed)
    assert SERIES.plan(mixed, IDS, Config()) == plan
    planned = [source.source_id for unit in plan.units for source in unit.sources]
    assert sorted(planned) == sorted(file.source_id for file in files)  # each file in exactly one unit
    unit_of = {source.source_id: index for index, unit in enumerate(plan.units) for source in unit.sources}
    for sop in {file.header["sop"] for file in files}:
        assert len({unit_of[file.source_id] for file in files if file.header["sop"] == sop}) == 1
    assert len(plan.units) > 4
    assert all(unit.cost < 4 or len(unit.sources) == 2 for unit in plan.units)
    assert len(set(plan.locks.values())) == 2


def _planned_files():
    from medspark.tables.work import SourceFile

    def header(series: int, index: int) -> dict:
        return {
            "kind": "dicom",
            "uid": f"2.25.{series}",
            "sop": f"2.25.{series}.{index // 2}",  # every instance twice
            "part": "p",
            "study": "1.2",
            "patient_id": "P",
            "issuer": None,
            "sex": "M",
            "age_years": 30.0 + index,
            "position_mm": float(index // 2),
            "rows": 512,
            "cols": 512,
            "frames": 1,
            "frame_bytes": 1 << 19,
            "modality": "CT",
            "syntax": "1.2.840.10008.1.2.1",
            "assumed": False,
        }

    return [
        SourceFile(f"{series}-{index}", f"/in/{index % 2}/{series}/{index:04d}", "/x", 1 << 19, "d", header(series, index), None, "d")
        for series in (1, 2)
        for index in range(1000)
    ]


def test_a_subject_has_one_row_with_the_age_at_the_first_study():
    (rows,) = SERIES.plan(_planned_files(), IDS, Config()).rows
    (subject,) = rows.to_arrow("r", "b").to_pylist()
    assert (rows.table, subject["sex"], subject["age_years"], subject["dataset"]) == ("subjects", "M", 30.0, "d")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["<i2", "<u2", "i1", "u1", "<i4", "<f4"]),
    st.integers(0, 1 << 30),
    st.one_of(st.none(), st.tuples(st.integers(-40, 40), st.integers(-40, 40))),
    st.sampled_from([(None, None), (2.5, -1024.0), (-1.0, 3.0)]),
)
def test_statistics_are_numpy_s(dtype, seed, padding, rescaled):
    low = 0 if np.dtype(dtype).kind == "u" else -30
    stored = np.random.default_rng(seed).integers(low, 40, (7, 9)).astype(dtype)
    slope, intercept = rescaled
    stats = rescale.statistics(stored, slope, intercept, padding)
    values = stored.astype(np.float64)
    if padding is not None:
        kept = (values < min(padding)) | (values > max(padding))
        values = values[kept] if kept.any() else values
    values = values.ravel() * (slope or 1) + (intercept or 0)
    expected = [values.min(), values.max(), values.mean(), values.std()]
    assert dataclasses.astuple(stats) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_statistics_at_the_ends_of_sixteen_bits():
    stored = np.array([[-32768, -32768, 32767, 5]], np.int16)
    assert dataclasses.astuple(rescale.statistics(stored, padding=(-32768, -32768)))[:3] == (5, 32767, 16386)
    assert dataclasses.astuple(rescale.statistics(stored, padding=(32767, 32767)))[:2] == (-32768, 5)
    only = np.full((2, 2), 7, np.uint16)
    assert dataclasses.astuple(rescale.statistics(only, padding=(7, 7))) == (7, 7, 7, 0)  # nothing but padding: never null
    assert dataclasses.astuple(rescale.statistics(np.full((2, 2), np.nan, np.float32))) == (0, 0, 0, 0)


# --- identity ---------------------------------------------------------------------------------------------------------------------


def test_same_instance_again_is_a_duplicate_or_a_conflict_and_the_smallest_uri_wins(tmp_path):
    ds = slice_dataset()
    write(tmp_path / "b", "same.dcm", ds)
    write(tmp_path / "a", "first.dcm", ds)
    write(tmp_path / "c", "other.dcm", slice_dataset(pixels=np.ones((4, 5))))
    slices, _, rejections, _ = ingest(tmp_path)
    (row,) = slices
    assert row["source_id"] == IDS.source("phantom", str(tmp_path / "a" / "first.dcm"), "-")
    assert [(Path(item.uri).name, item.code, item.images) for item in rejections] == [
        ("same.dcm", "DUPLICATE", 1),
        ("other.dcm", "SOP_CONFLICT", 1),
    ]


def test_what_the_lake_knows_counts(tmp_path):
    write_series(tmp_path, [0, 1, 2])
    files, _ = files_of(tmp_path)
    (unit,) = SERIES.plan(files, IDS, Config()).units
    first, _, _ = explode_units([unit])
    known = {first[0]["image_id"]: first[0]["pixel_hash"], first[1]["image_id"]: "another"}
    slices, _, rejections = explode_units([dataclasses.replace(unit, work={**unit.work, "known": known})])
    assert [row["image_id"] for row in slices] == [first[2]["image_id"]]
    assert [item.code for item in rejections] == ["DUPLICATE", "SOP_CONFLICT"]


def test_blank_uids_collapse_nothing(tmp_path):
    for folder in ("x", "y"):
        for index in range(3):
            blank = slice_dataset(
                SOPInstanceUID="", SeriesInstanceUID="", StudyInstanceUID="", PatientID="", ImagePositionPatient=[0, 0, index]
            )
            write(tmp_path / folder, f"{index}.dcm", blank)
    slices, _, rejections, _ = ingest(tmp_path)
    assert not rejections
    assert len({row["image_id"] for row in slices}) == 6
    assert len({row["series_id"] for row in slices}) == len({row["series_instance_id"] for row in slices}) == 2
    assert len({row["subject_key"] for row in slices}) == 2  # by the folder that forms the series
    assert all({"NO_UID", "NO_SUBJECT"} <= set(row["verdict"]) for row in slices)
    assert all(row["sop_instance_id"] is None for row in slices)


def test_absent_instance_uid_is_the_meta_s(tmp_path):
    ds = slice_dataset()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    with_uid = one(tmp_path / "1")
    del ds.SOPInstanceUID
    (tmp_path / "2" / "one").mkdir(parents=True)
    pydicom.dcmwrite(tmp_path / "2" / "one" / "a.dcm", ds, enforce_file_format=False)
    slices, _, _, _ = ingest(tmp_path / "2")
    assert slices[0]["image_id"] == with_uid["image_id"]
    assert "NO_UID" not in slices[0]["verdict"]


def test_subjects_are_the_issuer_s_before_the_domain_s(tmp_path):
    plain, issued = one(tmp_path / "1"), one(tmp_path / "2", IssuerOfPatientID="Hospital A")
    assert plain["subject_key"] == IDS.subject("phantom", "P1")
    assert issued["subject_key"] == IDS.subject("Hospital A", "P1")
    files, _ = files_of(tmp_path / "1")
    given_by_user = [dataclasses.replace(files[0], subject="S7", domain="trial")]
    plan = SERIES.plan(given_by_user, IDS, Config())
    slices, _, _ = explode_units(plan.units)
    assert slices[0]["subject_key"] == IDS.subject("trial", "S7") == plan.rows[0].columns["subject_key"][0]


# --- verdicts and codes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "verdict", "usable"),
    [
        ({}, [], True),
        ({"ImagePositionPatient": None}, ["NO_POSITION"], False),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, ["NO_POSITION"], False),
        ({"RescaleSlope": None}, ["NO_RESCALE"], False),
        ({"Modality": "MR", "SOPClassUID": MR, "RescaleSlope": None}, [], True),
        ({"Modality": "CR", "ImagePositionPatient": None, "RescaleSlope": None}, [], True),
        ({"LossyImageCompression": "01"}, ["LOSSY"], True),
        ({"PatientID": ""}, ["NO_SUBJECT"], True),
        ({"SOPInstanceUID": ""}, ["NO_UID"], True),
        ({"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "PixelPaddingValue": 63536}, ["PADDING_DOUBT"], True),
        ({"PixelPaddingValue": -2000}, [], True),
        ({"Modality": "US", "SOPClassUID": US}, ["BURNED_IN_POSSIBLE"], True),
        ({"Modality": "US", "SOPClassUID": US, "BurnedInAnnotation": "NO"}, [], True),
        ({"Modality": "OT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, ["BURNED_IN_POSSIBLE"], True),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}, [], True),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, ["BURNED_IN_POSSIBLE"], True),
        ({"BodyPartExamined": "HEAD"}, ["FACE_RECOGNISABLE"], True),
        ({"BodyPartExamined": "Head and Neck"}, ["FACE_RECOGNISABLE"], True),
        ({"BodyPartExamined": "SCHAEDEL"}, ["FACE_RECOGNISABLE"], True),
        ({"BodyPartExamined": "WHOLEBODY"}, ["FACE_RECOGNISABLE"], True),
        ({"Modality": "MR", "SOPClassUID": MR, "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, ["MOSAIC"], False),
        ({"BodyPartExamined": "CHEST", "StudyDescription": "head and chest"}, [], True),
        ({"SeriesDescription": "Routine Brain 5mm"}, ["FACE_RECOGNISABLE"], True),
    ],
)
def test_verdicts(tmp_path, attributes, verdict, usable):
    row = one(tmp_path, **attributes)
    assert (row["verdict"], row["usable"]) == (verdict, usable)


def test_burned_in_is_quarantined_or_kept_with_a_blocking_verdict(tmp_path):
    write(tmp_path, "a.dcm", slice_dataset(BurnedInAnnotation="YES"))
    slices, _, rejections, _ = ingest(tmp_path)
    assert slices == []
    assert [(item.code, item.images) for item in rejections] == [("BURNED_IN", 1)]
    slices, _, rejections, _ = ingest(tmp_path, Config(deid=Deid(burned_in="keep")))
    assert (slices[0]["verdict"], slices[0]["usable"], rejections) == (["BURNED_IN"], False, [])


@pytest.mark.parametrize(
    ("attributes", "is_hu", "unit"),
    [
        ({}, True, "HU"),
        ({"RescaleType": "HU"}, True, "HU"),
        ({"RescaleType": "US"}, False, "US"),
        ({"RescaleIntercept": None}, False, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, False, None),
        ({"ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "CBF"]}, False, None),
        ({"Modality": "MR", "SOPClassUID": MR}, False, None),
    ],
)
def test_hounsfield_rule(tmp_path, attributes, is_hu, unit):
    row = one(tmp_path, **attributes)
    assert (row["is_hu"], row["value_unit"]) == (is_hu, unit)


@pytest.mark.parametrize(
    ("attributes", "spacing", "source"),
    [
        ({}, [0.5, 0.75], "PixelSpacing"),
        ({"ImagerPixelSpacing": [0.5, 0.75]}, [0.5, 0.75], "ImagerPixelSpacing"),  # a copy of the detector's
        ({"ImagerPixelSpacing": [0.5, 0.75], "PixelSpacingCalibrationType": "GEOMETRY"}, [0.5, 0.75], "PixelSpacing"),
        ({"ImagerPixelSpacing": [0.6, 0.9]}, [0.5, 0.75], "PixelSpacing"),
        ({"NominalScannedPixelSpacing": [0.5, 0.75]}, [0.5, 0.75], "NominalScannedPixelSpacing"),  # a copy of the film's
        ({"NominalScannedPixelSpacing": [0.5, 0.75], "PixelSpacingCalibrationType": "FIDUCIAL"}, [0.5, 0.75], "PixelSpacing"),
        ({"NominalScannedPixelSpacing": [0.4, 0.7]}, [0.5, 0.75], "PixelSpacing"),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.1, 0.2]}, [0.1, 0.2], "ImagerPixelSpacing"),
        ({"PixelSpacing": None, "NominalScannedPixelSpacing": [0.1, 0.2]}, [0.1, 0.2], "NominalScannedPixelSpacing"),
        ({"PixelSpacing": [0, 0]}, None, None),
        ({"PixelSpacing": None}, None, None),
    ],
)
def test_pixel_spacing_says_where_it_comes_from(tmp_path, attributes, spacing, source):
    row = one(tmp_path, Modality="DX", **attributes)
    assert (row["pixel_spacing_mm"], row["pixel_spacing_source"]) == (spacing, source)


def test_ultrasound_region_gives_millimetres(tmp_path):
    region = pydicom.Dataset()
    region.RegionSpatialFormat, region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 1, 3, 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    row = one(tmp_path, Modality="US", SOPClassUID=US, PixelSpacing=None, SequenceOfUltrasoundRegions=[region])
    assert row["pixel_spacing_mm"] == pytest.approx([0.3, 0.2])
    assert row["pixel_spacing_source"] == "us_region"


def test_padding_is_read_with_the_sign_of_the_pixels_and_left_out(tmp_path):
    stored = np.full((4, 5), 100)
    stored[0] = -2000
    ds = slice_dataset(pixels=stored)
    ds.add_new(0x00280120, "US", 63536)
    write(tmp_path, "a.dcm", ds)
    (row,), _, _, _ = ingest(tmp_path)
    assert row["padding_value"] == -2000
    assert (row["value_min"], row["value_max"], row["value_std"]) == (-924, -924, 0)


def test_modality_lut_replaces_slope_and_intercept(tmp_path):
    item = pydicom.Dataset()
    item.add_new(0x00283002, "SS", [4, -1, 16])
    item.add_new(0x00283006, "US", [10, 20, 30, 40])
    item.ModalityLUTType = "OD"
    stored = np.zeros((4, 5))
    stored[0, :] = [-5, -1, 0, 1, 9]
    row = one(tmp_path, RescaleSlope=None, RescaleIntercept=None, ModalityLUTSequence=[item], pixels=stored)
    assert row["verdict"] == []
    assert (row["value_min"], row["value_max"]) == (10, 40)
    lut, first = rescale.unpack_lut(row["modality_lut"])
    assert (lut.tolist(), first) == ([10, 20, 30, 40], -1)


def test_suv_factor_of_pet(tmp_path):
    dose = pydicom.Dataset()
    dose.RadionuclideTotalDose, dose.RadionuclideHalfLife, dose.RadiopharmaceuticalStartTime = 3.7e8, 6586.2, "090000"
    given_by_header = {
        "Modality": "PT",
        "SOPClassUID": PT,
        "Units": "BQML",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "DecayCorrection": "START",
        "PatientWeight": 70,
        "AcquisitionTime": "100500",
        "RadiopharmaceuticalInformationSequence": [dose],
    }
    row = one(tmp_path / "1", **given_by_header)
    said = json.loads(row["series_attributes"])
    assert said["suv_bw_factor"] == pytest.approx(70_000 / (3.7e8 * 2 ** (-3600 / 6586.2)))
    assert row["value_unit"] == "BQML"
    late = one(tmp_path / "2", **{**given_by_header, "AcquisitionTime": "095900"})  # a series "older" than its images
    assert "suv_bw_factor" not in json.loads(late["series_attributes"])


def test_enhanced_frames_have_their_own_geometry(tmp_path):
    write_enhanced(tmp_path / "mf.dcm", [5, 8], volumes=2)
    slices, payload, rejections, _ = ingest(tmp_path)
    assert not rejections
    assert [row["frame_number"] for row in slices] == [1, 2, 3, 4]
    assert [row["position_mm"] for row in slices] == [5, 8, 5, 8]
    assert [row["temporal_position"] for row in slices] == [1, 1, 2, 2]
    assert [row["echo_time_ms"] for row in slices] == [10, 10, 11, 11]
    assert [row["b_value"] for row in slices] == [0, 0, 1000, 1000]
    assert {(tuple(row["pixel_spacing_mm"]), row["slice_thickness_mm"]) for row in slices} == {((0.9, 0.8), 3.0)}
    assert {(row["rescale_slope"], row["rescale_intercept"]) for row in slices} == {(2.0, 1.0)}
    assert len({row["image_id"] for row in slices}) == 4
    truth = pydicom.dcmread(tmp_path / "mf.dcm").pixel_array
    for stored, array in zip(payload, truth, strict=True):
        np.testing.assert_array_equal(decoded(stored), array)


def test_a_source_stands_or_falls_as_a_whole(tmp_path):
    write_series(tmp_path, [0, 1, 2])
    path = write_enhanced(tmp_path / "zz.dcm", [0, 1, 2, 3])
    path.write_bytes(path.read_bytes()[:-30])
    slices, payload, rejections, _ = ingest(tmp_path)
    assert len(slices) == len(payload) == 3
    assert [(item.code, item.images) for item in rejections] == [("TRUNCATED", 4)]


def test_the_transfer_syntax_changes_nothing_but_its_column(tmp_path):
    rows = []
    for name, uid, implicit, little in (
        ("explicit", ExplicitVRLittleEndian, False, True),
        ("implicit", ImplicitVRLittleEndian, True, True),
        ("big", ExplicitVRBigEndian, False, False),
    ):
        ds = slice_dataset(PixelPaddingValue=-2000, DiffusionBValue=700.0, Exposure="12", SeriesDescription="CHEST")
        ds.file_meta.TransferSyntaxUID = uid
        if not little:
            ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
        (tmp_path / name).mkdir()
        pydicom.dcmwrite(tmp_path / name / "a.dcm", ds, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
        slices, _, _, _ = ingest(tmp_path / name)
        rows.append({key: value for key, value in slices[0].items() if key not in ("source_id", "folder_token", "transfer_syntax")})
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.parametrize("seed", range(6))
def test_mutilated_headers_end_as_rows_or_codes(tmp_path, seed):
    """Any exception but a code would stop a job."""
    random_bytes = np.random.default_rng(seed)
    raw = write_enhanced(tmp_path / "mf.dcm", [0, 1]).read_bytes() if seed % 2 else write(tmp_path, "a.dcm", slice_dataset()).read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(40):
        broken = bytearray(raw)
        for place in random_bytes.integers(128, len(raw) - 40, random_bytes.integers(1, 4)):
            broken[place] = random_bytes.integers(0, 256)
        (folder / f"{index}.dcm").write_bytes(
            bytes(broken[: len(raw) - int(random_bytes.integers(0, len(raw) - 300)) * int(index % 4 == 0)])
        )
    slices, payload, rejections, others = ingest(folder)
    assert len(slices) == len(payload)
    assert {str(row["source_id"]) for row in slices} | {item.source_id for item in rejections} or others


def test_guards(tmp_path):
    write(tmp_path, "a.dcm", slice_dataset())
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 4)
    for guard in (Guard(max_pixels=19), Guard(max_file_bytes=200)):
        _, others = files_of(tmp_path, Config(guard=guard))
        assert dict(others)["a.dcm"] == "TOO_LARGE"
    files, others = files_of(tmp_path)
    assert len(files) == 1
    assert others == [("empty.dcm", "EMPTY_FILE"), ("noise", "NOT_DICOM"), ("note.txt", "SKIPPED")]


def test_missing_meta_is_read_with_a_verdict(tmp_path):
    ds = slice_dataset()
    del ds.file_meta
    pydicom.dcmwrite(tmp_path / "bare.dcm", ds, implicit_vr=True, little_endian=True)
    slices, _, rejections, others = ingest(tmp_path)
    assert (rejections, others) == ([], [])
    assert slices[0]["verdict"] == ["SYNTAX_ASSUMED"]


@pytest.mark.parametrize("syntax", ["4.90", "4.80", "4.70", "5", "1"])
def test_as_received_keeps_compressed_frames_and_decodes_to_the_same(tmp_path, syntax):
    folder = shared_data("ct/one_slice_all_syntaxes")
    (path,) = folder.glob(f"*_1.2.840.10008.1.2.{syntax}.dcm")
    shutil.copy(path, tmp_path / "a.dcm")
    (row,), (stored,), _, _ = ingest(tmp_path, Config(series=Series(store="as_received")))
    (plain,), (blosc,), _, _ = ingest(tmp_path)
    assert stored["codec"] == ("blosc2" if syntax == "1" else f"dicom:1.2.840.10008.1.2.{syntax}")
    assert row == plain
    np.testing.assert_array_equal(decoded(stored), decoded(blosc))


# --- real files -------------------------------------------------------------------------------------------------------------------


def test_broken_files_each_end_somewhere():
    slices, _, rejections, others = ingest(shared_data("broken"))
    ends = Counter({(Path(item.uri).name, item.code): 1 for item in rejections}) + Counter(others)
    assert set(ends) == {
        ("badVR.dcm", "MISSING_ATTRIBUTE"),
        ("MR_truncated.dcm", "TRUNCATED"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "PIXEL_LENGTH"),
        ("histolab_broken.svs", "SKIPPED"),
        ("unreadable.svs", "SKIPPED"),
        ("liver_1frame.dcm", "SKIPPED"),
        ("rtstruct.dcm", "SKIPPED"),
        ("meta_missing_tsyntax.dcm", "TRUNCATED"),
        ("no_meta.dcm", "NOT_DICOM"),
        ("rtplan_truncated.dcm", "TRUNCATED"),
        ("zipMR.gz", "UNKNOWN_KIND"),
    }
    assert sorted(row["modality"] for row in slices) == ["CT", "MR"]


def test_every_real_file_is_accounted_for_and_ids_are_unique():
    folder = shared_data()
    slices, payload, rejections, others = ingest(folder)
    assert len(slices) == len(payload)
    assert max(Counter(row["image_id"] for row in slices).values()) == 1
    assert {item.code for item in rejections} <= {
        "DUPLICATE",
        "SOP_CONFLICT",
        "TRUNCATED",
        "MISSING_ATTRIBUTE",
        "PIXEL_LENGTH",
        "UNSUPPORTED_SYNTAX",
        "DECODE_FAILED",
    }
    assert Counter(code for _, code in others)["SKIPPED"] > 40
    assert Counter(row["modality"] for row in slices)["CT"] >= 28 + 3 + 8 + 12


def test_real_slices_of_all_lossless_syntaxes_are_one_image():
    slices, _, rejections, _ = ingest(shared_data("ct/one_slice_all_syntaxes"))
    codes = Counter(item.code for item in rejections)
    assert codes == {"DUPLICATE": 8}
    lossless = [row for row in slices if "LOSSY" not in row["verdict"]]
    assert [(row["value_min"], row["value_max"]) for row in lossless if row["rows"] == 512] == [(-3024 + 0.0, 1378.0)]


def test_real_ge_head_payload_is_pydicom_s():
    folder = shared_data("ct/ge_head_tilt")
    files, _ = files_of(folder)
    slices, payload, _ = explode_units(SERIES.plan(files, IDS, Config()).units)
    paths = {file.source_id: file.path for file in files}
    for row, stored in list(zip(slices, payload, strict=True))[::9]:
        truth = pydicom.dcmread(paths[row["source_id"]])
        np.testing.assert_array_equal(decoded(stored), truth.pixel_array)
    assert [row["position_mm"] for row in slices] == sorted(row["position_mm"] for row in slices)  # units run along the normal
    assert len(b"".join(stored["bytes"] for stored in payload)) < 0.45 * 28 * 512 * 512 * 2


def test_real_ultrasound_may_hold_names():
    slices, _, _, _ = ingest(shared_data("us"))
    assert all("BURNED_IN_POSSIBLE" in row["verdict"] for row in slices)


def test_texts_that_repeat_the_subject_are_dropped(tmp_path: Path) -> None:
    """A real archive wrote the PatientID into SequenceName; names stand in ImageType too."""
    named = {"SequenceName": "DOE-77", "SeriesDescription": "HEAD DOE", "ImageType": ["ORIGINAL", "PRIMARY", "DOE"], "PatientID": "DOE-77"}
    slices, _, rejections, _ = ingest(write_series(tmp_path, [0, 2], **named))
    assert (len(slices), rejections) == (2, [])
    for row in slices:
        assert "DOE" not in json.dumps(row, default=str).upper()
        assert row["image_type"] == ["ORIGINAL", "PRIMARY"]
