"""The only place that builds a Spark session, and that asks Spark what it is."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Mapping

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from medspark.errors import BadRequest

DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
DEFAULTS = {  # conf/spark-defaults.conf says the same to spark-submit; these hold where a session is built from plain Python
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.shuffle.partitions": "4",
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.ui.showConsoleProgress": "false",
}

DAEMON = "medspark.lake.daemon"  # what Python workers are forked from


def build(app: str, options: Mapping[str, str] | None = None, ui: bool = False, once: bool = False) -> SparkSession:
    """The session of a job: Delta's catalogue, UTC, quiet; a master from spark-submit or ``local[*,4]`` (a task is tried four times).

    once : the first task that fails fails its job (ranks of a training run: one alone cannot be started again)
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else tasks start another Python than the driver's
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "mimalloc")  # Arrow 14's default allocator collapses on big blobs
    builder = SparkSession.builder.appName(app)
    submitted = "SPARK_ENV_LOADED" in os.environ or "PYSPARK_GATEWAY_PORT" in os.environ
    master: str | None = None
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        SparkContext._ensure_initialized()  # what spark-submit was told is known to its JVM only
        master = SparkConf().get("spark.master")
    if not submitted:
        master = os.environ.get("MEDSPARK_MASTER", "local[*,4]")
        builder = builder.master(master)
        builder = builder.config("spark.ui.enabled", str(ui).lower())
        for key, value in DEFAULTS.items():
            builder = builder.config(key, value)
    elif dict(options or {}).get("spark.authenticate") == "true":
        _check_secret()
    if once:
        builder = builder.config("spark.task.maxFailures", "1")
        if (local := re.fullmatch(r"local(?:\[([^,\]]+)(?:,[^\]]*)?\])?", master or "")) is not None:
            builder = builder.master(f"local[{local[1] or 1},1]")
    if (master or "").startswith("local"):  # on other machines medspark may come with the job, too late for this process
        builder = builder.config("spark.python.daemon.module", DAEMON)
    for key, value in {**DELTA, "spark.executorEnv.ARROW_DEFAULT_MEMORY_POOL": "mimalloc", **dict(options or {})}.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel(os.environ.get("MEDSPARK_SPARK_LOG", "ERROR"))
    try:
        spark._jvm.java.lang.Class.forName(DELTA["spark.sql.extensions"])
    except Exception:
        raise BadRequest("Delta's jars are not on Spark's class path; `make setup` puts them there") from None
    return spark


def _check_secret() -> None:
    """A standalone cluster that is asked to authenticate needs a secret from outside; `BadRequest` where there is none."""
    SparkContext._ensure_initialized()  # under spark-submit its JVM is there already, with all that the command line said
    given = SparkConf()
    if (given.get("spark.master") or "").startswith("spark://") and not given.get("spark.authenticate.secret"):
        raise BadRequest(
            "spark.authenticate on a standalone cluster needs a secret that master, workers and job share: "
            "give --properties-file secret.conf --load-spark-defaults (docs/clusters.md), or --set spark.authenticate=false"
        )


def warm_workers(spark: SparkSession) -> None:
    """Starts the process that Python workers are forked from, on a thread of its own: it imports its libraries while the driver looks at the lake."""
    if not (spark.sparkContext.master or "").startswith("local"):
        return
    one = spark.sparkContext.parallelize([0], 1)

    def work() -> None:
        with contextlib.suppress(Exception):  # a job that ends first takes the session along; all else the real tasks will say
            one.map(abs).collect()

    threading.Thread(target=work, daemon=True, name="warm-workers").start()


def cores(spark: SparkSession) -> int:
    """How many tasks run at once."""
    return max(1, spark.sparkContext.defaultParallelism)
