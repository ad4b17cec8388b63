"""What both training jobs share: the request, the gates, the run, the summary line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _entry import BUG, STARTED, parser

if TYPE_CHECKING:
    from medspark.config import Config
    from medspark.feed.open import Feed
    from medspark.train.feed_readers import FeedReaders
    from medspark.train.launch import Tracking
    from medspark.train.loop import Plan, Result
    from medspark.train.memory import Estimate
    from medspark.train.network import Network

NOWHERE = "none"
RECORD = "run.json"  # in a run's folder: what --resume needs
OWNER = "owner"  # ditto: the driver's process, so that no second one joins in
KEPT = ("feed", "epochs", "batch_size", "seed", "num_proc", "train_part", "val_part", "tracking_uri")
"""Options that a run keeps for life."""
SECTIONS = ("train", "augment")  # of the settings, that shape a run


def options(job: str, description: str) -> argparse.ArgumentParser:
    given = parser(job, description)
    given.add_argument("--feed", metavar="NAME[@VERSION]", help="feed to learn from (the newest version unless one is given)")
    given.add_argument("--num-proc", type=int, default=1, metavar="N", help="ranks; one trains in the driver on a local master")
    given.add_argument("--epochs", type=int, default=10, metavar="N", help="passes over the training part")
    given.add_argument("--batch-size", type=int, default=16, metavar="N", help="samples of one step of one rank")
    given.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, order and augmentation")
    given.add_argument("--train-part", default="train", metavar="PART", help="part of the split that is learnt from")
    given.add_argument("--val-part", default="val", metavar="PART", help="part that thresholds and the best epoch come from; none for none")
    given.add_argument("--resume", metavar="RUN", help="goes on with this run from its last checkpoint, with its own options and settings")
    given.add_argument("--tracking-uri", metavar="URI", help="MLflow's store (empty: mlflow.db in the lake); none for none")
    given.add_argument("--register", default="", metavar="NAME", help="name of the registered model (empty: by task and labels)")
    given.add_argument("--dry-run", action="store_true", help="prints the plan with its estimate of memory, and writes nothing")
    return given


def body(job: str, task: str, given: argparse.Namespace, known: argparse.ArgumentParser) -> dict[str, Any]:
    """The whole job: everything that can be refused is refused before Spark starts."""
    from medspark import config
    from medspark.errors import BadRequest, MedsparkError
    from medspark.feed.leaks import gate
    from medspark.feed.open import open_feed
    from medspark.lake.files import check_writable

    record = resumed(job, given, known) if given.resume else {}
    settings = config.load(given.conf, [*record.get("settings", ()), *given.set])
    for name in ("num_proc", "epochs", "batch_size"):
        if getattr(given, name) < 1:
            raise BadRequest(f"--{name.replace('_', '-')}: expected 1 or more, got {getattr(given, name)}")
    if not given.feed:
        raise BadRequest("--feed: name the feed to learn from (or give --resume RUN)")
    feed = open_feed(given.lake, given.feed)
    if feed.card.task != task:
        raise BadRequest(
            f"feed {feed.name} is for {feed.card.task}; use {'train_segmenter' if task != 'segmentation' else 'train_classifier'}"
        )
    parts = [given.train_part] + ([given.val_part] if given.val_part != NOWHERE else [])
    for part in parts:
        feed.card.files_of(part)
    gate(feed.card, *feed.store())
    say_doubles(job, feed)
    if given.dry_run:
        return dry(job, given, settings, feed)
    check_writable(given.lake)
    try:
        return trained(job, given, settings, feed, record, known)
    except BadRequest:
        raise
    except MedsparkError as error:  # the run's own end, said in one sentence
        print(f"{job}: {error}", file=sys.stderr)
        raise SystemExit(BUG) from None


def resumed(job: str, given: argparse.Namespace, known: argparse.ArgumentParser) -> dict[str, Any]:
    """The record of the run that goes on; fills ``given`` with its options. Raises `BadRequest` where another one is asked for."""
    from medspark.errors import BadRequest
    from medspark.train.checkpoint import get, run_folder

    data = get(run_folder(given.lake, given.resume), RECORD)
    if data is None:
        raise BadRequest(f"--resume {given.resume}: lake {given.lake} has no such run")
    owner = get(run_folder(given.lake, given.resume), OWNER)
    if owner is not None and alive(owner.decode()):
        raise BadRequest(
            f"--resume {given.resume}: its driver still runs on this machine (process {owner.decode().split('/')[-2]}); wait for it, or end it"
        )
    record: dict[str, Any] = json.loads(data)
    if record["job"] != job:
        raise BadRequest(f"--resume {given.resume}: this run is one of {record['job']}")
    for name in KEPT:
        value = getattr(given, name)
        if value not in (known.get_default(name), record[name]):
            raise BadRequest(
                f"--resume {given.resume}: the run has --{name.replace('_', '-')} {record[name]}, not {value}; leave the option out"
            )
        setattr(given, name, record[name])
    return record


def alive(owner: str) -> bool:
    """Whether the driver that wrote ``owner`` certainly lives: on this machine, since this boot. Of others nothing is known."""
    from medspark.lake.owner import Owner, current

    said, me = Owner.parse(owner), current()
    return (said.host, said.boot, said.space) == (me.host, me.boot, me.space) and not said.dead()


def say_doubles(job: str, feed: Feed) -> None:
    """Equal images under different subjects or parts are named, not refused: a publisher's data set may have them."""
    if feed.card.doubles:
        groups = "; ".join(" = ".join(group) for group in feed.card.doubles[:5])
        print(
            f"{job}: feed {feed.name} has {len(feed.card.doubles)} groups of equal images under different subjects or parts: {groups}",
            file=sys.stderr,
        )


