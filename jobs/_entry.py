"""What every job shares: options, config, session, the summary line, exit statuses (contract.md §1)."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from medspark.config import Config
    from medspark.lake.ingest import Summary
    from medspark.lake.store import Lake

STARTED = time.monotonic()
DONE, BUG, BAD_REQUEST, QUARANTINED, UNAVAILABLE = 0, 1, 2, 3, 4


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> Any:
        print(f"{self.prog}: {message}; see --help", file=sys.stderr)
        raise SystemExit(BAD_REQUEST)


def parser(job: str, description: str) -> argparse.ArgumentParser:
    """The options that all jobs take."""
    options = Parser(prog=f"{job}.py", description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--lake", required=True, metavar="URI", help="folder or URI of the lake")
    options.add_argument("--conf", metavar="FILE", help="settings in TOML; see conf/local.toml")
    options.add_argument("--set", action="append", default=[], metavar="section.key=value", help="overrides one setting; may be repeated")
    options.add_argument("--summary", metavar="FILE", help="writes the last line there, too")
    options.add_argument(
        "--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="of the JSON log on standard error"
    )
    return options


def ingest_parser(job: str, description: str, watch: bool = False) -> argparse.ArgumentParser:
    """The options that all ingest jobs take. ``watch``: the job may watch a folder instead."""
    options = parser(job, description)
    place: Any = options.add_mutually_exclusive_group(required=True) if watch else options
    place.add_argument("--input", required=not watch, nargs="+", metavar="PATH", help="files or folders")
    if watch:
        place.add_argument("--watch", metavar="FOLDER", help="goes on ingesting what others write into this folder, until SIGTERM")
        options.add_argument("--once", action="store_true", help="with --watch: takes what stands still there, and ends")
    options.add_argument("--dataset", default="", metavar="NAME", help="data set of the input (empty: the input folder's name)")
    options.add_argument("--subjects", metavar="FILE", help="CSV file,subject: names or paths")
    options.add_argument("--subject-pattern", default="", metavar="REGEX", help="group 1 of the file name is the subject")
    options.add_argument("--subject-domain", default="", metavar="NAME", help="whose subject numbers these are (empty: the data set's)")
    options.add_argument("--dry-run", action="store_true", help="prints the plan and writes nothing")
    options.add_argument("--retry-rejected", action="store_true", help="tries rejected sources again")
    return options


def main(job: str, body: Callable[[], dict[str, Any] | tuple[dict[str, Any], int]], summary: str | None = None) -> None:
    """Runs a job's body, prints its summary as the last line on standard output, and ends with the contract's status."""
    from medspark.errors import BadRequest

    try:
        result = body()
    except BadRequest as error:
        print(f"{job}: {error}", file=sys.stderr)
        raise SystemExit(BAD_REQUEST) from None
    except KeyboardInterrupt:
        print(f"{job}: interrupted; run it again and it goes on where it stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        from medspark.lake.files import FULL

        if FULL in str(error):
            print(
                f"{job}: a disk is full (the lake's, or Spark's local folder); free some space and run it again, nothing is lost",
                file=sys.stderr,
            )
            raise SystemExit(BUG) from None
        logging.getLogger("medspark").exception("a bug in medspark stopped the job")
        print(f"{job}: stopped by an error in medspark (see the log); run it again and it goes on where it stopped", file=sys.stderr)
        raise SystemExit(BUG) from None
    said, status = result if isinstance(result, tuple) else (result, DONE)
    line = json.dumps(said)
    if summary:
        Path(summary).write_text(line + "\n")
    sys.stderr.flush()
    print(line, flush=True)
    raise SystemExit(status)


def ingest(kind: Any, given: argparse.Namespace) -> None:
    """The whole of an ingest job: checks the request before any Spark work, then `medspark.lake.ingest`."""
    main(kind.job, lambda: _ingest(kind, given), given.summary)


def _ingest(kind: Any, given: argparse.Namespace) -> tuple[dict[str, Any], int]:
    import re

    from medspark import config, deid
    from medspark.errors import BadRequest
    from medspark.keys import Ids
    from medspark.tables.verdicts import SEVERITY

    settings = config.load(given.conf, given.set)
    try:
        pattern = re.compile(given.subject_pattern)
    except re.error as error:
        raise BadRequest(f"--subject-pattern: not a regular expression ({error})") from None
    if given.subject_pattern and pattern.groups < 1:
        raise BadRequest("--subject-pattern: needs a group, as in '(TCGA-\\w\\w-\\w{4})'")
    subjects = read_subjects(given.subjects)
    from medspark.lake import scan, watch
    from medspark.lake.files import check_writable, locate
    from medspark.series.dicomweb import is_address

    watched, once = getattr(given, "watch", None), getattr(given, "once", False)
    if watched:
        watch.check(watched, once, given.retry_rejected, given.dry_run)
        given.input = [watched]
    elif once:
        raise BadRequest("--once belongs to --watch; --input ends by itself")
    scan.resolve(given.input)
    if kind.job != "explode_series" and any(map(is_address, given.input)):
        raise BadRequest("--input dicomweb+...: only explode_series reads from a DICOMweb server")
    locate(given.lake)
    unknown = sorted(set(settings.verdicts) - set(SEVERITY))
    if unknown:
        raise BadRequest(f"config verdicts.{unknown[0]}: no such verdict; known: {', '.join(sorted(SEVERITY))}")
    path = settings.deid.key_path()
    keyless_dry_run = given.dry_run and not path.exists()  # a plan needs ids, but must not leave a key behind
    if settings.deid.profile == "none":
        ids = Ids(None)
    else:
        ids = Ids(os.urandom(32) if keyless_dry_run else deid.load_key(path, create=not given.dry_run))

    from medspark.lake import card, ingest, logs, session
    from medspark.lake.store import Lake

    request = ingest.Request(
        tuple(given.input), given.dataset, subjects, given.subject_pattern, given.subject_domain, given.retry_rejected, given.dry_run
    )
    logs.configure("", given.log_level)
    if not given.dry_run:
        check_writable(given.lake)
    if not keyless_dry_run:
        card.check_key(given.lake, ids, create=False)
    spark = session.build(f"medspark {kind.job}", settings.spark)
    session.warm_workers(spark)
    lake = Lake(spark, given.lake)
    run = ingest.Ingest(lake, kind, ids, settings, request, progress=logs.Progress(kind.job))
    logs.configure(run.run_id, given.log_level)
    run.summary.stages["start"] = time.monotonic() - STARTED
    summary = watch.Watch(run, once).run() if watched else run.run()
    summary.seconds = time.monotonic() - STARTED
    if not given.dry_run:
        ingest.record_kpi(lake, summary, getattr(given, "annotation_minutes", None))
    said = summary.json()
    spark.stop()
    too_many = summary.new_sources and summary.rejected_sources / summary.new_sources > settings.quarantine.max_fraction
    return said, QUARANTINED if too_many else UNAVAILABLE if summary.extra.get("unavailable") else DONE


def begin(job: str, given: argparse.Namespace, settings: Config, warm: bool = False) -> tuple[SparkSession, Summary]:
    """A job's session, and its summary, whose run id its log lines carry from now on.

    warm : starts the Python workers while the driver plans
    """
    from medspark.lake import ingest, logs, session

    logs.configure("", given.log_level)
    spark = session.build(f"medspark {job}", settings.spark)
    if warm:
        session.warm_workers(spark)
    summary = ingest.Summary(job, uuid.uuid4().hex[:16], given.lake)
    logs.configure(summary.run_id, given.log_level)
    return spark, summary


def begun(summary: Summary) -> None:
    """The job's own work begins here."""
    summary.stages["start"] = time.monotonic() - STARTED


