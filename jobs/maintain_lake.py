"""Upkeep of a lake: ``spark-submit jobs/maintain_lake.py --lake URI [--cluster] [--vacuum HOURS] [--verify] ...``"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from _entry import DONE, QUARANTINED, begun, end, main, parser

DAMAGED = QUARANTINED  # status 3: done, and somebody has to look at the data


def options() -> argparse.ArgumentParser:
    given = parser("maintain_lake", "Lays tables out, verifies, vacuums and migrates a lake, and forgets a subject.")
    given.add_argument("--compact", action="store_true", help="merges narrow files below 32 MB")
    given.add_argument("--cluster", action="store_true", help="lays narrow tables out in their order, in files of 32 to 64 MB")
    given.add_argument(
        "--vacuum", type=float, metavar="HOURS", help="removes files that no version in use needs and that stopped being current HOURS ago"
    )
    given.add_argument(
        "--verify", type=float, nargs="?", const=1.0, metavar="FRACTION", help="checks files, checksums and masks (without FRACTION: all)"
    )
    given.add_argument("--migrate", action="store_true", help="adds the columns that later releases have added")
    given.add_argument("--forget-subject", metavar="KEY", help="removes the subject with this subject_key and all traces of it")
    given.add_argument("--dry-run", action="store_true", help="prints what would be done and writes nothing")
    return given


def upkeep(given: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from medspark import config
    from medspark.lake import logs, maintain, session
    from medspark.lake.files import check_writable
    from medspark.lake.store import Lake
    from medspark.track.forget import TrackedRuns

    settings = config.load(given.conf, given.set)
    request = maintain.Request(given.migrate, given.forget_subject, given.verify, given.compact, given.cluster, given.vacuum, given.dry_run)
    request.check()
    maintain.check_lake(Lake(None, given.lake), request)  # type: ignore[arg-type]  # the logs answer without a session
    if request.writes:
        check_writable(given.lake)
    logs.configure("", given.log_level)
    spark = session.build("medspark maintain_lake", settings.spark)
    about = {"progress": logs.Progress("maintain_lake"), "say": say, "key_path": settings.deid.key_path(), "tracked": TrackedRuns}
    lake = Lake(spark, given.lake)
    run = maintain.Maintenance(lake, request, settings.ingest.lease_s, **about)
    logs.configure(run.run_id, given.log_level)
    begun(run.summary)
    summary = run.run()
    return end(spark, lake, summary, given.dry_run), DAMAGED if summary.extra.get("verified", {}).get(maintain.DAMAGED) else DONE


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    arguments = options().parse_args()
    main("maintain_lake", lambda: upkeep(arguments), arguments.summary)
