"""What the benches share: options, Spark sessions, alternating timings, the table of ratios, profiles."""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("MEDSPARK_SHARED_DATA", ROOT.parent / "shared" / "data"))
"""Real files beside the project, where they are present; the phantoms are made from them, else drawn."""
KEY = bytes(range(32))  # de-identification key of the benches' lakes
CORES = 2  # what the targets are about
JAVA = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"  # what conf/spark-env.sh gives ingest jobs; here it serves both sides

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "mimalloc")  # as in every job; Arrow reads it once, when it is imported


# ---- options


@dataclass(frozen=True)
class Given:
    """What a bench was asked for. ``work``: a folder for phantoms (kept) and lakes (removed)."""

    size: str
    repeat: int
    work: Path
    profile: bool
    own: argparse.Namespace


def options(name: str, doc: str | None, repeat: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks{'.' + name if name else ''}",
        description=(doc or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--size", choices=("small", "medium", "full"), default="full", help="small: does it work; full: what the targets are about"
    )
    parser.add_argument("--repeat", type=int, default=repeat, help="alternating runs of each side")
    parser.add_argument("--work", metavar="DIR", help="folder for phantoms, which stay there, and lakes (default: a temporary folder)")
    parser.add_argument("--json", metavar="FILE", help="writes the ratios there, too")
    parser.add_argument("--profile", action="store_true", help="says where our time goes instead (in this process, without Spark)")
    return parser


def main(
    name: str, parser: argparse.ArgumentParser, bench: Callable[[Given], Report], profile: Callable[[Given], None] | None = None
) -> None:
    """Runs one bench from the command line; status 0 whether targets are met or not (a busy machine is no failure)."""
    own = parser.parse_args()
    with work_folder(own.work) as work:
        given = Given(own.size, own.repeat, work, own.profile, own)
        if own.profile:
            if profile is None:
                parser.error(f"{name} has no profile")
            profile(given)
            return
        report = bench(given)
        print(report.markdown(), flush=True)
        if own.json:
            Path(own.json).write_text(json.dumps({"bench": name, "size": own.size, **report.json()}, indent=1) + "\n")


@contextmanager
def work_folder(given: str | None) -> Iterator[Path]:
    if given:
        path = Path(given).resolve()
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="medspark-bench-") as path:
        yield Path(path)


def fresh(work: Path, name: str) -> Path:
    """An empty place for a lake or output of that name."""
    path = work / "out" / name
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# ---- ratios


@dataclass(frozen=True)
class Ratio:
    """One row of the table.

    ours, peer : float      in ``unit``; peer None where the target is absolute
    value : float           what is held against the target, e.g. ours / peer for rates
    target : float          to be reached (``at_least``) or not exceeded
    """

    what: str
    ours: float
    peer: float | None
    unit: str
    value: float
    target: float | None
    at_least: bool = True
    stretch: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def cells(self) -> list[str]:
        sign = "≥" if self.at_least else "≤"
        target = "" if self.target is None else f"{sign} {self.target:g}" + (f" ({self.stretch:g})" if self.stretch else "")
        peer = "" if self.peer is None else number(self.peer)
        return [
            self.what,
            number(self.ours),
            peer,
            self.unit,
            f"{self.value:.2f}",
            target,
            {None: "", True: "met", False: "**missed**"}[self.met],
        ]


@dataclass
class Report:
    """A bench's table, and remarks below it."""

    title: str
    ratios: list[Ratio] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        head = ["what", "ours", "peer", "unit", "ratio or value", "target", ""]
        lines = [f"### {self.title}", "", _row(head), _row(["---"] * len(head)), *(_row(ratio.cells()) for ratio in self.ratios)]
        notes = [f"- {ratio.what}: {ratio.note}" for ratio in self.ratios if ratio.note] + [f"- {remark}" for remark in self.remarks]
        return "\n".join([*lines, *([""] if notes else []), *notes, ""])

    def json(self) -> dict[str, Any]:
        return {"title": self.title, "ratios": [{**vars(ratio), "met": ratio.met} for ratio in self.ratios], "remarks": self.remarks}


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def alternate(sides: Mapping[str, Callable[[], Any]], repeat: int) -> dict[str, list[Any]]:
    """What each side returned, run after run: A B A B, so that a slow minute of the machine hits both."""
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for turn in range(repeat):
        for name, side in sides.items():
            started = time.monotonic()
            results[name].append(side())
            say(f"{name}, run {turn + 1} of {repeat}: {time.monotonic() - started:.1f} s")
    return results


def best_and_median(values: Sequence[float], unit: str = "s") -> str:
    return f"best {number(min(values))}, median {number(statistics.median(values))} {unit} of {len(values)}"


def say(text: str) -> None:
    print(f"# {text}", file=sys.stderr, flush=True)


