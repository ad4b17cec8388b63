"""Small tools: ``python -m medspark status|sql|rerun|mlflow|compare|thrift|beeline|describe-feed|doctor|demo``. Jobs are started with ``spark-submit jobs/<job>.py``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from medspark.errors import BadRequest

FAILED, BAD_REQUEST = 1, 2


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="medspark", description=__doc__)
    tools = parser.add_subparsers(dest="tool", required=True)
    status = tools.add_parser("status", help="tables, versions, open and stale batches, rejections of a lake")
    status.add_argument("--lake", required=True, metavar="URI")
    status.add_argument("--json", action="store_true", help="as one JSON object")
    sql = tools.add_parser("sql", help="one SQL query over a lake")
    sql.add_argument("--lake", required=True, metavar="URI")
    sql.add_argument("--rows", type=int, default=50, help="rows to show (50)")
    sql.add_argument("query")
    thrift = tools.add_parser("thrift", help="a lake over JDBC, on loopback, until Ctrl-C")
    thrift.add_argument("--lake", required=True, metavar="URI")
    thrift.add_argument("--port", type=int, help="port (10000, or a free one where that is taken; 0: a free one)")
    thrift.add_argument("--database", default="lake", metavar="NAME", help="database that the tables and views are in (lake)")
    beeline = tools.add_parser("beeline", help="Spark's JDBC shell on a lake; further options are beeline's own")
    beeline.add_argument("--lake", required=True, metavar="URI")
    demo = tools.add_parser("demo", help="slides, CT, X-rays and photos in, tables, answers and pictures out")
    describe = tools.add_parser("describe-feed", help="what a feed holds: its card, and a page with pictures and histograms")
    describe.add_argument("--lake", required=True, metavar="URI")
    describe.add_argument("--feed", required=True, metavar="NAME[@VERSION]")
    describe.add_argument("--out", metavar="FOLDER", help="folder for index.html and its pictures (feed-NAME; 'none': the card only)")
    demo.add_argument("--out", default="demo", metavar="FOLDER")
    demo.add_argument("--data", metavar="FOLDER|embedded", help="real files to use (../shared/data where it is there, else embedded ones)")
    rerun = tools.add_parser("rerun", help="repeats a training run from what it logged, and says what came out otherwise")
    rerun.add_argument("run_id", metavar="RUN_ID")
    rerun.add_argument("--lake", default="", metavar="URI", help="lake of the run (the one that the tracking store lies in)")
    rerun.add_argument("--tracking-uri", metavar="URI", help="store of the run (MLFLOW_TRACKING_URI, else mlflow.db in the lake)")
    rerun.add_argument("--json", action="store_true", help="as one JSON object")
    rerun.add_argument("more", nargs="*", metavar="OPTION", help="after --: further options for the job")
    pages = tools.add_parser("mlflow", help="MLflow's pages on a lake's runs, on loopback, until Ctrl-C")
    compare = tools.add_parser("compare", help="a page for each experiment: curves, results with intervals, pictures side by side")
    for tool in (pages, compare):
        tool.add_argument("--lake", required=True, metavar="URI")
        tool.add_argument("--tracking-uri", metavar="URI", help="store of the runs (MLFLOW_TRACKING_URI, else mlflow.db in the lake)")
    pages.add_argument("--port", type=int, help="port (5000, or a free one where that is taken)")
    compare.add_argument(
        "--out", default="comparisons", metavar="FOLDER", help="where the pages go (comparisons); they are artifacts of the runs, too"
    )
    tools.add_parser("doctor", help="what is in order on this machine and what is not", add_help=False)
    given, rest = parser.parse_known_args(argv)
    if rest and given.tool not in ("doctor", "beeline"):
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    try:
        return _run(given, rest)
    except BadRequest as error:
        print(f"medspark {given.tool}: {error}", file=sys.stderr)
        return BAD_REQUEST


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    if given.tool == "doctor":
        from medspark import doctor

        return doctor.main(rest)
    if given.tool == "status":
        from medspark.lake.status import render
        from medspark.lake.status import status as read

        found = read(given.lake)
        print(json.dumps(asdict(found)) if given.json else render(found))
        return 0
    if given.tool == "describe-feed":
        from pathlib import Path

        from medspark.feed import describe
        from medspark.feed.open import open_feed

        feed = open_feed(given.lake, given.feed)
        print(describe.as_text(feed))
        if given.out != "none":
            print(f"page: {describe.write_page(feed, Path(given.out or f'feed-{feed.name}'))}")
        return 0
    if given.tool == "sql":
        from medspark.lake import session
        from medspark.lake import sql as lake_sql

        spark = session.build("medspark sql")
        lake_sql.register(spark, given.lake)
        lake_sql.query(spark, given.query).show(given.rows, truncate=False)
        return 0
    if given.tool == "rerun":
        from medspark.track import rerun

        try:
            compared = rerun.rerun(given.run_id, given.lake, given.tracking_uri, given.more)
        except rerun.RerunFailed as error:
            print(f"medspark rerun: {error}", file=sys.stderr)
            return FAILED
        print(json.dumps(asdict(compared) | {"equal": compared.equal}) if given.json else rerun.render(compared))
        return 0
    if given.tool in ("mlflow", "compare"):
        from medspark.track import ui

        if given.tool == "compare":
            _, names = ui.refresh(given.lake, given.tracking_uri, given.out)
            print("\n".join(f"{given.out}/{ui.page.slug(name)}.html" for name in names) or "no runs yet")
            return 0
        return ui.serve(given.lake, given.tracking_uri, given.port, lambda url: print(f"{url}\nCtrl-C stops the server", flush=True))
    if given.tool in ("thrift", "beeline"):
        from medspark.lake import thrift

        if given.tool == "beeline":
            return thrift.beeline(given.lake, rest)
        thrift.serve(given.lake, given.port, given.database, lambda url: print(f"{url}\nCtrl-C stops the server", flush=True))
        return 0
    from medspark.demo import run

    return run(given.out, given.data)


if __name__ == "__main__":
    sys.exit(main())
