"""A full disk, a read-only lake, a key that others may read, paths with spaces and letters of other alphabets: a sentence, and nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medspark.errors import BadRequest
from medspark.lake import ingest, owner
from medspark.lake.batch import Batch, refuse_second_writer
from medspark.lake.files import FULL
from medspark.lake.store import Lake
from tests.conftest import ROOT
from tests.lake import harness
from tests.lake.patients import flip, write_patients
from tests.phantoms import series as phantoms
from tests.phantoms import tiff_slides


class Disk:
    """A small disk in memory, mounted for the test."""

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip("needs the right to mount")

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if not Path("/proc/mounts").exists() or os.geteuid() != 0:
        pytest.skip("needs the right to mount")
    made = Disk(tmp_path / "disk", "12m")
    yield made
    made.close()


def large_series(folder: Path, count: int) -> Path:
    """Noise of 512 x 512, which no codec makes small: half a megabyte a slice."""
    noise = np.random.default_rng(5)
    pixels = tuple(noise.integers(0, 30_000, (1, 512, 512)) for _ in range(count))
    uids = tuple(f"4.{place}" for place in range(count))
    return phantoms.write_series(folder, [2.0 * place for place in range(count)], Rows=512, Columns=512, pixels=pixels, SOPInstanceUID=uids)


def one_sentence(process: subprocess.Popen[str], status: int, said: str) -> None:
    out, err = process.communicate(timeout=300)
    lines = [line for line in err.strip().splitlines() if not line.startswith("{")]  # the log is JSON lines
    assert process.returncode == status, err[-3000:]
    assert said in lines[-1] and "Traceback" not in err and out == "", err[-3000:]


@pytest.mark.spark
@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing(spark: Any, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, small = (
        large_series(tmp_path / "ct", 40),
        phantoms.write_series(tmp_path / "small", [0, 2], SeriesInstanceUID=phantoms.ROOT + "66"),
    )
    lake, whole = disk.path / "lake", tmp_path / "whole"
    harness.run(spark, whole, [small])
    with monkeypatch.context() as patched:
        patched.setattr(ingest, "SPARE_BYTES", -(1 << 40))  # as if the disk had been empty when the batch began
        harness.run(spark, lake, [small])
        with pytest.raises(Exception, match=FULL):
            harness.run(spark, lake, [folder])
        harness.same(whole, lake)
    one_sentence(harness.job("explode_series", "--lake", lake, "--dataset", "test", "--input", folder), 2, "GB free")
    disk.remount("size=600m")
    harness.run(spark, lake, [folder, small])
    harness.run(spark, whole, [folder])
    harness.same(whole, lake)
    assert harness.rows(lake, "claims") == []


@pytest.mark.spark
@pytest.mark.slow
def test_a_read_only_lake(spark: Any, disk: Disk, tmp_path: Path) -> None:
    lake = disk.path / "lake"
    disk.remount("size=600m")
    folder = phantoms.write_series(tmp_path / "ct", [0, 2])
    harness.run(spark, lake, [folder])
    disk.remount("ro")
    for job, options in (("explode_series", ["--input", folder]), ("maintain_lake", ["--cluster"])):
        one_sentence(harness.job(job, "--lake", lake, *options), 2, "cannot be written (Read-only file system)")
    one_sentence(harness.job("explode_series", "--lake", disk.path / "new", "--input", folder), 2, "cannot be written")
    assert len(harness.rows(lake, "slices")) == 2
    done = subprocess.run([sys.executable, "-m", "medspark", "status", "--lake", str(lake)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "slices" in done.stdout, "reading goes on"


def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    key = tmp_path / "deid.key"
    key.write_text("0" * 64)
    key.chmod(0o644)
    folder = phantoms.write_series(tmp_path / "ct", [0, 2])
    job = harness.job("explode_series", "--lake", tmp_path / "lake", "--input", folder, "--set", f"deid.key_file={key}")
    one_sentence(job, 2, f"chmod 600 {key}")
    assert not (tmp_path / "lake").exists() and oct(key.stat().st_mode)[-3:] == "644", "refused, not repaired"


@pytest.mark.spark
@pytest.mark.slow
def test_a_lake_on_a_path_with_spaces_and_other_letters(tmp_path: Path) -> None:
    where = tmp_path / "Klinik Süd, 100% #1 [neu] Łódź"
    jones, seg, smith = write_patients(where / "Eingang +1")
    (where / "Präparat").mkdir(parents=True)
    slide = tiff_slides.generic(where / "Präparat" / "α β.tif", tiff_slides.pyramid(tiff_slides.picture(256, 192), 2), "jpeg", side=64)
    lake = where / "das Lake"
    tiled = ["--set", "tiling.tile_px=64", "--set", "tiling.assume_mpp_um=0.5", "--set", "tiling.min_tissue=0"]
    run = lambda job, *given: harness.ended(harness.job(job, "--lake", lake, *given))
    assert run("explode_series", "--dataset", "test", "--input", jones, smith)["written"]["slices"] == 5
    assert run("import_labels", "--input", seg)["written"]["labels"] > 0
    assert run("tile_slides", "--input", slide, *tiled)["written"]["tiles"] == 12
    assert run("explode_series", "--dataset", "test", "--input", jones, smith)["skipped"] == 5

    tool = lambda *given: subprocess.run([sys.executable, "-m", "medspark", *given], capture_output=True, text=True, timeout=120)
    status = json.loads(tool("status", "--lake", str(lake), "--json").stdout)
    assert status["tables"]["slices"]["rows"] == 5 and status["tables"]["pixels"]["rows"] == 17
    assert "| 17" in tool("sql", "--lake", str(lake), "SELECT count(*) AS n FROM pixels").stdout.replace("|17", "| 17")

    before = harness.content(lake)
    said = run("maintain_lake", "--cluster", "--verify", "--migrate", "--vacuum", "0")
    assert said["verified"]["damaged"] == [] and {"sources", "kpi"} <= set(said["clustered"])
    assert said["vacuumed"]["tables"]["sources"] and not said["vacuumed"]["unknown"], "the files that were laid anew"
    assert harness.content(lake) == before
    image = harness.rows(lake, "slices")[0]["image_id"]
    flip(lake, image)
    damaged = harness.ended(harness.job("maintain_lake", "--lake", lake, "--verify"), 3)
    assert damaged["verified"]["damaged"][0]["ids"] == [image]
    assert run("explode_series", "--dataset", "test", "--input", jones, smith)["mended"] == 1
    assert harness.content(lake) == before
    subject = harness.rows(lake, "labels")[0]["subject_key"]
    assert run("maintain_lake", "--forget-subject", subject)["forgotten"]["rows"]["slices"] == 3
    assert len(harness.rows(lake, "slices")) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to do"),
        (["--vacuum", "-1"], "expected hours"),
        (["--verify", "1.5"], "a fraction above 0"),
        (["--forget-subject", "Jones"], "32 hexadecimal digits"),
        (["--cluster"], "no lake there"),
        (["--vacuum", "soon"], "invalid float value"),
    ],
)
def test_bad_requests_of_maintain_lake(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "maintain_lake.py"), "--lake", "x", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert (done.returncode, done.stdout, len(done.stderr.strip().splitlines())) == (2, "", 1), done.stderr
    assert said in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.spark
def test_on_s3_a_second_writer_is_refused_without_a_log_store_for_two(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule alone, on a local lake that goes by an address on S3: there is no S3 here to lose commits on."""
    lake = Lake(spark, str(tmp_path / "lake"))
    lake.ensure(["claims", "sources"])
    mine, other = Batch(lake, "run", "explode_series", "x", 60.0), Batch(lake, "run", "explode_series", "x", 60.0)
    mine.claim(["a"], {})
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(owner, "current", lambda: owner.Owner("elsewhere", "-", "-", 7, "7"))
        other.claim(["b"], {})
    third = Batch(lake, "run", "explode_series", "x", 60.0)
    there = lake.uri
    refuse_second_writer(lake)  # any other file system keeps them apart
    for uri in ("s3a://bucket/lake", "s3://bucket/lake"):
        lake.uri = uri
        with pytest.raises(BadRequest, match=rf"batch {other.batch_id} is open.*docs/clusters.md"):
            third.claim(["c"], {})
        with pytest.raises(BadRequest, match="another job writes"):
            third.claim_alone()
    lake.uri = "s3a://bucket/lake"
    for store, excludes in (("io.delta.storage.S3SingleDriverLogStore", False), ("io.delta.storage.S3DynamoDBLogStore", True)):
        spark.conf.set("spark.delta.logStore.s3a.impl", store)
        assert lake.excludes_writers is excludes
    refuse_second_writer(lake)
    spark.conf.unset("spark.delta.logStore.s3a.impl")
    lake.uri = there
    other.release()
    lake.uri = "s3a://bucket/lake"
    refuse_second_writer(lake, mine.batch_id)  # a batch of this very process (labels beside their images) is nobody else's
    with pytest.raises(BadRequest, match="this job's claim was overwritten"):
        refuse_second_writer(lake, third.batch_id)
    lake.uri = there
    mine.release()


def test_a_job_that_is_refused_at_its_start_leaves_no_card(tmp_path: Path) -> None:
    """Else the folder would be a lake of this key for ever, without one table."""
    series, lake = phantoms.write_series(tmp_path / "ct", [0.0]), tmp_path / "lake"
    cluster = {"SPARK_ENV_LOADED": "1", "PYSPARK_SUBMIT_ARGS": "--master spark://127.0.0.1:9 pyspark-shell"}  # refused before it is asked
    given = ("explode_series", "--lake", lake, "--input", series, "--set", "spark.authenticate=true")
    one_sentence(harness.job(*given, env=cluster), 2, "--properties-file secret.conf")
    assert not [path for path in lake.rglob("*") if path.is_file()]
