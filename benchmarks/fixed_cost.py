"""The fixed cost of a job: whole processes on one tile and one slice, beside a plain script with one Delta append."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import peer, phantoms
from benchmarks.peer import Given, Ratio, Report

TARGET_S = 6.0
SUBMIT = [str(Path(sys.executable).with_name("spark-submit")), "--master", f"local[{peer.CORES},4]", "--driver-memory", "1500m"]
PLAIN = """
import sys
from medspark.lake.session import build
spark = build("plain")
spark.createDataFrame([("a", 1)], "image_id string, n int").write.format("delta").mode("append").save(sys.argv[1])
spark.stop()
"""


def bench(given: Given) -> Report:
    turns = 1 if given.size == "small" else given.repeat
    numbers = iter(range(10_000))
    lakes = {name: peer.fresh(given.work, f"fixed-{name}") for name in ("plain", "tile_slides", "explode_series")}
    for name in ("tile_slides", "explode_series"):  # also warms the page cache
        job(given.work, name, lakes[name], one(given.work, name, next(numbers)))
    process([sys.executable, "-c", PLAIN, str(lakes["plain"])], given.work)
    sides: dict[str, Any] = {"plain": lambda: (process([sys.executable, "-c", PLAIN, str(lakes["plain"])], given.work)[0], {})}
    for name in ("tile_slides", "explode_series"):
        sides[f"{name}, fresh lake"] = lambda name=name: job(
            given.work, name, peer.fresh(given.work, f"fixed-new-{name}"), one(given.work, name, next(numbers))
        )
        sides[f"{name}, existing lake"] = lambda name=name: job(given.work, name, lakes[name], one(given.work, name, next(numbers)))
    sides["tile_slides by spark-submit, existing lake"] = lambda: job(
        given.work, "tile_slides", lakes["tile_slides"], one(given.work, "tile_slides", next(numbers)), SUBMIT
    )
    results = peer.alternate(sides, turns)
    plain = statistics.median(seconds for seconds, _ in results.pop("plain"))
    report = Report(f"Fixed cost of a job: one tile, one slice, local[{peer.CORES}], seconds of the whole process (median of {turns})")
    for name, runs in results.items():
        seconds = statistics.median(run[0] for run in runs)
        stages = {stage: statistics.median(run[1][stage] for run in runs) for stage in runs[0][1]}
        note = f"{seconds / plain:.2f} times the plain script; " + ", ".join(f"{stage} {value:.2f}" for stage, value in stages.items())
        report.ratios.append(Ratio(name, seconds, plain, "s", seconds, TARGET_S, at_least=False, note=note))
    report.remarks.append("peer: a process that starts the same session and appends one row to one Delta table")
    report.remarks.append("what lies between the stages and the whole is Python's start, Spark's end and the row in `kpi`")
    return report


def one(work: Path, job_name: str, number: int) -> Path:
    """A slide of one tile, or a series of one slice, that no lake has seen."""
    import shutil

    folder = peer.fresh(work, f"one-{job_name}-{number}")
    folder.mkdir(parents=True)
    if job_name == "tile_slides":
        path = folder / f"one-{number}.svs"
        shutil.copyfile(phantoms.slide(work, 1, 1), path)
    else:
        path = folder / f"one-{number}.dcm"
        data = next(phantoms.ct(work, 16).rglob("*.dcm")).read_bytes()
        old = b"1.2.826.0.1.3680043.8.498.77."
        path.write_bytes(data.replace(old, old[:-4] + b"%03d." % (100 + number)))  # new UIDs of the same length
    return path


def job(work: Path, name: str, lake: Path, path: Path, program: Sequence[str] = (sys.executable,)) -> tuple[float, dict[str, float]]:
    """(seconds of the whole process, seconds of its stages)."""
    seconds, out = process(
        [*program, str(peer.ROOT / "jobs" / f"{name}.py"), "--lake", str(lake), "--input", str(path), "--set", "tiling.min_tissue=0"],
        work,
    )
    said = json.loads(out.strip().splitlines()[-1])
    assert said["written"].get("pixels") == 1, said
    return seconds, {**said["stages"], "job": said["seconds"]}


def process(command: list[str], work: Path) -> tuple[float, str]:
    started = time.monotonic()
    done = subprocess.run(command, env=peer.environment(work), capture_output=True, text=True, cwd=work, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stderr[-3000:]}")
    return seconds, done.stdout


if __name__ == "__main__":
    peer.main("fixed_cost", peer.options("fixed_cost", __doc__, 5), bench)
