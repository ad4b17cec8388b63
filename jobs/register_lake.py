"""Puts a lake's tables and views into Spark's catalogue: ``spark-submit jobs/register_lake.py --lake URI --database NAME``"""

from __future__ import annotations

import argparse
import time
import uuid
from typing import Any

from _entry import STARTED, parser
from _entry import main as run


def options() -> argparse.ArgumentParser:
    parsed = parser("register_lake", "Puts the tables and views of a lake into Spark's catalogue, for spark-sql, notebooks and JDBC.")
    parsed.add_argument("--database", required=True, metavar="NAME", help="database to put them into")
    return parsed


def register(given: argparse.Namespace) -> dict[str, Any]:
    from medspark import config
    from medspark.lake import logs, session
    from medspark.lake import register as catalogue
    from medspark.lake.ingest import Summary
    from medspark.lake.sql import opened
    from medspark.lake.store import Lake

    settings = config.load(given.conf, given.set)
    catalogue.check(given.database)
    uri = opened(None, given.lake).uri
    summary = Summary("register_lake", uuid.uuid4().hex[:16], uri)
    logs.configure(summary.run_id, given.log_level)
    spark = session.build("medspark register_lake", settings.spark)
    summary.stages["start"] = time.monotonic() - STARTED
    lake = Lake(spark, given.lake)
    with summary.timed("commit"):
        done = catalogue.register(spark, lake, given.database)
    spark.stop()
    summary.seconds = time.monotonic() - STARTED
    summary.versions = dict(lake.versions)
    summary.extra = {
        "database": given.database,
        "tables": list(done.tables),
        "views": list(done.views),
        "absent": list(done.absent),
        "kept": str(done.kept) if done.kept else "the metastore",
    }
    return summary.json()


def main() -> None:
    given = options().parse_args()
    run("register_lake", lambda: register(given), given.summary)


if __name__ == "__main__":
    main()
