"""From one rank to two: images per second of training at a fixed batch per rank, each rank and its reader pinned to one core in both runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import peer
from benchmarks.peer import Given, Ratio, Report

SIZES = {  # rows of the feed, side of its tiles in px, updates that are timed
    "small": {"rows": 64, "side": 64, "updates": 6},
    "medium": {"rows": 256, "side": 96, "updates": 20},
    "full": {"rows": 512, "side": 128, "updates": 40},
}
BATCH = 8
WARM = 4  # updates before the clock runs: graphs are traced, threads started, files in the page cache
TARGET = 0.85
TASKS = {"segmenter, U-Net of width 16": "segmentation", "classifier, residual network of width 16": "classification"}


def feeds(work: Path, size: str) -> Path:
    """A lake with a feed for each task; made once."""
    from tests.phantoms.feeds import write_feed

    lake = work / f"ranks-{size}"
    for task in TASKS.values():
        if not (lake / "feeds" / task).exists():
            shape = SIZES[size]
            write_feed(lake, task, task=task, parts={"train": shape["rows"], "val": 16}, side=shape["side"], unknown=False)  # type: ignore[arg-type]
    return lake


def rank(lake: str, task: str, updates: int) -> tuple[float, float]:
    """(seconds of ``updates`` updates, seconds of them that the network waited for batches) of this rank."""
    from medspark.config import Train
    from medspark.feed.open import open_feed
    from medspark.train import losses
    from medspark.train import network as networks
    from medspark.train.feeding import Waited, ahead
    from medspark.train.step import Stepper
    from medspark.train.world import Horovod, prepare

    world = Horovod()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[world.local_rank % len(cores)]})
    train = replace(Train(), threads=1, warmup_epochs=0.0)
    prepare(world, train)
    feed = open_feed(lake, task)
    stepper = Stepper(networks.of(feed.card, train), losses.of(feed.card, train), train, world, BATCH)
    world.same(stepper.variables())
    reader = feed.reader("train", BATCH, world.rank, world.size, workers=1)
    waited, done, started, before, epoch = Waited(), 0, 0.0, 0.0, 0
    while done < WARM + updates:
        for batch in ahead(reader.epoch(epoch), waited):
            stepper.update(batch, 1e-3)
            done += 1
            if done == WARM:
                stepper.taken()  # waits until what was asked for is done
                started, before = time.monotonic(), waited.seconds
            if done == WARM + updates:
                break
        epoch += 1
    stepper.taken()
    seconds = time.monotonic() - started
    reader.close()
    return seconds, waited.seconds - before


def once(lake: str, task: str, ranks: int, updates: int) -> dict[str, float]:
    """Images per second of all ranks, and the part of the time that the slowest waited for batches."""
    from horovod.runner import run

    found = run(rank, args=(lake, task, updates), num_proc=ranks, use_gloo=True)
    slowest, waited = max(found)
    return {"images_per_s": ranks * BATCH * updates / slowest, "waiting": waited / slowest}


def bench(given: Given) -> Report:
    lake = feeds(given.work, given.size)
    updates = SIZES[given.size]["updates"]

    def side(task: str, ranks: int) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.ranks", "--once", str(lake), task, str(ranks), str(updates)]
        environment = peer.environment(given.work) | {"TF_CPP_MIN_LOG_LEVEL": "2"}
        done = subprocess.run(command, cwd=peer.ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return json.loads(done.stdout.strip().splitlines()[-1])

    report = Report("Ranks: training, one rank and two, each with its reader on one core")
    for what, task in TASKS.items():
        results = peer.alternate({"one": lambda task=task: side(task, 1), "two": lambda task=task: side(task, 2)}, given.repeat)
        one, two = (max(run["images_per_s"] for run in results[name]) for name in ("one", "two"))
        waiting = {name: min(run["waiting"] for run in results[name]) for name in results}
        note = f"two ranks {peer.best_and_median([run['images_per_s'] for run in results['two']], 'images/s')}".replace("best", "lowest")
        note += f"; waiting for batches {waiting['one']:.1%} of the time with one rank, {waiting['two']:.1%} with two"
        report.ratios.append(Ratio(what, two, one, "images/s", two / (2 * one), TARGET, note=note))
    report.remarks.append(
        f"batch {BATCH} per rank, float32, tiles of {SIZES[given.size]['side']} px; peer is one rank; the ratio is the efficiency"
    )
    return report


def main() -> None:
    parser = peer.options("ranks", __doc__, 2)
    parser.add_argument("--once", nargs=4, metavar=("LAKE", "TASK", "RANKS", "UPDATES"), help="one measured run; prints JSON")
    given = parser.parse_args()
    if given.once:
        lake, task, ranks, updates = given.once
        print(json.dumps(once(lake, task, int(ranks), int(updates))))
        return
    peer.main("ranks", parser, bench)


if __name__ == "__main__":
    main()
