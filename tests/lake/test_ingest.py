"""The engine's laws on small series: nothing is lost, nothing is doubled, the order of arrival leaves no trace."""

from __future__ import annotations

import ctypes
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medspark import config
from medspark.errors import BadRequest
from medspark.keys import Ids
from medspark.lake import card, ingest
from medspark.lake.status import status
from medspark.series.kind import SeriesKind
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import Unit, Watch
from tests.lake import harness
from tests.phantoms import series as phantoms

pytestmark = pytest.mark.spark


def test_a_series_once_and_again(spark: Any, tmp_path: Path) -> None:
    folder = phantoms.write_series(tmp_path / "ct", [0, 2, 4, 6])
    lake = tmp_path / "lake"
    first = harness.run(spark, lake, [folder])
    assert first.written["slices"] == first.written["pixels"] == first.written["sources"] == 4
    before = harness.content(lake)
    again = harness.run(spark, lake, [folder])
    assert again.skipped == 4
    assert again.written.total() == 0
    assert harness.content(lake) == before
    row = harness.rows(lake, "series")[0]
    assert (row["n_slices"], row["slice_spacing_mm"]) == (4, pytest.approx(2.0))
    assert [slice_["k"] for slice_ in sorted(harness.rows(lake, "slices"), key=lambda slice_: slice_["position_mm"])] == [0, 1, 2, 3]


def test_files_one_by_one_in_any_order_give_the_same_lake(spark: Any, tmp_path: Path) -> None:
    folder = phantoms.write_series(tmp_path / "ct", [0, 2, 4, 9])
    whole, fed = tmp_path / "whole", tmp_path / "fed"
    harness.run(spark, whole, [folder])
    files = sorted(folder.iterdir())
    random.Random(5).shuffle(files)
    written = [harness.run(spark, fed, [file]).written for file in files]
    assert [(one["slices"], one["series"], one["subjects"]) for one in written] == [(1, 1, 1)] + [(1, 0, 0)] * 3  # the first row stays
    harness.same(whole, fed)
    harness.keys_unique(fed)


def test_late_slices_that_split_their_series_off_get_their_row(spark: Any, tmp_path: Path) -> None:
    """Late slices of a known SeriesInstanceUID in another frame of reference are a series of their own, as when all came at once."""
    first = phantoms.write_series(tmp_path / "in" / "a", [0, 2])
    late = phantoms.write_series(tmp_path / "in" / "b", [4], FrameOfReferenceUID=phantoms.ROOT + "44", SOPInstanceUID=("7.1",))
    harness.run(spark, tmp_path / "lake", [first])
    harness.run(spark, tmp_path / "lake", [late])
    harness.run(spark, tmp_path / "whole", [first, late])
    assert len(harness.rows(tmp_path / "whole", "series")) == 2
    harness.same(tmp_path / "whole", tmp_path / "lake")


def test_equal_and_conflicting_instances(spark: Any, tmp_path: Path) -> None:
    folder = phantoms.write_series(tmp_path / "ct", [0, 2])
    (folder / "copy.dcm").write_bytes((folder / "IM0000.dcm").read_bytes())
    other = phantoms.slice_dataset(SOPInstanceUID=phantoms.ROOT + "1.2", ImagePositionPatient=[-10, -20, 2], pixels=[[[7] * 5] * 4])
    phantoms.write(folder, "zz_conflict.dcm", other)
    lake = tmp_path / "lake"
    summary = harness.run(spark, lake, [folder])
    assert (summary.written["slices"], summary.duplicates, summary.rejected) == (2, 1, 1)
    assert sorted(row["code"] for row in harness.rows(lake, "rejected")) == ["DUPLICATE", "SOP_CONFLICT"]
    late = phantoms.write(tmp_path / "late", "again.dcm", other)
    summary = harness.run(spark, lake, [late])
    assert (summary.written["slices"], summary.rejected) == (0, 1)
    assert len(harness.rows(lake, "slices")) == 2


class Hostile(SeriesKind):
    """Series whose files named crash* and hang* kill or stop the process that decodes them."""

    def explode(self, unit: Unit, ids: Ids, settings: config.Config, watch: Watch) -> Iterator[Rows | Rejection]:
        def watched(source: Any, what: str = "") -> None:
            watch(source, what)
            if "crash.dcm" in source.uri:
                ctypes.string_at(0)
            if "hang.dcm" in source.uri:
                re.match("(a|a)+$", "a" * 60 + "b")  # holds the interpreter: no Python thread could end it

        return super().explode(unit, ids, settings, watched)


