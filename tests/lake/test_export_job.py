"""``jobs/export_labels.py`` as a program: bad requests before Spark, and once through spark-submit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medspark.deid.crosswalk import Crosswalk
from medspark.deid.key import load_key
from tests.conftest import ROOT
from tests.lake import harness
from tests.lake.annotated import annotated_series

ALL = "SELECT label_row_id FROM labels"


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """The card of a lake that was written with a key, and nothing else: enough for what is refused before Spark starts."""
    from medspark.keys import Ids
    from medspark.lake import card

    card.check_key(str(tmp_path / "lake"), Ids(load_key(tmp_path / "deid.key", create=True)), create=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    return tmp_path / "lake"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--query", ALL, "--format", "coco", "--out", "full"], "the folder is not empty"),
        (["--query", ALL, "--format", "coco", "--out", "file"], "a file is there"),
        (["--query", " ", "--format", "coco", "--out", "out"], "expected SQL that returns label_row_id"),
        (["--query", ALL, "--format", "bmp", "--out", "out"], "invalid choice"),
        (["--query", ALL, "--format", "coco", "--out", "out", "--original-uids"], "only seg refers to images by UID"),
        (["--query", ALL, "--format", "seg", "--out", "out", "--original-uids"], "ingest the originals once more"),
        (
            ["--query", ALL, "--format", "seg", "--out", "out", "--original-uids", "--set", "deid.key_file=other.key"],
            "another de-identification key",
        ),
        (["--query", ALL, "--format", "seg", "--out", "out", "--set", "deid.crosswalks=true"], "did you mean 'crosswalk'"),
        (["--query", ALL, "--format", "seg", "--out", "ftp://x/y"], "no file system"),
        (["--lake", "nowhere", "--query", ALL, "--format", "seg", "--out", "out"], "no lake there"),
    ],
)
def test_a_bad_request_is_one_sentence_before_any_spark(lake: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    load_key(tmp_path / "other.key", create=True)
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "jobs" / "export_labels.py"),
            "--lake",
            str(lake),
            "--set",
            f"deid.key_file={tmp_path}/deid.key",
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        env={**os.environ, "JAVA_HOME": "/nowhere", "PATH": "/nowhere"},
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.spark
@pytest.mark.slow
def test_ingest_import_export_through_spark_submit(tmp_path: Path) -> None:
    folder, seg = annotated_series(tmp_path)
    lake, key = tmp_path / "lake", f"deid.key_file={tmp_path}/deid.key"
    harness.ended(
        harness.job("explode_series", "--lake", lake, "--input", folder, "--set", key, "--set", "deid.crosswalk=true", submit=True)
    )
    harness.ended(harness.job("import_labels", "--lake", lake, "--input", seg, "--set", key))
    asked = ("--lake", lake, "--set", key, "--query", ALL)
    said = harness.ended(harness.job("export_labels", *asked, "--format", "seg", "--out", tmp_path / "seg", "--original-uids", submit=True))
    assert (said["files"], said["label_rows"], said["rejected"]) == (1, 3, 0)
    assert set(said["written"]) == {"kpi"}  # what it measured of itself, and nothing else
    harness.ended(harness.job("export_labels", *asked, "--format", "geojson", "--out", tmp_path / "geo"), status=3)
    harness.ended(
        harness.job("export_labels", "--lake", lake, "--query", "SELECT x FROM labels", "--format", "coco", "--out", tmp_path / "o"),
        status=2,
    )
    import pydicom

    known = {str(pydicom.dcmread(path).SOPInstanceUID) for path in folder.iterdir()}
    ds = pydicom.dcmread(next((tmp_path / "seg").glob("*.dcm")))
    assert {str(item.ReferencedSOPInstanceUID) for item in ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence} == known
    walk = Crosswalk.beside(tmp_path / "deid.key", load_key(tmp_path / "deid.key", create=False))
    assert known <= set(walk.of(harness.rows(lake, "series")[0]["series_instance_id"]).uids.values())
