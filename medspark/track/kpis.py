"""The lake's ``kpi`` rows, copied into MLflow, so that they stand beside the runs. The table is the truth; a copy can be made anew at any time.

Rows of a run that MLflow knows (training) become metrics ``kpi/...`` of that run; those of other jobs a run of their own in the experiment
`EXPERIMENT`. Nobody has to ask for it: the UI's start and the start of each tracked run do it.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.compute as pc

from medspark.lake.store import Lake
from medspark.track.runs import client, experiment

log = logging.getLogger("medspark.track")

EXPERIMENT = "kpi"
UNTIL = "mirrored_until"  # tag of the experiment: rows up to this time are there
OVERLAP = timedelta(hours=1)  # looked at again: a job's rows are committed later than the time that they bear
MOST_RUNS = 1000  # copied at once, the newest; a lake of many years would fill the UI with what nobody looks at
COLUMNS = ("run_id", "job", "metric", "value", "unit", "recorded_at", "context")


def mirror(lake_uri: str, uri: str) -> int:
    """Copies what is new; returns the number of runs that got something."""
    lake = Lake(None, lake_uri)  # type: ignore[arg-type]  # reading needs the log only
    if not lake.exists("kpi"):
        return 0
    store = client(uri)
    kept = experiment(store, uri, EXPERIMENT)
    tag = f"{UNTIL} {lake.uri}"
    until = datetime.fromisoformat(store.get_experiment(kept).tags.get(tag, datetime.min.replace(tzinfo=UTC).isoformat()))
    rows = new_rows(lake, until - OVERLAP if until.year > 1 else until)
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_run.setdefault(row["run_id"], []).append(row)
    newest = sorted(by_run, key=lambda run: max(row["recorded_at"] for row in by_run[run]))[-MOST_RUNS:]
    for run_id in newest:
        _copy(store, kept, run_id, by_run[run_id])
    if rows:
        store.set_experiment_tag(kept, tag, max(row["recorded_at"] for row in rows).isoformat())
    return len(newest)


def brought(lake_uri: str, uri: str) -> None:
    """`mirror` at the end of a job: its rows are in the lake by then, so a server that is away is a warning, no failure."""
    from mlflow.exceptions import MlflowException

    try:
        mirror(lake_uri, uri)
    except MlflowException as error:
        log.warning("KPIs are not in MLflow yet", extra={"said": {"error": type(error).__name__}})


def new_rows(lake: Lake, since: datetime) -> list[dict[str, Any]]:
    """Rows recorded after ``since``."""
    where = pc.field("recorded_at") > pc.scalar(since) if since.year > 1 else pc.scalar(True)
    return [row for batch in lake.scan("kpi", list(COLUMNS), where) for row in batch.to_pylist()]


def _copy(store: Any, experiment_id: str, run_id: str, rows: list[dict[str, Any]]) -> None:
    from mlflow.entities import Metric, RunTag
    from mlflow.exceptions import MlflowException

    try:
        target = store.get_run(run_id).info.run_id
    except MlflowException:
        target = _own_run(store, experiment_id, run_id, rows)
    metrics = [Metric(f"kpi/{row['metric']}", row["value"], int(row["recorded_at"].timestamp() * 1000), _step(row)) for row in rows]
    tags = {f"kpi_{name}": str(value)[:500] for row in rows for name, value in dict(row["context"]).items()}
    store.log_batch(target, metrics, tags=[RunTag(name, value) for name, value in tags.items()])


def _step(row: dict[str, Any]) -> int:
    """Workers of a sweep, so that its efficiency is a curve over their number; else 0."""
    return int(dict(row["context"]).get("n", 0))


def _own_run(store: Any, experiment_id: str, run_id: str, rows: list[dict[str, Any]]) -> str:
    found = store.search_runs([experiment_id], f"tags.job_run = '{run_id}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    times = [int(row["recorded_at"].timestamp() * 1000) for row in rows]
    total = max((row["value"] for row in rows if row["metric"] in ("total_s", "totm_s", "toppi_s")), default=0.0)
    tags = {"job": rows[0]["job"], "job_run": run_id, "mlflow.source.name": f"jobs/{rows[0]['job']}.py", "mlflow.source.type": "JOB"}
    made = store.create_run(experiment_id, start_time=min(times) - int(total * 1000), tags=tags, run_name=rows[0]["job"])
    store.set_terminated(made.info.run_id, "FINISHED", max(times))
    return str(made.info.run_id)