def test_a_decoder_that_crashes_or_hangs_costs_one_source(spark: Any, tmp_path: Path) -> None:
    folder = phantoms.write_series(tmp_path / "ct", [0, 2, 4, 6, 8])
    (folder / "IM0001.dcm").rename(folder / "crash.dcm")
    (folder / "IM0003.dcm").rename(folder / "hang.dcm")
    lake = tmp_path / "lake"
    settings = config.load(None, ["guard.decode_s=3"])
    summary = harness.run(spark, lake, [folder], Hostile(), settings)
    assert summary.written["slices"] == 3
    found = {Path(row["uri"]).name: row["code"] for row in harness.rows(lake, "rejected")}
    assert found == {"crash.dcm": "DECODER_CRASHED", "hang.dcm": "DECODER_TIMEOUT"}
    assert {row["status"] for row in harness.rows(lake, "sources") if Path(row["uri"]).name in found} == {"rejected"}
    row = harness.rows(lake, "series")[0]
    assert row["n_slices"] == 3
    again = harness.run(spark, lake, [folder], settings=settings, retry_rejected=True)
    assert (again.written["slices"], again.skipped) == (2, 3)
    assert harness.rows(lake, "rejected") == []
    harness.keys_unique(lake)
    assert harness.rows(lake, "series")[0]["n_slices"] == 5


def test_unexpected_errors_cost_their_file(spark: Any, tmp_path: Path) -> None:
    folder = phantoms.write_series(tmp_path / "ct", [0, 2])
    lake = tmp_path / "lake"
    harness.run(spark, lake, [folder], Buggy())
    (row,) = harness.rows(lake, "rejected")
    assert (row["code"], row["stage"]) == ("DECODE_FAILED", "scan")
    assert "ZeroDivisionError" in row["message"]
    assert "secret" not in row["message"]


class Buggy(SeriesKind):
    def scan(self, path: str, uri: str, ids: Ids, settings: config.Config) -> dict[str, Any]:
        if path.endswith("IM0001.dcm"):
            raise ZeroDivisionError("secret")
        return super().scan(path, uri, ids, settings)


def test_another_key_is_refused(spark: Any, tmp_path: Path) -> None:
    card.check_key(str(tmp_path / "lake"), Ids(b"a" * 32), create=True)
    card.check_key(str(tmp_path / "lake"), Ids(b"a" * 32), create=True)
    with pytest.raises(BadRequest, match="another de-identification key"):
        card.check_key(str(tmp_path / "lake"), Ids(b"b" * 32), create=True)


def test_status_reads_without_spark(spark: Any, tmp_path: Path) -> None:
    folder = phantoms.write_series(tmp_path / "ct", [0, 2])
    harness.run(spark, tmp_path / "lake", [folder])
    found = status(str(tmp_path / "lake"))
    assert found.tables["slices"]["rows"] == 2
    assert found.batches == []
    assert found.sources == {"explode_series: ok": 2}
    with pytest.raises(BadRequest, match="no lake"):
        status(str(tmp_path / "nothing"))


def test_small_batches_make_the_same_lake(spark: Any, tmp_path: Path) -> None:
    folder = phantoms.write_series(tmp_path / "ct", [0, 2, 4, 6, 8])
    harness.run(spark, tmp_path / "one", [folder])
    summary = harness.run(spark, tmp_path / "many", [folder], settings=config.load(None, ["ingest.batch_sources=2"]))
    assert summary.written["slices"] == 5
    harness.same(tmp_path / "one", tmp_path / "many")


def test_dry_run_writes_nothing(spark: Any, tmp_path: Path) -> None:
    folder = phantoms.write_series(tmp_path / "ct", [0, 2])
    summary = harness.run(spark, tmp_path / "lake", [folder], dry_run=True)
    assert summary.extra["plan"]["images"] == 2
    assert not [path for path in tmp_path.glob("lake/*/_delta_log")]


def test_an_error_in_the_engine_leaves_nothing_behind(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, say: the batch is given up at once, in the same process, and the next run is as if it had never been."""
    folder, lake = phantoms.write_series(tmp_path / "ct", [0, 2]), tmp_path / "lake"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("medspark.lake.batch.Batch.close", full)
        harness.run(spark, lake, [folder])
    assert harness.rows(lake, "slices") == harness.rows(lake, "claims") == harness.rows(lake, "pixels") == []
    assert harness.run(spark, lake, [folder]).written["slices"] == 2
    harness.keys_unique(lake)


def test_a_disk_too_small_is_refused_before_the_batch(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, lake = phantoms.write_series(tmp_path / "ct", [0, 2]), tmp_path / "lake"
    monkeypatch.setattr(ingest, "SPARE_BYTES", 1 << 60)
    with pytest.raises(BadRequest, match="GB free"):
        harness.run(spark, lake, [folder])
    assert harness.rows(lake, "claims") == []


def test_a_newer_lake_is_refused(spark: Any, tmp_path: Path) -> None:
    folder, lake = phantoms.write_series(tmp_path / "ct", [0, 2]), tmp_path / "lake"
    harness.run(spark, lake, [folder])
    spark.sql(f"ALTER TABLE delta.`{lake}/sources` SET TBLPROPERTIES ('medspark.schema' = '2.0')")
    with pytest.raises(BadRequest, match="newer medspark"):
        harness.run(spark, lake, [folder])
