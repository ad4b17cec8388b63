"""The three jobs through spark-submit, on real files where they are present; exit statuses; what a hospital would grep for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medspark.keys import PARENT_DIGITS
from medspark.lake import sql
from medspark.lake.pixels import PixelReader
from tests.conftest import ROOT
from tests.lake import harness
from tests.phantoms import series as phantoms
from tests.real import shared_data

IDENTIFYING = (
    "PatientName PatientID PatientBirthDate OtherPatientIDs AccessionNumber InstitutionName InstitutionAddress ReferringPhysicianName "
    "OperatorsName PerformingPhysicianName StationName DeviceSerialNumber StudyInstanceUID SeriesInstanceUID SOPInstanceUID "
    "FrameOfReferenceUID StudyDate SeriesDate AcquisitionDate ContentDate"
).split()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lake", "x", "--input", "/nowhere"], "no such file or folder"),
        (["--lake", "x", "--input", ".", "--set", "tiling.tile=3"], "did you mean 'tile_px'"),
        (["--lake", "x", "--input", ".", "--set", "tiling.edge=round"], "expected one of pad, drop, clip"),
        (["--lake", "x", "--input", ".", "--conf", "/nowhere.toml"], "no such file"),
        (["--lake", "x", "--input", ".", "--set", "spark.driver.memory=8g"], "--driver-memory"),
        (["--lake", "x", "--input", ".", "--subject-pattern", "("], "not a regular expression"),
        (["--input", "."], "--lake"),
        (["--lake", "ftp://x/y", "--input", "."], "no file system"),
    ],
)
def test_a_bad_request_is_one_sentence_before_any_spark(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "tile_slides.py"), *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not (tmp_path / "x").exists()


def identifying(folder: Path) -> set[str]:
    """Names, ids, dates and UIDs of every DICOM file below, of four characters or more."""
    found: set[str] = set()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            ds = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:
            continue
        for keyword in IDENTIFYING:
            value = ds.get(keyword)
            values = value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
            found |= {str(one).strip() for one in values if one is not None and len(str(one).strip()) >= 4}
    return found


def greps(lake: Path, secrets: set[str]) -> list[tuple[str, str, str]]:
    """Where a secret occurs outside the two ledgers' ``uri``."""
    hits = []
    for table, column, text in harness.strings(lake):
        if (table in harness.LEDGERS and column == "uri") or column in ("bytes", "mask", "thumbnail", "tissue_mask"):
            continue
        hits += [(table, column, secret) for secret in secrets if secret in text]
    return hits


@pytest.mark.spark
@pytest.mark.slow
def test_real_series_labels_and_slide(spark: Any, tmp_path: Path) -> None:
    """The whole main job on the real CT and the real slide: counts, geometry, label pixels, nothing identifying."""
    ct, wsi, lake = shared_data("ct/ge_head_tilt"), shared_data("wsi/CMU-1-Small-Region.svs"), tmp_path / "lake"
    said = harness.ended(harness.job("explode_series", "--lake", lake, "--input", ct, submit=True))
    assert said["written"]["slices"] == 28
    said = harness.ended(
        harness.job(
            "tile_slides", "--lake", lake, "--input", wsi, "--set", "tiling.tile_px=native", "--set", "tiling.min_tissue=0", submit=True
        )
    )
    assert (said["written"]["tiles"], said["written"]["pixels"]) == (130, 130)
    said = harness.ended(
        harness.job(
            "import_labels",
            *("--lake", lake, "--input", ct.parent / "ge_head_tilt_labels_derived", wsi.parent / "annotations/CMU-1-Small-Region.asap.xml"),
            submit=True,
        )
    )
    assert said["rejected"] == 2  # the misplaced contours, and the JSON of pixel counts
    series = harness.rows(lake, "series")[0]
    assert set(series["verdict"]) == {"GANTRY_TILT", "IRREGULAR_SPACING", "MIXED_THICKNESS"}
    assert series["tilt_deg"] == pytest.approx(18.5, abs=0.01)
    places = sorted(row["position_mm"] for row in harness.rows(lake, "slices"))
    assert np.round(np.diff(places), 2).tolist() == [4.0] * 13 + [1.08] + [7.0] * 13
    sql.register(spark, str(lake))
    answer = spark.sql(
        "SELECT l.source_id, count(*) n, sum(area_px) px, sum(mask_area(mask, l.rows, l.cols)) again FROM labels l "
        "JOIN slices s USING (image_id) WHERE label LIKE 'bone%' GROUP BY 1"
    ).collect()
    assert [(row.n, row.px, row.again) for row in answer] == [(28, 373405, 373405)] * 2
    tiles = spark.sql("SELECT pixel_source, count(*) n FROM tiles GROUP BY 1").collect()
    assert {row.pixel_source: row.n for row in tiles} == {"passthrough": 108, "reencoded": 22}
    _equals_openslide(lake, wsi)
    assert greps(lake, identifying(ct)) == []