# ---- Spark and the engine


def environment(work: Path, cores: int = CORES, memory: str = "1500m") -> dict[str, str]:
    """Environment of a job or session with this many cores; the key of its lakes lies in ``work``."""
    return {
        **os.environ,
        "MEDSPARK_MASTER": f"local[{cores},4]",
        "PYSPARK_SUBMIT_ARGS": f"--driver-memory {memory} --driver-java-options '{JAVA}' pyspark-shell",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "XDG_CONFIG_HOME": str(work / "config"),
    }


@contextmanager
def session(work: Path, cores: int = CORES) -> Iterator[Any]:
    """A Spark session as a job has it, ``local[cores]``."""
    os.environ.update(environment(work, cores))
    from medspark.lake import session as sessions

    spark = sessions.build("medspark benchmarks")
    try:
        yield spark
    finally:
        spark.stop()


def ingest(spark: Any, lake: Path, inputs: Sequence[Path], kind: Any, settings: Any) -> Any:
    """One ingest run of the engine in this process; its `Summary`, ``seconds`` set."""
    from medspark.keys import Ids
    from medspark.lake import ingest as engine
    from medspark.lake.store import Lake

    started = time.monotonic()
    asked = engine.Request(tuple(map(str, inputs)), dataset="bench")
    summary = engine.Ingest(Lake(spark, str(lake)), kind, Ids(KEY), settings, asked).run()
    summary.seconds = time.monotonic() - started
    if summary.rejected:
        raise RuntimeError(f"{summary.rejected} rejections: the bench measures nothing")
    return summary


# ---- profiles


def profile_explode(kind: Any, inputs: Sequence[Path], settings: Any, work: Path, per: str, rows: int = 25) -> None:
    """Prints microseconds per image of each step of an explode task, run in this process, and cProfile's view of the whole.

    CPU time (user and system, of this process), which a busy machine changes little; wall-clock beside it.
    """
    from medspark.keys import Ids
    from medspark.lake.explode import Exploder, with_checksums
    from medspark.series.dicomweb import Access
    from medspark.tables.rows import Rows
    from medspark.tables.work import SourceFile

    ids, lake = Ids(KEY), fresh(work, "profile")
    started = time.process_time()
    files = []
    for path in inputs:
        uri = f"file://{path}"
        header = kind.scan(str(path), uri, ids, settings)
        files.append(SourceFile(ids.source("bench", uri, path.name), uri, str(path), path.stat().st_size, "bench", header, None, "bench"))
    scanned = time.process_time()
    plan = kind.plan(files, ids, settings)
    planned = time.process_time()
    idle = lambda source, what="": None

    def generator() -> int:
        return sum(len(item) for unit in plan.units for item in kind.explode(unit, ids, settings, idle) if _is_pixels(item))

    def to_arrow() -> int:
        count = 0
        for unit in plan.units:
            for item in kind.explode(unit, ids, settings, idle):
                if isinstance(item, Rows):
                    count += len(item) if item.table == "pixels" else 0
                    (with_checksums(item) if item.table == "pixels" else item).to_arrow("run", "batch")
        return count

    def task() -> int:
        (lake / "pixels").mkdir(parents=True, exist_ok=True)
        (lake / "_medspark" / "batch").mkdir(parents=True, exist_ok=True)
        exploder = Exploder(kind, ids, settings, str(lake), "run", "batch", Access())
        result = next(iter(exploder(plan.units, idle, 0)))
        return result.rows["pixels"]

    count = generator()  # also warms up
    print(
        f"{count} {per}s; scan without hash {1e6 * (scanned - started) / count:.1f}, plan {1e6 * (planned - scanned) / count:.1f} µs per {per}"
    )
    before = 0.0
    for name, step in {
        "explode generator": generator,
        "+ checksums, Rows.to_arrow": to_arrow,
        "+ Parquet files (whole task)": task,
    }.items():
        seconds, wall = [], []
        for _ in range(3):
            started, started_wall = time.process_time(), time.perf_counter()
            step()
            seconds.append(time.process_time() - started)
            wall.append(time.perf_counter() - started_wall)
            shutil.rmtree(lake, ignore_errors=True)
        best = 1e6 * min(seconds) / count
        print(f"{name:32s} {best:8.1f} µs CPU per {per} (this step {best - before:.1f}; wall {1e6 * min(wall) / count:.1f})")
        before = best
    profiler = cProfile.Profile()
    profiler.runcall(task)
    stream = io.StringIO()
    pstats.Stats(profiler, stream=stream).strip_dirs().sort_stats("tottime").print_stats(rows)
    print(stream.getvalue())
    shutil.rmtree(lake, ignore_errors=True)


def _is_pixels(item: Any) -> bool:
    return getattr(item, "table", "") == "pixels"
