"""From one core to two: the explode stage under local[1] and local[2], each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import peer, phantoms
from benchmarks.peer import Given, Ratio, Report

SIZES = {  # tiles along the side of two slides for pass-through, of one for re-encoding; CT slices
    "small": {"tiles": 60, "reencoded": 20, "ct": 300},
    "medium": {"tiles": 120, "reencoded": 30, "ct": 800},
    "full": {"tiles": 225, "reencoded": 60, "ct": 2000},
}
TARGET = 1.8


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

    results = peer.alternate({"1 core": lambda: side(1), "2 cores": lambda: side(2)}, given.repeat)
    report = Report("Scaling: explode stage, local[1] and local[2]")
    names = {"tiles": "pass-through tiles", "reencoded": "re-encoded tiles", "ct": "CT slices"}
    for what in SIZES[given.size]:
        one, two = ([run[what] for run in results[key]] for key in ("1 core", "2 cores"))
        note = f"one core {peer.best_and_median(one)}; two {peer.best_and_median(two)}"
        report.ratios.append(Ratio(names[what], min(two), min(one), "s", min(one) / min(two), TARGET, note=note))
    report.remarks.append("peer is the same code on one core; the JVM beside it is not bound to that core")
    return report


def main() -> None:
    parser = peer.options("scaling", __doc__, 2)
    parser.add_argument("--once", type=int, metavar="CORES", help="one measured run with this many cores; prints JSON")
    given = parser.parse_args()
    if given.once:
        with peer.work_folder(given.work) as work:
            print(json.dumps(once(work, given.once, given.size)))
        return
    peer.main("scaling", parser, bench)


if __name__ == "__main__":
    main()
