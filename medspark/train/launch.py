"""Ranks on Spark: one task each, started by Horovod, watched by the driver; or a single one in the driver's own process.

Horovod on Spark waits for all ranks to end, whatever becomes of them. So the driver listens to their hearts (`heart`): it ends the Spark job
where a rank hangs, and says which; ranks whose driver or task has died end by themselves.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medspark.errors import BadRequest, MedsparkError
from medspark.track.tracker import Remembered, Tracker
from medspark.train import loop
from medspark.train.feeding import Readers
from medspark.train.heart import Heart, Listener, interval
from medspark.train.world import Horovod, Solo, World

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("medspark.train")

SLOTS_S = 30.0  # executors of a cluster may still be on their way, tasks of an ended run not quite gone
START_S = 300.0  # for all ranks to start: they wait in Spark's queue, which was found empty
PASSED = ("MEDSPARK_", "MLFLOW_", "TF_CPP_MIN_LOG_LEVEL")  # beginnings of the environment's names that ranks get from the driver
GRACE_S = 20.0  # after a rank has failed, before the others are ended: most end by themselves and say why


class RunFailed(MedsparkError):
    """Training ended before its time; the message names the rank and the reason."""


@dataclass(frozen=True)
class Tracking:
    """Where a run is tracked; made into a tracker by the process that trains. No uri: nowhere."""

    uri: str = ""
    run_id: str = ""


def tracker_for(tracking: Tracking, rank: int = 0) -> Tracker:
    """Rank 0's tracker sends what it is told, where tracking is asked for; the others' forget it."""
    if not tracking.uri or rank:
        return Remembered(tracking.run_id or "untracked")
    from medspark.track.runs import MlflowTracker

    return MlflowTracker(tracking.uri, tracking.run_id)


def first_of(tracking: Tracking) -> loop.First | None:
    """What is said of a run's first batch, so that it can be repeated; nothing where nobody listens."""
    if not tracking.uri:
        return None
    from medspark.track.identity import say_batch

    return say_batch


def slots(spark: SparkSession) -> tuple[int, int]:
    """(tasks that Spark could start now, tasks that it could run at once if all were idle), over all executors."""
    per_task = int(spark.conf.get("spark.task.cpus", "1") or 1)
    free = total = 0
    executors = spark.sparkContext._jsc.sc().statusStore().executorList(True)
    for place in range(executors.size()):
        executor = executors.apply(place)
        total += executor.totalCores() // per_task
        free += executor.totalCores() // per_task - executor.activeTasks()
    return free, total


def check_slots(spark: SparkSession, num_proc: int) -> None:
    """Raises `BadRequest` where Spark has not as many free slots as ranks are asked for: the ranks that start would wait for the rest."""
    local = (spark.sparkContext.master or "").startswith("local")
    until = time.monotonic() + SLOTS_S
    while (found := slots(spark))[0] < num_proc:
        free, total = found
        if time.monotonic() >= until or (local and total < num_proc):
            raise BadRequest(
                f"--num-proc {num_proc}: Spark ({spark.sparkContext.master}) has {free} free slots; ask for at most so many ranks, or give "
                f"Spark more cores (spark-submit --master local[{num_proc}], or more executors)"
            )
        time.sleep(1.0)


def train(plan: loop.Plan, readers: Readers, tracking: Tracking, num_proc: int, spark: SparkSession | None) -> loop.Result:
    """Runs a plan on ``num_proc`` ranks. One rank on a local master trains in this process.

    Raises `BadRequest` (too few slots, too little memory), `RunFailed`.
    """
    if spark is None or (num_proc == 1 and (spark.sparkContext.master or "").startswith("local")):
        return alone(plan, readers, tracking)
    check_slots(spark, num_proc)
    return together(plan, readers, tracking, num_proc, spark)


def alone(plan: loop.Plan, readers: Readers, tracking: Tracking) -> loop.Result:
    tracker = tracker_for(tracking)
    try:
        return loop.run(plan, readers, Solo(), tracker, first=first_of(tracking))
    finally:
        close(tracker)


def close(tracker: Tracker) -> None:
    """Lets a tracker send what it still holds."""
    if (end := getattr(tracker, "close", None)) is not None:
        end()


