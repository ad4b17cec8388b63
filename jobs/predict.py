"""Predicts images of the lake: ``spark-submit jobs/predict.py --lake URI --model URI (--query SQL | --feed NAME[@VERSION])``"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from typing import Any

from _entry import DONE, QUARANTINED, STARTED, begin, begun, main, parser


def options() -> argparse.ArgumentParser:
    job = parser("predict", "Writes what a model sees on images of the lake: masks as rows of labels, classes as rows of predictions.")
    job.add_argument(
        "--model", required=True, metavar="URI", help="a model's folder, models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID"
    )
    cohort = job.add_mutually_exclusive_group(required=True)
    cohort.add_argument("--query", metavar="SQL", help="over the lake's tables; returns image_id")
    cohort.add_argument("--feed", metavar="NAME[@VERSION]", help="the images of a feed")
    job.add_argument("--part", metavar="NAME", help="with --feed: those of one part only")
    job.add_argument("--round", type=int, default=0, metavar="N", help="labels.round of the rows")
    job.add_argument(
        "--overlap", type=float, default=0.25, metavar="SHARE", help="of a window's side, for images larger than the network's"
    )
    job.add_argument("--chunk", type=int, default=20_000, metavar="N", help="images in one commit")
    job.add_argument("--tracking-uri", metavar="URI", help="MLflow's store (else MLFLOW_TRACKING_URI, else mlflow.db in the lake)")
    return job


def run(given: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from medspark import config
    from medspark.errors import BadRequest
    from medspark.feed.open import open_feed
    from medspark.lake import card, logs

    settings = config.load(given.conf, given.set)
    card.must_exist(given.lake)
    for name, least in (("round", 0), ("chunk", 1)):
        if getattr(given, name) < least:
            raise BadRequest(f"--{name} {getattr(given, name)}: expected {least} or more")
    if given.part and not given.feed:
        raise BadRequest("--part belongs to --feed; leave it out with --query")
    feed = open_feed(given.lake, given.feed) if given.feed else None
    if feed is not None and given.part:
        feed.card.files_of(given.part)
    logs.configure("", given.log_level)

    from medspark.track import kpis, runs
    from medspark.track import model as models
    from medspark.train import apply

    store = runs.where(given.tracking_uri, given.lake)
    found = models.find(given.model, store)
    apply.applied(found.folder, found.uri, given.overlap)  # refused before Spark starts, if at all

    from medspark.lake import kpi, predict, sql
    from medspark.lake.ingest import record_kpi

    spark, summary = begin("predict", given, settings)
    lake = sql.register(spark, given.lake)
    begun(summary)
    if feed is None:
        cohort = sql.query(spark, given.query)
    else:
        cohort = spark.read.format("delta").option("versionAsOf", feed.version).load(feed.uri)
        cohort = cohort.where(cohort["part"] == given.part) if given.part else cohort
    model = apply.applied(found.folder, found.uri, given.overlap, spark.sparkContext.broadcast)
    request = predict.Request(given.round, given.chunk)
    with summary.timed("explode"):
        result = predict.predict(lake, model, cohort, request, summary.run_id, settings.ingest.lease_s, logs.Progress("predict"))
    summary.written[predict.table_of(model.task)] = result.rows
    summary.rejected, summary.skipped = result.failed, result.done
    summary.seconds = time.monotonic() - STARTED
    record_kpi(lake, summary)
    said = {"model": found.uri, "round": str(given.round)}
    measured = kpi.work("totm_s", summary.stages["explode"], result.images)
    if found.registered_at is not None and result.images:
        measured["ttmip_s"] = ((datetime.now(UTC) - found.registered_at).total_seconds(), "s")
    kpi.record(lake, summary.run_id, "predict", measured, said)
    kpis.brought(given.lake, store)
    summary.versions = dict(lake.versions)
    summary.extra = {
        "model": found.uri,
        "annotator": model.name,
        "round": given.round,
        "images": result.images,
        "without_pixels": result.without_pixels,
        "chunks": result.chunks,
        "reasons": dict(sorted(result.reasons.items())),
    }
    spark.stop()
    asked = result.images + result.failed
    return summary.json(), QUARANTINED if asked and result.failed / asked > settings.quarantine.max_fraction else DONE


if __name__ == "__main__":
    given = options().parse_args()
    main("predict", lambda: run(given), given.summary)
