"""Parts of a split for subjects or images: ``spark-submit jobs/assign_splits.py --lake URI --name NAME --seed N --parts train=0.8,val=0.1,test=0.1``"""

from __future__ import annotations

import argparse
from typing import Any

from _entry import begin, begun, end, main, parser


def options() -> argparse.ArgumentParser:
    job = parser("assign_splits", "Gives every subject (or image) a part of a split, once and for all.")
    job.add_argument("--name", required=True, metavar="NAME", help="name of the split; the same name again adds what is new")
    job.add_argument("--seed", type=int, default=0, metavar="N", help="orders the units; another seed is another split")
    job.add_argument("--parts", default="", metavar="PART=SHARE,...", help="parts with their shares, as in train=0.8,val=0.1,test=0.1")
    job.add_argument(
        "--unit", default="subject", choices=("subject", "image"), help="what is split; image: within subjects, for method studies only"
    )
    job.add_argument(
        "--stratify",
        default="",
        metavar="COLUMN",
        help="a column of the units' images, slides, series or subjects, or label:NAME; equal shares of each of its values in every part",
    )
    job.add_argument(
        "--from-column", default="", metavar="COLUMN", help="takes the parts from this column (source_part: the publisher's split)"
    )
    job.add_argument(
        "--query",
        default="",
        metavar="SQL",
        help="which units: returns subject_key (or image_id) and the column to stratify by (empty: all)",
    )
    return job


def run(given: argparse.Namespace) -> dict[str, Any]:
    from medspark import config
    from medspark.lake import card, quotas, splits, sql
    from medspark.lake.files import check_writable

    settings = config.load(given.conf, given.set)
    shares = quotas.parse_parts(given.parts) if given.parts else {}
    request = splits.Request(given.name, given.seed, shares, given.unit, given.stratify, given.from_column, given.query)
    request.check()
    card.must_exist(given.lake)
    check_writable(given.lake)
    spark, summary = begin("assign_splits", given, settings)
    lake = sql.opened(spark, given.lake)
    lake.ensure(["splits", "kpi"])
    begun(summary)
    with summary.timed("plan"):
        result = splits.assign_splits(lake, request, summary.run_id)
    summary.written["splits"] += sum(result.added.values())
    summary.skipped = sum(result.parts.values()) - sum(result.added.values())
    summary.extra = {"split": request.name, **result.said()}
    return end(spark, lake, summary)


if __name__ == "__main__":
    given = options().parse_args()
    main("assign_splits", lambda: run(given), given.summary)
