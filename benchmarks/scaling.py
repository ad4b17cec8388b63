"""From one core to n: the explode stage under local[1] to local[n], each in a process of its own; speed-up and efficiency."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from benchmarks import peer, phantoms
from benchmarks.peer import Given, Ratio, Report
from medspark.lake import kpi

SIZES = {  # tiles along the side of two slides for pass-through, of one for re-encoding; CT slices
    "small": {"tiles": 60, "reencoded": 20, "ct": 300},
    "medium": {"tiles": 120, "reencoded": 30, "ct": 800},
    "full": {"tiles": 225, "reencoded": 60, "ct": 2000},
}
TARGET = 0.9  # efficiency T(1) / (n T(n))
NAMES = {"tiles": "pass-through tiles", "reencoded": "re-encoded tiles", "ct": "CT slices"}


def work_of(work: Path, what: str, size: str) -> tuple[list[Path], Any, Any]:
    """(inputs, kind, settings) of one measured run."""
    from medspark.config import Config, Tiling
    from medspark.series.kind import series_kind
    from medspark.slides.kind import slides_kind

    amount = SIZES[size][what]
    if what == "ct":
        return [phantoms.ct(work, amount)], series_kind(), Config()
    if what == "tiles":
        return phantoms.slides(work, 2, amount), slides_kind(), Config(tiling=Tiling(min_tissue=0.0))
    return [phantoms.slide(work, amount, amount)], slides_kind(), Config(tiling=Tiling(min_tissue=0.0, tile_px=224))


def once(work: Path, cores: int, size: str) -> dict[str, float]:
    """Seconds of each kind's explode stage in this process; the first, small run of each is not counted."""
    seconds = {}
    with peer.session(work, cores) as spark:
        for what in SIZES[size]:
            inputs, kind, settings = work_of(work, what, size)
            small = [phantoms.ct(work, 16)] if what == "ct" else [phantoms.slide(work, 8, 8)]
            peer.ingest(spark, peer.fresh(work, f"scaling-{cores}"), small, kind, settings)
            seconds[what] = peer.ingest(spark, peer.fresh(work, f"scaling-{cores}"), inputs, kind, settings).stages["explode"]
    return seconds


def bench(given: Given) -> Report:
    for what in SIZES[given.size]:
        work_of(given.work, what, given.size)  # the phantoms are made before anything is timed

    def side(cores: int) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.scaling", "--once", str(cores), "--size", given.size, "--work", str(given.work)]
        done = subprocess.run(command, cwd=peer.ROOT, env=peer.environment(given.work, cores), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return json.loads(done.stdout.strip().splitlines()[-1])

    # Sessions of 1 to n cores in turn, so that a slow minute of the machine hits all of them.
    counts = range(1, given.own.cores + 1)
    results = peer.alternate({str(cores): lambda cores=cores: side(cores) for cores in counts}, given.repeat)
    report = Report(f"Scaling: explode stage, local[1] to local[{given.own.cores}]")
    sweeps = {}
    for what in SIZES[given.size]:
        seconds = {cores: [run[what] for run in results[str(cores)]] for cores in counts}
        sweeps[what] = kpi.sweep({cores: min(runs) for cores, runs in seconds.items()})
        for cores in list(counts)[1:]:
            speed_up, efficiency = sweeps[what][cores]
            note = f"one core {peer.best_and_median(seconds[1])}; {cores} cores {peer.best_and_median(seconds[cores])}; efficiency {efficiency:.2f}"
            name = f"{NAMES[what]}, {cores} cores"
            report.ratios.append(Ratio(name, min(seconds[cores]), min(seconds[1]), "s", speed_up, TARGET * cores, note=note))
    report.remarks.append("peer is the same code on one core; the JVM beside it is not bound to that core")
    if given.own.lake:
        report.remarks.append(f"{record(given, sweeps)} rows written to the table kpi of {given.own.lake}")
    return report


def record(given: Given, sweeps: dict[str, dict[int, tuple[float, float]]]) -> int:
    """Speed-up and efficiency of each work and number of cores, as rows of ``kpi``."""
    from medspark.lake.store import Lake

    rows = 0
    with peer.session(given.work) as spark:
        lake, run_id = Lake(spark, given.own.lake), uuid.uuid4().hex[:16]
        for what, sweep in sweeps.items():
            for cores, (speed_up, efficiency) in sweep.items():
                values = {"speed_up": (speed_up, kpi.UNITS["speed_up"]), "efficiency": (efficiency, kpi.UNITS["efficiency"])}
                rows += kpi.record(lake, run_id, f"scaling {what}", values, {"n": str(cores), "what": NAMES[what], "size": given.size})
    return rows


def main() -> None:
    parser = peer.options("scaling", __doc__, 2)
    parser.add_argument("--once", type=int, metavar="CORES", help="one measured run with this many cores; prints JSON")
    parser.add_argument("--cores", type=int, default=min(peer.CORES, os.cpu_count() or 1), metavar="N", help="the sweep ends there")
    parser.add_argument("--lake", metavar="URI", help="writes speed-up and efficiency into this lake's table kpi")
    given = parser.parse_args()
    if given.once:
        with peer.work_folder(given.work) as work:
            print(json.dumps(once(work, given.once, given.size)))
        return
    peer.main("scaling", parser, bench)


if __name__ == "__main__":
    main()