def plan_of(job: str, run: str, given: argparse.Namespace, settings: Config, feed: Feed) -> Plan:
    from medspark.train.checkpoint import run_folder
    from medspark.train.loop import Plan

    return Plan(
        run=run,
        folder=run_folder(given.lake, run),
        feed=feed.name,
        version=feed.version,
        card=feed.card,
        epochs=given.epochs,
        batch_size=given.batch_size,
        seed=given.seed,
        train=settings.train,
        train_part=given.train_part,
        val_part=None if given.val_part == NOWHERE else given.val_part,
        resume=bool(given.resume),
        said={"job": job},
    )


def readers_of(feed: Feed, settings: Config) -> FeedReaders:
    from medspark.train.feed_readers import FeedReaders

    return FeedReaders(feed, settings.train, settings.augment)


def weighed(given: argparse.Namespace, settings: Config, feed: Feed) -> tuple[Network, int, Estimate]:
    """(network, number of its weights, bytes that a rank needs); raises `BadRequest` where ranks on this machine would not have them."""
    import tensorflow as tf

    from medspark.train import losses, memory
    from medspark.train import network as networks

    gpus = tf.config.list_physical_devices("GPU")
    tf.config.set_visible_devices([], "GPU")  # the ranks' own: the driver takes none of their memory
    losses.of(feed.card, settings.train)
    network = networks.of(feed.card, settings.train)
    model = networks.build(network)
    needed = memory.estimate(model, network, feed.card, given.batch_size, settings.train, bool(gpus))
    memory.check(needed, memory.available(given.num_proc, bool(gpus)), settings.train)
    return network, model.count_params(), needed


