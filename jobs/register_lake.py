"""Puts a lake's tables and views into Spark's catalogue: ``spark-submit jobs/register_lake.py --lake URI --database NAME``"""

from __future__ import annotations

import argparse
from typing import Any

from _entry import begin, begun, end, parser
from _entry import main as run


def options() -> argparse.ArgumentParser:
    parsed = parser("register_lake", "Puts the tables and views of a lake into Spark's catalogue, for spark-sql, notebooks and JDBC.")
    parsed.add_argument("--database", required=True, metavar="NAME", help="database to put them into")
    return parsed


def register(given: argparse.Namespace) -> dict[str, Any]:
    from medspark import config
    from medspark.lake import register as catalogue
    from medspark.lake.sql import opened
    from medspark.lake.store import Lake

    settings = config.load(given.conf, given.set)
    catalogue.check(given.database)
    given.lake = opened(None, given.lake).uri
    spark, summary = begin("register_lake", given, settings)
    begun(summary)
    lake = Lake(spark, given.lake)
    with summary.timed("commit"):
        done = catalogue.register(spark, lake, given.database)
    summary.extra = {
        "database": given.database,
        "tables": list(done.tables),
        "views": list(done.views),
        "absent": list(done.absent),
        "kept": str(done.kept) if done.kept else "the metastore",
    }
    return end(spark, lake, summary)


def main() -> None:
    given = options().parse_args()
    run("register_lake", lambda: register(given), given.summary)


if __name__ == "__main__":
    main()
