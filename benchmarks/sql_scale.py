"""Ten questions to a lake of 21 million slices: Spark over the clustered table and over it as ingested, `open_lake`, DuckDB on the same files."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import header_lake, peer
from benchmarks.memory import EVERY_S, sample
from benchmarks.peer import Given, Ratio, Report
from benchmarks.questions import FILTER, POINT, QUESTIONS, ROLL_UP, SERIES

SIZES = {"small": 1_000, "medium": 16_000, "full": 166_000}  # series; 126.8 slices each on average
SHARDS_A_BATCH = 16  # a million slices
MEMORY_BYTES = 8 << 30
KINDS = tuple(dict.fromkeys(kind for _, kind, _ in QUESTIONS))
HELD = (POINT, SERIES, FILTER, ROLL_UP)  # kinds of questions that the target against DuckDB is about


def bench(given: Given) -> Report:
    folder = header_lake.header_table(given.work, SIZES[given.size])
    lake = given.work / "out" / f"sql-{given.size}"
    report = Report(f"SQL at scale: {header_lake.n_headers(folder):,} slices in {SIZES[given.size]:,} series, {peer.CORES} cores")
    if given.own.ask is None:
        peer.fresh(given.work, lake.name)
        _build(given, folder, lake, report)
    else:
        lake = Path(given.own.ask)
    _ask(given, lake, report)
    return report


# ---- the build


def _build(given: Given, folder: Path, lake: Path, report: Report) -> None:
    """The lake, in a session of its own; then its narrow tables are clustered by the maintenance job, in a process as users start it."""
    with peer.session(given.work) as spark, Peak() as peak:
        summary, seconds = header_lake.build(spark, lake, folder, SHARDS_A_BATCH)
    rows = summary.written["slices"]
    stages = ", ".join(f"{name} {value:.0f}" for name, value in summary.stages.items() if value)
    report.ratios += [
        Ratio("header table through plan and commit", rows / seconds, None, "rows/s", rows / seconds, 50_000, note=f"seconds by stage: {stages}"),
        Ratio("memory of the build, all processes", peak.bytes / 2**30, None, "GiB", peak.bytes / 2**30, MEMORY_BYTES / 2**30, at_least=False),
    ]  # fmt: skip
    _cluster(given, lake, report)


def _cluster(given: Given, lake: Path, report: Report) -> None:
    command = [sys.executable, str(peer.ROOT / "jobs" / "maintain_lake.py"), "--lake", str(lake), "--cluster"]
    started = time.monotonic()
    job = subprocess.Popen(command, env=peer.environment(given.work), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with Peak(job.pid) as peak:
        out, _ = job.communicate()
    if job.returncode:
        raise RuntimeError(f"maintain_lake ended with status {job.returncode}")
    seconds, said = time.monotonic() - started, json.loads(out.strip().splitlines()[-1])["clustered"]
    note = "; ".join(f"{name}: {one['rows']:,} rows, {one['files_before']} files -> {one['files_after']}" for name, one in said.items())
    report.ratios += [
        Ratio("maintain_lake --cluster, the whole process", seconds, None, "s", seconds, None, note=note),
        Ratio("memory of --cluster, all processes", peak.bytes / 2**30, None, "GiB", peak.bytes / 2**30, MEMORY_BYTES / 2**30, at_least=False),
    ]  # fmt: skip


class Peak:
    """Peak of the proportional set sizes of a process (None: this one) and all below it, sampled while in context."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid

    def __enter__(self) -> Peak:
        import psutil

        self.bytes, self._over, root = 0, threading.Event(), psutil.Process(self._pid)

        def watch() -> None:
            while not self._over.wait(4 * EVERY_S):
                self.bytes = max(self.bytes, sample(root)[1])

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


# ---- the questions


