"""From one rank to two: images per second of training at a fixed batch per rank, each rank and its reader pinned to one core in both runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import peer
from benchmarks.peer import Given, Ratio, Report

SIZES = {  # rows of the feed, side of its tiles in px, updates of one timed stretch
    "small": {"rows": 64, "side": 64, "updates": 4},
    "full": {"rows": 256, "side": 96, "updates": 12},
}
BATCH = 8
WARM = 3  # updates before the clock runs: graphs are traced, threads started, files in the page cache
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


class Side:
    """A network in training with batches that don't end, of this rank among ``ranks``."""

    def __init__(self, feed: Any, world: Any, rank: int, ranks: int) -> None:
        from medspark.config import Train
        from medspark.train import losses
        from medspark.train import network as networks
        from medspark.train.feeding import Waited
        from medspark.train.step import Stepper

        train = replace(Train(), threads=1)
        self.stepper = Stepper(networks.of(feed.card, train), losses.of(feed.card, train), train, world, BATCH)
        world.same(self.stepper.variables())
        self.reader = feed.reader("train", BATCH, rank, ranks, workers=1)
        self.waited = Waited()
        self.batches = self._endless()

    def _endless(self) -> Iterator[Any]:
        from medspark.train.feeding import ahead

        epoch = 0
        while True:
            yield from ahead(self.reader.epoch(epoch), self.waited)
            epoch += 1

    def seconds(self, updates: int) -> tuple[float, float]:
        """(seconds of so many updates, seconds of them that the network waited for batches)."""
        started, before = time.monotonic(), self.waited.seconds
        for _ in range(updates):
            self.stepper.update(next(self.batches), 1e-3)
        self.stepper.taken()  # until what was asked for is done
        return time.monotonic() - started, self.waited.seconds - before


def rank(lake: str, task: str, updates: int, repeat: int) -> list[dict[str, tuple[float, float]]]:
    """One rank's (seconds, seconds waited) for each turn: ``one`` where it trains alone while the other sleeps, ``two`` where both train."""
    import numpy as np

    from medspark.config import Train
    from medspark.feed.open import open_feed
    from medspark.train.world import Horovod, Solo, prepare

    # `horovod.runner.run` sets both to "(None,)", which is read as 0: its thread never sleeps then.
    for name in ("HOROVOD_CYCLE_TIME", "HOROVOD_CACHE_CAPACITY"):
        os.environ.pop(name, None)
    # Before there are threads: each would keep its own cores.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["HOROVOD_LOCAL_RANK"]) % len(cores)]})
    world = Horovod()
    prepare(world, replace(Train(), threads=1))
    feed = open_feed(lake, task)
    two = Side(feed, world, world.rank, world.size)
    one = Side(feed, Solo(), 0, 1) if world.rank == 0 else None
    found: list[dict[str, tuple[float, float]]] = []
    for turn in range(-1, repeat):
        counted = WARM if turn < 0 else updates
        said = {}
        world.total(np.zeros(1))
        if one is not None:
            said["one"] = one.seconds(counted)
        world.total(np.zeros(1))  # the other rank waits here
        said["two"] = two.seconds(counted)
        found.append(said)
    return found[1:]


def once(lake: str, task: str, updates: int, repeat: int) -> list[dict[str, float]]:
    """Of each turn: images per second of one rank and of two, and the part of the time that the slower one waited for batches."""
    from horovod.runner import run

    first, second = run(rank, args=(lake, task, updates, repeat), num_proc=2, use_gloo=True)
    turns = []
    for mine, other in zip(first, second):
        alone, slower = mine["one"], max(mine["two"], other["two"])
        turns.append(
            {
                "one": BATCH * updates / alone[0],
                "two": 2 * BATCH * updates / slower[0],
                "waiting one": alone[1] / alone[0],
                "waiting two": slower[1] / slower[0],
            }
        )
    return turns


def bench(given: Given) -> Report:
    size = "small" if given.size == "small" else "full"
    lake = feeds(given.work, size)
    report = Report("Ranks: training, one rank and two, each with its reader on one core")
    for what, task in TASKS.items():
        command = [sys.executable, "-m", "benchmarks.ranks", "--once", str(lake), task, str(SIZES[size]["updates"]), str(given.repeat)]
        environment = peer.environment(given.work) | {"TF_CPP_MIN_LOG_LEVEL": "2"}
        done = subprocess.run(command, cwd=peer.ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        turns = json.loads(done.stdout.strip().splitlines()[-1])
        one, two = (max(turn[name] for turn in turns) for name in ("one", "two"))
        each = ", ".join(f"{turn['two'] / (2 * turn['one']):.2f}" for turn in turns)
        waits = {name: min(turn[f"waiting {name}"] for turn in turns) for name in ("one", "two")}
        note = f"turn by turn {each}; waiting for batches {waits['one']:.1%} of the time with one rank, {waits['two']:.1%} with two"
        report.ratios.append(Ratio(what, two, one, "images/s", two / (2 * one), TARGET, note=note))
    report.remarks.append(
        f"batch {BATCH} per rank, float32, tiles of {SIZES[size]['side']} px; peer is one rank, the best of its turns; the ratio is the efficiency"
    )
    return report


def main() -> None:
    parser = peer.options("ranks", __doc__, 3)
    parser.add_argument("--once", nargs=4, metavar=("LAKE", "TASK", "UPDATES", "REPEAT"), help="both sides in turn; prints JSON")
    given = parser.parse_args()
    if given.once:
        lake, task, updates, repeat = given.once
        print(json.dumps(once(lake, task, int(updates), int(repeat))))
        return
    peer.main("ranks", parser, bench)


if __name__ == "__main__":
    main()
