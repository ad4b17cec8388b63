"""Clustering 3 million rows of ``slices`` that came in 150 batches: ``maintain_lake --cluster`` against Delta's ``OPTIMIZE``, and a look-up before and after."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import peer
from benchmarks.peer import Given, Ratio, Report
from medspark.lake.files import admitted_paths
from medspark.lake.store import Lake
from medspark.lake.upkeep import layout
from medspark.tables.catalog import SLICES

ROWS = {"small": 60_000, "medium": 600_000, "full": 3_000_000}
BATCHES = {"small": 6, "medium": 30, "full": 150}
SERIES_SLICES = 126  # the mean of a large public CT collection
LOOK_UPS = 20


def bench(given: Given) -> Report:
    rows, batches = ROWS[given.size], BATCHES[given.size]
    ours, theirs = peer.fresh(given.work, "layout-ours"), peer.fresh(given.work, "layout-optimize")
    report = Report(f"Clustering {rows:,} rows of slices from {batches} batches, local[{peer.CORES}]")
    with peer.session(given.work) as spark:
        for key, value in {"maxFileSize": 64 << 20, "minFileSize": 32 << 20}.items():
            spark.conf.set(f"spark.databricks.delta.optimize.{key}", str(value))
        series = fill(spark, ours, rows, batches)
        shutil.copytree(ours, theirs)
        wanted = random.Random(7).sample(series, LOOK_UPS)
        before = look_up(spark, ours, wanted)
        own_s = timed(lambda: layout.lay_out(Lake(spark, str(ours)), True, "bench"))
        optimize_s = timed(lambda: spark.sql(f"OPTIMIZE delta.`{theirs / 'slices'}`").collect())
        again_s = timed(lambda: layout.lay_out(Lake(spark, str(ours)), True, "bench"))
        after, peers = look_up(spark, ours, wanted), look_up(spark, theirs, wanted)
        count = Lake(spark, str(ours)).frame("slices").count()
        assert count == rows, f"{count} rows of {rows}"
    report.ratios += [
        Ratio("seconds to cluster", own_s, optimize_s, "s", own_s / optimize_s, None),
        Ratio("files", after["files"], peers["files"], "", after["files"] / peers["files"], None),
        Ratio("mean size of a file", after["mb"], peers["mb"], "MB", after["mb"] / peers["mb"], None),
        Ratio("files that a series' look-up opens", after["opened"], peers["opened"], "", after["opened"] / peers["opened"], None),
        Ratio("look-up of a series, Arrow", after["arrow_ms"], peers["arrow_ms"], "ms", after["arrow_ms"] / peers["arrow_ms"], None),
        Ratio("look-up of a series, Spark", after["spark_ms"], peers["spark_ms"], "ms", after["spark_ms"] / peers["spark_ms"], None),
        Ratio("look-up before, over ours after", before["arrow_ms"], after["arrow_ms"], "ms", before["arrow_ms"] / after["arrow_ms"], None),
    ]
    report.remarks.append(f"before: {before['files']} files of {before['mb']:.1f} MB, a look-up opens {before['opened']:.1f}")
    report.remarks.append(f"a second run of ours finds nothing to do in {again_s:.2f} s")
    return report


def timed(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def look_up(spark: Any, where: Path, wanted: list[str]) -> dict[str, float]:
    """Files, their mean size, files opened and milliseconds of a series' look-up (medians)."""
    lake = Lake(spark, str(where))
    actions = lake.actions("slices")
    opened, arrow_ms, spark_ms = [], [], []
    for series in wanted:
        started = time.monotonic()
        paths = admitted_paths(actions, "series_id", [series])
        found = lake.read("slices", ["image_id", "k", "rows", "value_mean", "header_json"], pc.field("series_id") == series, paths)
        arrow_ms.append(1e3 * (time.monotonic() - started))
        opened.append(len(paths))
        assert found.num_rows
    for series in wanted[:5]:
        started = time.monotonic()
        lake.frame("slices").where(f"series_id = '{series}'").select("image_id", "k", "header_json").collect()
        spark_ms.append(1e3 * (time.monotonic() - started))
    return {
        "files": len(actions),
        "mb": sum(action["size_bytes"] for action in actions) / len(actions) / 1e6,
        "opened": statistics.mean(opened),
        "arrow_ms": statistics.median(arrow_ms),
        "spark_ms": statistics.median(spark_ms),
    }


def fill(spark: Any, where: Path, rows: int, batches: int) -> list[str]:
    """A table of slices as ingest leaves it: each batch sorted within, series at random between batches. Returns the series' ids."""
    lake, chance, every = Lake(spark, str(where)), np.random.default_rng(7), []
    lake.ensure(["slices"])
    for number in range(batches):
        table, series = batch_rows(chance, rows // batches, f"{number:032x}")
        file = lake.write_file("slices", table.sort_by([("series_id", "ascending"), ("k", "ascending")]), f"part-{number:032x}-0.parquet")
        lake.transact("slices", [file] if file else [])
        every += series
    return every


def batch_rows(chance: np.random.Generator, rows: int, batch_id: str) -> tuple[pa.Table, list[str]]:
    """Rows with real ids, places and headers of about 600 bytes; every other column filled by its type."""
    count = -(-rows // SERIES_SLICES)
    series = [chance.bytes(16).hex() for _ in range(count)]
    whose = np.repeat(np.arange(count), SERIES_SLICES)[:rows]
    k = np.tile(np.arange(SERIES_SLICES), count)[:rows]
    tail = chance.bytes(8 * rows).hex()
    given = {
        "series_id": [series[one] for one in whose],
        "image_id": [series[one][:16] + tail[16 * place : 16 * place + 16] for place, one in enumerate(whose)],
        "k": k,
        "t": np.zeros(rows, int),
        "source_id": [tail[16 * place : 16 * place + 16] * 2 for place in range(rows)],
        "subject_key": [series[one // 3 * 3][::-1] for one in whose],
        "batch_id": [batch_id] * rows,
        "header_json": [
            f'{{"00080060":{{"vr":"CS","Value":["CT"]}},"00200032":{{"vr":"DS","Value":[-250,-250,{place * 1.25}]}},"x":"{tail[16 * place : 16 * place + 16]}"'
            + ',"00281050":{"vr":"DS","Value":[40]}' * 12
            + "}"
            for place in range(rows)
        ],
    }
    arrays = []
    for field in SLICES.arrow():
        if field.name in given:
            arrays.append(pa.array(given[field.name], field.type))
        elif field.nullable:
            arrays.append(pa.nulls(rows, field.type))
        elif pa.types.is_floating(field.type):
            arrays.append(pa.array(chance.normal(0, 300, rows), field.type))
        elif pa.types.is_integer(field.type):
            arrays.append(pa.array(np.full(rows, 512), field.type))
        elif pa.types.is_boolean(field.type):
            arrays.append(pa.array(np.ones(rows, bool)))
        elif pa.types.is_list(field.type):
            arrays.append(pa.array([["ORIGINAL", "PRIMARY", "AXIAL"]] * rows, field.type))
        elif field.name == "pixel_hash":
            arrays.append(pa.array([tail[16 * place : 16 * place + 16][::-1] * 2 for place in range(rows)]))
        else:
            arrays.append(pa.array([field.name] * rows, field.type))
    return pa.Table.from_arrays(arrays, schema=SLICES.arrow()), series


if __name__ == "__main__":
    peer.main("layout", peer.options("layout", __doc__, 1), bench)
