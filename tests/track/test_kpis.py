"""What jobs measured of themselves is copied into MLflow once: beside the run that it belongs to, or as a run of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from medspark.lake import kpi
from medspark.lake.ingest import Summary, record_kpi
from medspark.lake.store import Lake
from medspark.track import kpis, runs
from tests.track.test_runs import begin


def test_rates_and_sweeps() -> None:
    assert kpi.work("toppi_s", 2.0, 10, 400) == {"toppi_s": (2.0, "s"), "images_per_s": (5.0, "1/s"), "bytes_per_s": (200.0, "bytes/s")}
    assert kpi.work("totm_s", 0.0, 10) == {"totm_s": (0.0, "s")}
    assert kpi.sweep({1: 8.0, 2: 5.0, 4: 4.0}) == {1: (1.0, 1.0), 2: (1.6, 0.8), 4: (2.0, 0.5)}
    assert set(kpi.MEANING) == set(kpi.UNITS)


def rows(run_id: str, at: datetime, **values: float) -> list[dict[str, Any]]:
    common = {"run_id": run_id, "job": "explode_series", "unit": "s", "recorded_at": at, "context": [("n", "2")]}
    return [{**common, "metric": name, "value": value} for name, value in values.items()]


def test_rows_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lake = tmp_path / "lake"
    (lake / "kpi" / "_delta_log").mkdir(parents=True)
    (lake / "kpi" / "_delta_log" / f"{0:020d}.json").write_text("")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    trained = begin(uri)
    now = datetime.now(UTC)
    table = [*rows("job1", now, toppi_s=3.0, scan_s=1.0), *rows(trained, now, totm_s=9.0)]
    monkeypatch.setattr(kpis, "new_rows", lambda lake, since: [row for row in table if row["recorded_at"] > since])
    assert kpis.mirror(str(lake), uri) == 2
    store = runs.client(uri)
    assert store.get_run(trained).data.metrics["kpi/totm_s"] == 9.0
    experiment = store.get_experiment_by_name(kpis.EXPERIMENT).experiment_id
    (own,) = store.search_runs([experiment])
    assert own.data.metrics == {"kpi/toppi_s": 3.0, "kpi/scan_s": 1.0} and own.data.tags["job"] == "explode_series"
    table += rows("job2", now + timedelta(minutes=1), toppi_s=4.0)
    kpis.mirror(str(lake), uri)
    assert len(store.search_runs([experiment])) == 2, "job1 was looked at again and not made again"
    assert [point.value for point in store.get_metric_history(own.info.run_id, "kpi/toppi_s")] == [3.0]


@pytest.mark.spark
def test_rows_of_a_real_lake(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    lake = Lake(spark, str(tmp_path))
    assert kpi.record(lake, "r1", "tile_slides", kpi.work("toppi_s", 2.0, 10), {"n": "1"}) == 2
    found = kpis.new_rows(lake, datetime.min.replace(tzinfo=UTC))
    assert {(row["metric"], row["value"], row["unit"]) for row in found} == {("toppi_s", 2.0, "s"), ("images_per_s", 5.0, "1/s")}
    summary = Summary("import_labels", "r2", str(tmp_path), new_sources=1, images=4, input_bytes=80, seconds=3.0)
    summary.stages |= {"start": 1.0, "scan": 0.5, "explode": 1.5}
    record_kpi(lake, summary, 36.0)
    values = {row["metric"]: row["value"] for row in kpis.new_rows(lake, datetime.min.replace(tzinfo=UTC)) if row["run_id"] == "r2"}
    assert values["toppi_s"] == 2.0 and values["total_s"] == 3.0 and values["annotation_min"] == 36.0
    assert values["images_per_s"] == 2.0 and values["bytes_per_s"] == 40.0
    nothing_new = Summary("import_labels", "r3", str(tmp_path))
    record_kpi(lake, nothing_new, 36.0)
    again = {row["metric"] for row in kpis.new_rows(lake, datetime.min.replace(tzinfo=UTC)) if row["run_id"] == "r3"}
    assert "annotation_min" not in again and "toppi_s" in again, "minutes are counted once"
    assert kpis.new_rows(lake, datetime.now(UTC)) == []

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nobody = "http://127.0.0.1:9"  # the port of "discard": nothing listens there
    with pytest.raises(MlflowException):
        kpis.mirror(str(tmp_path), nobody)
    kpis.brought(str(tmp_path), nobody)
    assert "KPIs are not in MLflow yet" in caplog.text