def _ask(given: Given, uri: Path, report: Report) -> None:
    import medspark

    opened = medspark.open_lake(str(uri))
    keys = _keys(opened)
    with peer.session(given.work) as spark:
        engines = _engines(spark, opened, str(uri))
        lines = ["| question | " + " | ".join(f"{name}, s" for name in engines) + " | clustering gains | open_lake / DuckDB |"]
        lines.append("|---" * (len(engines) + 3) + "|")
        gains, times = [], []
        for title, kind, text in [one for one in QUESTIONS if one[1] in given.own.kinds]:
            query = text.format(**keys)
            took, answers = {name: [] for name in engines}, {}
            for _ in range(given.repeat):
                for name, (prepare, ask) in engines.items():
                    prepare()
                    started = time.perf_counter()
                    answers[name] = ask(query)
                    took[name].append(time.perf_counter() - started)
            _agree(title, answers)
            middle = {name: statistics.median(values[1:] or values) for name, values in took.items()}  # the first run warms up
            gain, against = middle["Spark as ingested"] / middle["Spark clustered"], middle["open_lake"] / middle["DuckDB"]
            lines.append(f"| {title} | " + " | ".join(f"{middle[name]:.3g}" for name in engines) + f" | {gain:.1f} | {against:.2f} |")
            peer.say(lines[-1])
            if kind in (SERIES,):
                gains.append((title, gain, middle))
            if kind in HELD:
                times.append((title, against, middle))
    for title, gain, middle in gains:
        seconds = middle["Spark clustered"], middle["Spark as ingested"]
        report.ratios.append(Ratio(f"clustering: {title}", *seconds, "s", gain, 6))
    for title, against, middle in times:
        report.ratios.append(Ratio(f"open_lake: {title}", middle["open_lake"], middle["DuckDB"], "s", against, 2, at_least=False))
    report.remarks += ["medians of the runs after the first:", *("\n" + line if number == 0 else line for number, line in enumerate(lines))]


def _keys(opened: Any) -> dict[str, str]:
    """A series, slice and instance from the middle of the lake."""
    row = opened.sql("SELECT series_id FROM series ORDER BY series_id LIMIT 1 OFFSET (SELECT count(*) // 2 FROM series)").to_pylist()[0]
    one = opened.sql(f"SELECT image_id, sop_instance_id FROM slices WHERE series_id = '{row['series_id']}' ORDER BY k LIMIT 1").to_pylist()[
        0
    ]
    return {"series": row["series_id"], "image": one["image_id"], "sop": one["sop_instance_id"]}


def _engines(spark: Any, opened: Any, uri: str) -> dict[str, tuple[Callable[[], Any], Callable[[str], list[tuple[Any, ...]]]]]:
    """name -> (what is there before anybody asks: views of the tables; the question itself)."""
    import duckdb

    from medspark.lake.store import Lake
    from medspark.tables.catalog import TABLES

    lake = Lake(spark, uri)
    tables = [name for name in TABLES if lake.exists(name)]
    ingested = {name: _last_append(spark, lake.path(name)) for name in ("slices", "labels", "series")}

    def views(versions: dict[str, int]) -> Callable[[], None]:
        def make() -> None:
            for name in ("slices", "labels", "series"):
                reader = spark.read.format("delta")
                reader = reader.option("versionAsOf", versions[name]) if name in versions else reader
                reader.load(lake.path(name)).createOrReplaceTempView(name)

        return make

    def on_spark(query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in spark.sql(query).collect()]

    def nothing() -> None:
        pass

    database = duckdb.connect()
    database.execute(f"SET threads = {peer.CORES}")
    for name in tables:
        files = lake.files(name)
        if files:
            database.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({files!r})")

    return {
        "Spark clustered": (views({}), on_spark),
        "Spark as ingested": (views(ingested), on_spark),
        "open_lake": (nothing, lambda query: [tuple(row.values()) for row in opened.sql(query).to_pylist()]),
        "DuckDB": (nothing, lambda query: database.execute(query).fetchall()),
    }


def _last_append(spark: Any, path: str) -> int:
    """The version that the last ingest batch left: what came after it is upkeep, which says so."""
    history = spark.sql(f"DESCRIBE HISTORY delta.`{path}`").select("version", "userMetadata").collect()
    said = [(row.version, row.userMetadata or "") for row in history]
    return max(version for version, text in said if '"batch"' in text and '"layout"' not in text)


def _agree(title: str, answers: dict[str, list[tuple[Any, ...]]]) -> None:
    rounded = {name: [tuple(round(v, 4) if isinstance(v, float) else v for v in row) for row in rows] for name, rows in answers.items()}
    first = next(iter(rounded.values()))
    different = [name for name, rows in rounded.items() if rows != first]
    if different:
        raise RuntimeError(f"{title}: {different} answer otherwise than {next(iter(rounded))}")


if __name__ == "__main__":
    options = peer.options("sql_scale", __doc__, 4)
    options.add_argument("--ask", metavar="LAKE", help="asks a lake that an earlier run built instead of building one")
    options.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="the questions to ask")
    peer.main("sql_scale", options, bench)
