"""Runs the engine in the test's own session, and compares lakes by what their rows say."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from medspark import config
from medspark.keys import Ids
from medspark.lake import ingest
from medspark.lake.store import Lake
from medspark.series.kind import series_kind
from medspark.tables.catalog import TABLES
from tests.conftest import KEY, ROOT

BY_CHANCE = {"run_id", "batch_id", "ingested_at", "rejected_at", "created_at", "recorded_at"}
"""Columns that say who wrote a row and when: two equal lakes differ in them."""
LEDGERS = ("sources", "rejected")


def run(
    spark: Any, lake: Path, inputs: Iterable[Path], kind: Any = None, settings: config.Config | None = None, **request: Any
) -> ingest.Summary:
    """One ingest run in this process."""
    asked = ingest.Request(tuple(str(path) for path in inputs), **{"dataset": "test", **request})
    return ingest.Ingest(Lake(spark, str(lake)), kind or series_kind(), Ids(KEY), settings or config.Config(), asked).run()


def table(lake: Path, name: str) -> pa.Table:
    """All rows of a table's current version."""
    path = lake / name
    if not (path / "_delta_log").exists():
        return TABLES[name].arrow().empty_table()
    files = Lake(None, str(lake)).files(name)  # type: ignore[arg-type]  # paths as they are; file_uris() gives them percent-encoded
    return pads.dataset(files, schema=TABLES[name].arrow(), format="parquet").to_table() if files else TABLES[name].arrow().empty_table()


def rows(lake: Path, name: str) -> list[dict[str, Any]]:
    return table(lake, name).to_pylist()


def content(lake: Path, tables: Sequence[str] = tuple(name for name in TABLES if name not in ("kpi", "claims"))) -> dict[str, list[str]]:
    """What each table says, row by row, free of order and of who wrote it."""

    def said(row: dict[str, Any]) -> str:
        kept = {key: value for key, value in row.items() if key not in BY_CHANCE}
        return json.dumps(
            kept, sort_keys=True, default=lambda value: hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)
        )

    # Which batches met which labels is how the work was done, not what the lake says.
    return {name: sorted(said(row) for row in rows(lake, name) if row.get("job") != "link_labels") for name in tables}


def same(left: Path, right: Path, **chosen: Any) -> None:
    """Fails with the first rows that differ."""
    a, b = content(left, **chosen), content(right, **chosen)
    for name in a:
        missing, extra = sorted(set(a[name]) - set(b[name])), sorted(set(b[name]) - set(a[name]))
        assert not missing and not extra, f"{name}: only left {missing[:1]}, only right {extra[:1]}"
        assert len(a[name]) == len(b[name]), f"{name}: {len(a[name])} and {len(b[name])} rows: some are doubled"


def keys_unique(lake: Path) -> None:
    """Every table holds each key once."""
    for name, definition in TABLES.items():
        if name in ("kpi", "rejected", "claims"):
            continue
        keys = table(lake, name).select(list(definition.key)).to_pylist()
        assert len({tuple(key.values()) for key in keys}) == len(keys), f"{name}: a key stands twice"


def job(name: str, *arguments: object, submit: bool = False, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts a job of ``jobs/`` in a process group of its own."""
    program = [str(Path(sys.executable).parent / "spark-submit")] if submit else [sys.executable]
    options = ["--driver-memory", "1500m"] if submit else []
    return subprocess.Popen(
        [*program, *options, str(ROOT / "jobs" / f"{name}.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYSPARK_SUBMIT_ARGS": "--driver-memory 1500m pyspark-shell", **(env or {})},
    )


def killed(at: int, kind: str, lake: Path, *inputs: object, after_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs ``killed.py``; with ``after_s`` the process group is killed from outside at that time instead."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "lake" / "killed.py"), str(at), kind, str(lake), *map(str, inputs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=after_s or 300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def ended(process: subprocess.Popen[str], status: int = 0) -> dict[str, Any]:
    """The job's summary (its last line on standard output); fails when it ended with another status."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == status, f"status {process.returncode}, expected {status}\n{out[-2000:]}\n{err[-6000:]}"
    return json.loads(out.strip().splitlines()[-1]) if status in (0, 3) else {}


def strings(lake: Path) -> Iterator[tuple[str, str, str]]:
    """(table, column, text) of every string and every blob of a lake, nested ones included; blobs as Latin-1."""

    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, bytes):
            yield value.decode("latin-1")
        elif isinstance(value, dict):
            for inner in value.values():
                yield from inside(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                yield from inside(inner)

    for name in TABLES:
        for row in rows(lake, name):
            for column, value in row.items():
                for text in inside(value):
                    yield name, column, text
