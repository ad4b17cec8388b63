"""What jobs measure of themselves: rows of ``kpi``. The names that all jobs share are in `MEANING`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

from medspark.lake.store import Lake
from medspark.tables.rows import Rows

MEANING = {
    "toppi_s": "time of pre-processing images (TOPPI): listing, hashing, decoding, labelling, writing; without the start of the session",
    "totm_s": "time of the main task (TOTM): training, evaluating or predicting; without the start of the session",
    "ttmip_s": "time to move a model into production (TTMIP): from its registration to its first served prediction",
    "images_per_s": "images per second of the task",
    "bytes_per_s": "bytes of the input (of the stored pixels where there is no input) per second of the task",
    "speed_up": "T(1) / T(n), n in the context",
    "efficiency": "T(1) / (n T(n)), n in the context",
    "annotation_min": "minutes that a person spent on the annotations of this run, as given",
}
"""KPIs that mean the same in every job; a job's other rows are its own (``scan_s``, ``explode_s``, ...)."""

UNITS = {
    "toppi_s": "s",
    "totm_s": "s",
    "ttmip_s": "s",
    "images_per_s": "1/s",
    "bytes_per_s": "bytes/s",
    "speed_up": "1",
    "efficiency": "1",
    "annotation_min": "min",
}


def record(lake: Lake, run_id: str, job: str, values: Mapping[str, tuple[float, str]], context: Mapping[str, str] | None = None) -> int:
    """Appends one row for each of metric -> (value, unit); returns their number. ``context`` : what it was measured on."""
    now = datetime.now(UTC)
    rows = Rows.of(
        "kpi",
        [
            {"job": job, "metric": metric, "value": float(value), "unit": unit, "recorded_at": now, "context": dict(context or {})}
            for metric, (value, unit) in values.items()
        ],
    )
    lake.ensure(["kpi"])
    file = lake.write_file("kpi", [rows.to_arrow(run_id, "")], f"part-{run_id}-{uuid.uuid4().hex[:8]}.parquet")
    lake.transact("kpi", [file] if file else [], metadata=lake.user_metadata(run=run_id))
    return len(rows)


def work(task: str, seconds: float, images: int = 0, size_bytes: int = 0) -> dict[str, tuple[float, str]]:
    """KPIs of a task. ``task``: toppi_s or totm_s; rates only where something was done in a measurable time."""
    said = {task: (seconds, UNITS[task])}
    if seconds > 0:
        said |= {"images_per_s": (images / seconds, UNITS["images_per_s"])} if images else {}
        said |= {"bytes_per_s": (size_bytes / seconds, UNITS["bytes_per_s"])} if size_bytes else {}
    return said


def sweep(seconds: Mapping[int, float]) -> dict[int, tuple[float, float]]:
    """n -> (speed-up T(1)/T(n), efficiency T(1)/(n T(n))) of the seconds that the same work took on n workers; needs n = 1."""
    return {n: (seconds[1] / taken, seconds[1] / (n * taken)) for n, taken in sorted(seconds.items())}