def _equals_openslide(lake: Path, path: Path) -> None:
    import openslide
    from pyarrow import fs as pafs

    tiles = [row for row in harness.rows(lake, "tiles") if row["pixel_source"] == "passthrough"]
    prefix = tiles[0]["slide_id"][:PARENT_DIGITS]
    arrays = PixelReader(pafs.LocalFileSystem(), [str(file) for file in (lake / "pixels").glob("*.parquet")], prefix)(
        [row["image_id"] for row in tiles]
    )
    with openslide.OpenSlide(str(path)) as slide:
        for row in tiles:
            theirs = np.asarray(
                slide.read_region((int(row["x_l0"]), int(row["y_l0"])), 0, (row["width_px"], row["height_px"])).convert("RGB")
            )
            assert np.array_equal(arrays[row["image_id"]], theirs)


@pytest.mark.spark
def test_syntaxes_of_one_slice_give_one_hash(spark: Any, tmp_path: Path) -> None:
    folder, lake = shared_data("ct/one_slice_all_syntaxes"), tmp_path / "lake"
    for number, path in enumerate(sorted(folder.iterdir())):
        harness.run(spark, lake, [path], dataset=f"variant{number}")
    rows = harness.rows(lake, "slices")
    lossless = [row["pixel_hash"] for row in rows if "LOSSY" not in row["verdict"] and row["rows"] == 512 and row["frame_number"] == 1]
    assert len(lossless) == 9
    assert len(set(lossless)) == 1
    assert harness.rows(lake, "rejected") == []


@pytest.mark.spark
def test_every_broken_file_leaves_a_trace(spark: Any, tmp_path: Path) -> None:
    folder, lake = shared_data("broken"), tmp_path / "lake"
    files = [path for path in folder.rglob("*") if path.is_file()]
    harness.run(spark, lake, [folder])
    ledger = {Path(row["uri"]).name: row["status"] for row in harness.rows(lake, "sources")}
    assert set(ledger) == {path.name for path in files}
    rejected = {Path(row["uri"]).name: row for row in harness.rows(lake, "rejected")}
    assert {name for name, state in ledger.items() if state == "rejected"} == set(rejected)
    assert all(len(row["message"]) > 10 and "Traceback" not in row["message"] for row in rejected.values())


@pytest.mark.spark
def test_files_that_lie_or_are_empty(spark: Any, tmp_path: Path) -> None:
    """0 bytes, a memory bomb, short pixels, a text file, a directory listing; and pydicom's own files, which are real."""
    folder, lake = tmp_path / "in", tmp_path / "lake"
    phantoms.write_series(folder, [0, 2])
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "notes.txt").write_text("nothing to see")
    (folder / "ct_small.dcm").write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    bomb = phantoms.slice_dataset(SOPInstanceUID=phantoms.ROOT + "5.1")
    bomb.Rows = bomb.Columns = 65535
    bomb.NumberOfFrames = 30000
    phantoms.write(folder, "bomb.dcm", bomb)
    short = phantoms.slice_dataset(SOPInstanceUID=phantoms.ROOT + "5.2")
    short.PixelData = short.PixelData[:-10]
    phantoms.write(folder, "short.dcm", short)
    cut = (folder / "IM0000.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(cut[: len(cut) // 2])
    summary = harness.run(spark, lake, [folder])
    codes = {Path(row["uri"]).name: row["code"] for row in harness.rows(lake, "rejected")}
    assert codes["empty.dcm"] == "EMPTY_FILE"
    assert codes["bomb.dcm"] in ("TOO_LARGE", "PIXEL_LENGTH")
    assert codes["short.dcm"] in ("PIXEL_LENGTH", "TRUNCATED")
    assert codes["cut.dcm"] in ("TRUNCATED", "NO_IMAGE")  # it ends between two elements
    assert set(codes) == {"empty.dcm", "bomb.dcm", "short.dcm", "cut.dcm"}
    assert summary.written["slices"] == 3
    assert summary.skipped == 1
    assert greps(lake, {"Doe^Jane", "Doe", phantoms.ROOT}) == []


@pytest.mark.spark
def test_another_dataset_and_token_addresses(spark: Any, tmp_path: Path) -> None:
    from medspark import config

    folder, lake = phantoms.write_series(tmp_path / "ct", [0, 2]), tmp_path / "lake"
    tokens = config.load(None, ["deid.uris=token"])
    assert harness.run(spark, lake, [folder], settings=tokens).written["slices"] == 2
    assert harness.run(spark, lake, [folder], settings=tokens).skipped == 2
    assert harness.run(spark, lake, [folder], settings=tokens, dataset="other").written["slices"] == 2
    assert all(row["uri"].startswith("token:") for row in harness.rows(lake, "sources"))