def dry(job: str, given: argparse.Namespace, settings: Config, feed: Feed) -> dict[str, Any]:
    """What would be trained, and what a rank would need."""
    reader = readers_of(feed, settings)(given.train_part, given.batch_size, 0, given.num_proc, given.seed, False)
    network, weights, needed = weighed(given, settings, feed)
    steps = reader.steps_per_epoch
    reader.close()
    return {
        "job": job,
        "lake": given.lake,
        "written": {},
        "plan": {
            "feed": feed.name,
            "feed_version": feed.version,
            "rows": {part: counts.rows for part, counts in sorted(feed.card.parts.items())},
            "ranks": given.num_proc,
            "steps_per_epoch": steps,
            "updates": given.epochs * -(-steps // settings.train.accumulate),
            "depth": network.depth,
            "weights": weights,
            "bytes_per_rank": needed.total,
        },
        "seconds": round(time.monotonic() - STARTED, 3),
    }


def trained(
    job: str,
    given: argparse.Namespace,
    settings: Config,
    feed: Feed,
    record: dict[str, Any],
    known: argparse.ArgumentParser,
) -> dict[str, Any]:
    from medspark.lake import kpi, logs, owner, session
    from medspark.lake.ingest import Summary
    from medspark.lake.store import Lake
    from medspark.train import launch
    from medspark.train.checkpoint import put

    logs.configure("", given.log_level)
    spark = session.build(f"medspark {job}", settings.spark, once=True)
    launch.check_slots(spark, given.num_proc)
    if given.num_proc > 1 and (spark.sparkContext.master or "").startswith("local"):
        weighed(given, settings, feed)
    tracking = tracked(job, given, settings, feed, record, known)
    run = given.resume or tracking.run_id or uuid.uuid4().hex
    logs.configure(run, given.log_level)
    plan = plan_of(job, run, given, settings, feed)
    if not given.resume:
        said = {name: getattr(given, name) for name in KEPT} | {"feed": f"{feed.name}@{feed.version}"}
        kept = [
            f"{section}.{name}={json.dumps(value)}"
            for section in SECTIONS
            for name, value in dataclasses.asdict(getattr(settings, section)).items()
        ]
        put(plan.folder, RECORD, json.dumps({"job": job, **said, "settings": kept, "run_id": tracking.run_id}).encode())
    put(plan.folder, OWNER, str(owner.current()).encode())
    print(f"{job}: run {run}; stopped at any time, it goes on with --resume {run}", file=sys.stderr, flush=True)
    summary = Summary(job, run, given.lake)
    summary.stages["start"] = time.monotonic() - STARTED
    with running(tracking) as model_of:
        with summary.timed("train"):
            result = launch.train(plan, readers_of(feed, settings), tracking, given.num_proc, spark)
        registered = model_of(plan, given.register)
    lake = Lake(spark, given.lake)
    images = round(result.images_per_s * result.seconds)
    values = kpi.work("totm_s", summary.stages["train"], images)
    context = {"feed": feed.name, "ranks": str(given.num_proc), "epochs": str(result.epochs)}
    summary.written["kpi"] += kpi.record(lake, run, job, values, context)
    if tracking.uri:
        from medspark.track import kpis

        kpis.brought(given.lake, tracking.uri)
    summary.seconds = time.monotonic() - STARTED
    summary.rejected = len(result.bad_rows)
    spark.stop()
    return {**summary.json(), **particular(plan, result, registered)}


def particular(plan: Plan, result: Result, registered: str) -> dict[str, Any]:
    """What a training job says beside the common fields."""
    best = result.history[result.best_epoch] if 0 <= result.best_epoch < len(result.history) else {}
    return {
        "feed": plan.feed,
        "feed_version": plan.version,
        "model": result.model,
        "registered": registered,
        "updates": result.updates,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "measures": {name: round(value, 5) for name, value in best.items() if value == value},
        "thresholds": {label: round(value, 5) for label, value in result.thresholds.items()},
        "stopped": result.stopped,
        "resumed_at": result.resumed_at,
        "images_per_s": round(result.images_per_s, 2),
        "within_subject": "WITHIN-SUBJECT" if plan.card.within_subject else "",
    }


def tracked(
    job: str, given: argparse.Namespace, settings: Config, feed: Feed, record: dict[str, Any], known: argparse.ArgumentParser
) -> Tracking:
    """The run in MLflow: begun, or opened again."""
    from medspark.train.launch import Tracking

    if given.tracking_uri == NOWHERE:
        return Tracking()
    from medspark.track import runs
    from medspark.track.identity import arguments, identity

    uri = runs.where(given.tracking_uri, given.lake)
    if record:
        runs.again(uri, record["run_id"])
        return Tracking(uri, record["run_id"])
    who = identity(job, feed.card, feed.version, settings, SECTIONS, given.seed, given.num_proc)
    return Tracking(uri, runs.begin(uri, who, arguments(known, given), dataclasses.asdict(settings)))


@contextlib.contextmanager
def running(tracking: Tracking) -> Iterator[Any]:
    """Ends the run in MLflow as it went; gives a function that logs and registers the finished model there and returns its name."""
    if not tracking.uri:
        yield lambda plan, name: ""
        return
    from medspark.track import model, runs
    from medspark.train import predictor
    from medspark.train.checkpoint import get

    def log(plan: Plan, name: str) -> str:
        with tempfile.TemporaryDirectory(prefix="medspark-") as place:
            for file in ("predictor.json", "weights.npz"):
                (Path(place) / file).write_bytes(get(f"{plan.folder}/model", file) or b"")
            return str(model.log(tracking.uri, tracking.run_id, place, predictor.load(place), name=name, alias="candidate"))

    with runs.running(runs.MlflowTracker(tracking.uri, tracking.run_id, machine=False)):
        yield log
    logging.getLogger("medspark.train").info("run %s is in %s", tracking.run_id, tracking.uri)