def end(spark: SparkSession, lake: Lake, summary: Summary, dry: bool = False) -> dict[str, Any]:
    """Records what the job measured of itself, stops the session, and returns the summary line.

    A lake that can only be read keeps no row: jobs that only read it work all the same. ``dry``: nothing may be written
    """
    from medspark.errors import BadRequest
    from medspark.lake import ingest
    from medspark.lake.files import check_writable

    summary.versions, summary.seconds = dict(summary.versions) or dict(lake.versions), time.monotonic() - STARTED
    if not dry:
        with contextlib.suppress(BadRequest):
            check_writable(lake.uri)
            ingest.record_kpi(lake, summary)
    said = summary.json()
    spark.stop()
    return said


def read_subjects(path: str | None) -> dict[str, str]:
    """``--subjects``: a CSV with the columns ``file`` and ``subject``."""
    from medspark.errors import BadRequest
    from medspark.tables.options import read_csv

    if path is None:
        return {}
    if not os.path.exists(path):
        raise BadRequest(f"--subjects {path}: no such file")
    columns, rows = read_csv("--subjects", path)
    if not {"file", "subject"} <= set(columns):
        raise BadRequest(f"--subjects {path}: expected the columns file,subject, got {','.join(columns)}")
    return {row["file"]: row["subject"] for row in rows}