def rank_main(plan: loop.Plan, readers: Readers, tracking: Tracking, attempt: str) -> loop.Result:
    """What every rank runs, in a process that Horovod started within a Spark task."""
    from medspark.lake import logs

    rank = int(os.environ["HOROVOD_RANK"])
    logs.configure(plan.run, os.environ.get("MEDSPARK_LOG_LEVEL", "INFO" if rank == 0 else "WARNING"))
    heart = Heart(plan.folder, attempt, rank, plan.train.stall_s).start()
    tracker: Tracker | None = None
    try:
        world: World = Horovod()
        tracker = tracker_for(tracking, rank)
        return loop.run(plan, readers, world, tracker, heart.beat, first_of(tracking))
    except BaseException as error:
        heart.failed(error)
        raise SystemExit(1) from error  # without a trace on the terminal: the driver says why, and logs the trace of what is a bug
    finally:
        if tracker is not None:
            close(tracker)
        heart.stop()


def environment(stall_s: float) -> dict[str, str]:
    """What ranks get beside their Spark task's own environment."""
    passed = {
        name: os.environ[name] for name in ("MEDSPARK_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL", "MLFLOW_TRACKING_TOKEN") if name in os.environ
    }
    return {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "HOROVOD_LOG_LEVEL": "error",
        "HOROVOD_STALL_CHECK_TIME_SECONDS": str(max(1, int(stall_s / 2))),
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": str(max(2, int(stall_s))),
        **passed,
    }


def together(plan: loop.Plan, readers: Readers, tracking: Tracking, num_proc: int, spark: SparkSession) -> loop.Result:
    """``num_proc`` ranks on Spark. Only from a process's main thread: Horovod sets signal handlers."""
    import horovod.spark

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else ranks are started with another Python and fail without a word of it
    attempt = uuid.uuid4().hex[:12]
    listener = Listener(plan.folder, attempt, num_proc, plan.train.stall_s)
    over, verdict = threading.Event(), [""]
    watcher = threading.Thread(target=_watch, args=(listener, spark, over, verdict, plan.train.stall_s), name="ranks", daemon=True)
    excepthook = threading.excepthook
    threading.excepthook = _quietly  # of the thread in which Horovod waits for the Spark job
    handlers: Mapping[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    watcher.start()
    try:
        results = horovod.spark.run(
            rank_main,
            args=(plan, readers, tracking, attempt),
            num_proc=num_proc,
            start_timeout=int(START_S),
            use_gloo=True,
            env=environment(plan.train.stall_s),
            verbose=0,
            executable=os.environ["PYSPARK_PYTHON"],
        )
        return results[0]
    except Exception as error:
        over.set()
        raise _explained(plan, listener, verdict[0], error) from error
    finally:
        over.set()
        threading.excepthook = excepthook
        for number, handler in handlers.items():
            signal.signal(number, handler)
        watcher.join(timeout=GRACE_S)
        listener.forget()


def _quietly(given: threading.ExceptHookArgs) -> None:
    """The Spark job's end is told by `_explained`; here it would be a page of Java."""
    log.debug("a thread of the launch ended: %s", given.exc_type.__name__)


def _watch(listener: Listener, spark: SparkSession, over: threading.Event, verdict: list[str], stall_s: float) -> None:
    """Ends the Spark job where a rank hangs, or where one has failed and the others do not follow."""
    failed_at: float | None = None
    while not over.wait(interval(stall_s)):
        try:
            failures = listener.failures()
            if failures and failed_at is None:
                failed_at = time.monotonic()
            if not verdict[0] and not any(said["ours"] for said in failures):  # ranks also fail because another one hangs
                verdict[0] = listener.verdict()
            if verdict[0] or (failed_at is not None and time.monotonic() - failed_at > GRACE_S):
                log.error("the run is ended: %s", verdict[0] or "a rank failed and others did not end by themselves")
                spark.sparkContext.cancelAllJobs()
                failed_at = failed_at or time.monotonic()
        except Exception:  # a store that is away for a moment must not end the watch
            log.exception("the driver could not look after its ranks")


def _explained(plan: loop.Plan, listener: Listener, verdict: str, error: Exception) -> MedsparkError:
    on = f"`--resume {plan.run}` goes on from the last checkpoint"
    failures = [said for said in listener.failures() if not verdict or said["ours"]]
    if failures:
        first = failures[0]
        if first["refused"]:
            return BadRequest(first["message"])
        if not first["ours"]:
            log.error("rank %d failed", first["rank"], extra={"said": {"trace": first["trace"]}})
        what = first["message"] if first["ours"] else f"{first['kind']}: {first['message'].splitlines()[0] if first['message'] else ''}"
        return RunFailed(f"rank {first['rank']} ended while {first['phase']}: {what}; {on}")
    if verdict:
        return RunFailed(f"{verdict}; a rank may be silent for {plan.train.stall_s:.0f} s (train.stall_s); the run is ended, {on}")
    said = str(error).strip().splitlines() or [type(error).__name__]
    return RunFailed(f"a rank was killed or its task lost ({said[0][:200]}); the run is ended, {on}")
