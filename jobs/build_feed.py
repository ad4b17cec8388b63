"""A frozen feed from a SQL cohort: ``spark-submit jobs/build_feed.py --lake URI --name NAME --query SQL --split NAME``"""

from __future__ import annotations

import argparse
from typing import Any

from _entry import begin, begun, end, main, parser


def options() -> argparse.ArgumentParser:
    job = parser("build_feed", "Makes a feed: samples of a cohort with their truth, cut, encoded and shuffled once, as one Delta version.")
    job.add_argument("--name", required=True, metavar="NAME", help="name of the feed; the same name again makes a new version of it")
    job.add_argument(
        "--query", required=True, metavar="SQL", help="over the lake's tables; returns image_id, and where wanted part, row0, col0, weight"
    )
    job.add_argument("--split", default="", metavar="NAME", help="which split says the parts (assign_splits)")
    job.add_argument("--part-by", default="part", metavar="COLUMN", help="column of the query that says the part, before the split does")
    job.add_argument("--task", default="segmentation", choices=("segmentation", "classification"), help="truth by pixel, or by image")
    job.add_argument("--labels", default="", metavar="A,B", help="classes, in this order (empty: all positive labels of the cohort)")
    job.add_argument("--class-map", default="", metavar="OLD=NEW,...", help="labels to classes; OLD= says background: none of the classes")
    job.add_argument("--classes", metavar="FILE", help="the same as a CSV file label,class")
    job.add_argument("--exclusive", default="auto", choices=("auto", "yes", "no"), help="one class at most per pixel or image; auto looks")
    job.add_argument("--unlabelled", default="skip", choices=("skip", "negative"), help="what an image without any row of these labels is")
    job.add_argument("--label-sources", default="annotation,reader,consensus", metavar="A,B", help="whose rows of labels are truth")
    job.add_argument("--label-where", default="", metavar="SQL", help="a condition on rows of labels, as in \"annotator = '...'\"")
    job.add_argument(
        "--inherit", default="", metavar="series,slide", help="images share the labels of their series or slide as a whole (classification)"
    )
    job.add_argument("--crop", metavar="PX|ROWSxCOLS", help="cuts crops of this size (empty: whole images)")
    job.add_argument("--stride", metavar="PX|ROWSxCOLS", help="from crop to crop (empty: the crop's size)")
    job.add_argument("--size", metavar="PX|ROWSxCOLS", help="resamples whole images to this size")
    job.add_argument("--spacing-mm", metavar="MM|ROWxCOL", help="resamples to this pixel spacing")
    job.add_argument("--context", type=int, default=0, metavar="N", help="slices on either side that come along as channels")
    job.add_argument("--volume", metavar="DxRxC", help="whole small volumes of this size")
    job.add_argument(
        "--window", default="auto", metavar="C,W|raw|auto", help="to 0..255; raw: values after rescale; auto: HU, else each file's own"
    )
    job.add_argument(
        "--negatives-per-positive", type=float, metavar="X", help="keeps so many samples that show no class for each that does"
    )
    job.add_argument("--thin", default="train", metavar="PART,...", help="the parts whose negatives are thinned")
    job.add_argument("--weights", default="none", choices=("none", "balanced"), help="balanced: sets of classes weigh the same in train")
    job.add_argument("--seed", type=int, default=0, metavar="N", help="orders the samples")
    job.add_argument("--world", type=int, default=1, metavar="N", help="row groups of each part become a multiple of so many ranks")
    job.add_argument("--runs", type=int, default=16, metavar="N", help="input row groups that an output row group draws from")
    job.add_argument("--within-subject", action="store_true", help="lets one subject be in two parts and marks everything WITHIN-SUBJECT")
    return job


def parse(given: argparse.Namespace) -> Any:
    """The typed request; raises `BadRequest`."""
    from medspark.feed import request

    sides = lambda option, text, count: None if text is None else request.parse_sides(option, text, count)
    asked = request.Request(
        name=given.name,
        query=given.query,
        split=given.split,
        task=given.task,
        labels=request.words(given.labels),
        classes=request.parse_classes(given.class_map, given.classes),
        exclusive=given.exclusive,
        unlabelled=given.unlabelled,
        label_sources=request.words(given.label_sources),
        label_where=given.label_where,
        inherit=request.words(given.inherit),
        crop=sides("--crop", given.crop, 2),
        stride=sides("--stride", given.stride, 2),
        size=sides("--size", given.size, 2),
        spacing_mm=None if given.spacing_mm is None else request.parse_spacing(given.spacing_mm),
        context=given.context,
        volume=sides("--volume", given.volume, 3),
        window=request.parse_window(given.window),
        negatives_per_positive=given.negatives_per_positive,
        thinned=request.words(given.thin),
        weights=given.weights,
        seed=given.seed,
        world=given.world,
        runs=given.runs,
        part_by=given.part_by,
        within_subject=given.within_subject,
    )
    asked.check()
    return asked


def run(given: argparse.Namespace) -> dict[str, Any]:
    from medspark import config
    from medspark.feed import build, cohort
    from medspark.lake import card, logs
    from medspark.lake.files import check_writable

    settings = config.load(given.conf, given.set)
    request = parse(given)
    card.must_exist(given.lake)
    check_writable(given.lake)
    spark, summary = begin("build_feed", given, settings, warm=True)
    lake, tables = cohort.opened(spark, given.lake, request)
    lake.ensure(["kpi"])
    begun(summary)
    outcome = build.Build(lake, request, tables, summary.run_id, summary.timed, logs.Progress("build_feed")).run()
    rows = sum(part.rows for part in outcome.card.parts.values())
    summary.written[f"feeds/{request.name}"] += rows if outcome.changed else 0
    summary.skipped = 0 if outcome.changed else rows
    summary.images = sum(part.images for part in outcome.card.parts.values())
    summary.extra = outcome.said()
    return end(spark, lake, summary)


if __name__ == "__main__":
    given = options().parse_args()
    main("build_feed", lambda: run(given), given.summary)
