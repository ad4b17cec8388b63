"""Evaluates a model on a part of a feed: ``spark-submit jobs/evaluate.py --lake URI --model URI --feed NAME[@VERSION] --part test``"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _entry import BUG, STARTED, begin, begun, main, parser


def options() -> argparse.ArgumentParser:
    job = parser(
        "evaluate", "Measures a model on a part of a feed, per image, series, slide, subject and over all, with intervals over subjects."
    )
    job.add_argument(
        "--model", required=True, metavar="URI", help="a model's folder, models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID"
    )
    job.add_argument("--feed", required=True, metavar="NAME[@VERSION]", help="feed of the lake; without a version the latest")
    job.add_argument("--part", default="test", metavar="NAME", help="part of the feed")
    job.add_argument("--batch-size", type=int, default=16, metavar="N", help="samples in one call of the network")
    job.add_argument("--seed", type=int, default=0, metavar="N", help="of the intervals")
    job.add_argument("--replicates", type=int, default=1000, metavar="N", help="bootstrap samples behind an interval")
    job.add_argument("--tracking-uri", metavar="URI", help="MLflow's store (else MLFLOW_TRACKING_URI, else mlflow.db in the lake)")
    return job


def run(given: argparse.Namespace) -> dict[str, Any]:
    from medspark import config
    from medspark.errors import BadRequest, MedsparkError
    from medspark.feed.open import open_feed
    from medspark.lake import card, logs

    settings = config.load(given.conf, given.set)
    card.must_exist(given.lake)
    for name in ("batch_size", "replicates"):
        if getattr(given, name) < 1:
            raise BadRequest(f"--{name.replace('_', '-')} {getattr(given, name)}: expected 1 or more")
    feed = open_feed(given.lake, given.feed)
    feed.card.files_of(given.part)
    logs.configure("", given.log_level)

    from medspark.track import kpis, runs
    from medspark.track import model as models
    from medspark.train import evaluate, evaluate_said, predictor
    from medspark.train.objects import Objects

    store = runs.where(given.tracking_uri, given.lake)
    found = models.find(given.model, store)
    model = predictor.load(found.folder)
    evaluate.check(feed.card, model)

    from medspark.lake import kpi
    from medspark.lake.evaluations import Evaluations
    from medspark.lake.ingest import record_kpi
    from medspark.lake.store import Lake

    progress = logs.Progress("evaluate")
    spark, summary = begin("evaluate", given, settings)
    lake = Lake(spark, given.lake)
    begun(summary)
    rows = Evaluations(lake, summary.run_id)
    spacing = evaluate.spacing_of_series(lake, feed.card)
    request = evaluate.Request(found.uri, given.part, given.seed, given.replicates, spacing, Objects(lake, feed.card))
    with summary.timed("explode"), tempfile.TemporaryDirectory(prefix="medspark-") as scratch:
        reader = feed.reader(given.part, given.batch_size)
        try:
            result = evaluate.evaluate(feed, reader, model, request, rows.add, Path(scratch))
        except MedsparkError as error:  # a row that cannot be read: named, and nothing of the evaluation is kept
            print(f"evaluate: {error}", file=sys.stderr)
            raise SystemExit(BUG) from None
        finally:
            reader.close()
    progress(f"evaluate: {result.counted()}\n{result.said(feed.card.within_subject)}")
    with summary.timed("commit"):
        rows.commit(found.uri, feed.name, feed.version, given.part)
        folder = evaluate_said.keep_pictures(lake, summary.run_id, result)
    if found.run_id:
        tracker = runs.MlflowTracker(store, found.run_id, machine=False)
        evaluate_said.tell(result, tracker, feed.card.within_subject, given.part)
        tracker.close()
    summary.written["evaluations"] = rows.rows
    summary.seconds = time.monotonic() - STARTED
    record_kpi(lake, summary)
    said = {"model": found.uri, "feed": f"{feed.name}@{feed.version}", "part": given.part}
    kpi.record(lake, summary.run_id, "evaluate", kpi.work("totm_s", summary.stages["explode"], result.images), said)
    kpis.brought(given.lake, store)
    summary.versions = dict(lake.versions)
    summary.extra = {
        **said,
        "images": result.images,
        "subjects": result.subjects,
        "within_subject": feed.card.within_subject,
        "pictures": folder,
        "measures": evaluate_said.headline(result),
    }
    spark.stop()
    return summary.json()


if __name__ == "__main__":
    given = options().parse_args()
    main("evaluate", lambda: run(given), given.summary)
