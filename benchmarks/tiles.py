"""Aligned tiles: explode and write, against the same Spark job through OpenSlide and against ``vips dzsave``. 200,000 tiles at full size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import peer, phantoms
from benchmarks.peer import Given, Ratio, Report

SIZES = {"small": (2, 60), "medium": (2, 120), "full": (4, 225)}  # slides, tiles along a side: 7,200, 28,800 and 202,500 tiles
PEER_SIDE = {
    "small": 40,
    "medium": 60,
    "full": 100,
}  # OpenSlide and vips run on one slide of 1,600 to 10,000 tiles; their rates do not depend on it
PEER_ROW_GROUP = 256  # tiles; row groups as ours


def bench(given: Given) -> Report:
    from medspark.config import Config, Tiling
    from medspark.slides.kind import slides_kind

    count, side = SIZES[given.size]
    files = phantoms.slides(given.work, count, side)
    small = phantoms.slide(given.work, PEER_SIDE[given.size], PEER_SIDE[given.size])
    n_tiles, n_small = count * side * side, PEER_SIDE[given.size] ** 2
    settings = Config(tiling=Tiling(min_tissue=0.0))  # every tile is stored: the peers know no tissue

    with peer.session(given.work) as spark:
        peer.ingest(
            spark, peer.fresh(given.work, "warm"), [phantoms.slide(given.work, 8, 8)], slides_kind(), settings
        )  # both sides are warm
        openslide_job(spark, phantoms.slide(given.work, 8, 8), 256, (256, 256), peer.fresh(given.work, "warm"))

        def ours() -> dict[str, float]:
            summary = peer.ingest(spark, peer.fresh(given.work, "tiles"), files, slides_kind(), settings)
            assert summary.written["pixels"] == n_tiles, summary.written
            return {**summary.stages, "total": summary.seconds}

        def openslide() -> float:
            return openslide_job(spark, small, 256, (256, 256), peer.fresh(given.work, "openslide"))

        sides: dict[str, Callable[[], Any]] = {"medspark": ours, "OpenSlide": openslide}
        sides["vips dzsave"] = lambda: dzsave(small, peer.fresh(given.work, "dzsave"))
        results = peer.alternate(sides, given.repeat)
    report = Report(f"Aligned tiles: {n_tiles:,} tiles of 256 px in {count} slides, local[{peer.CORES}]")
    written = [stages["explode"] + stages["commit"] for stages in results["medspark"]]
    best = n_tiles / min(written)
    for name, target in (("OpenSlide", 20.0), ("vips dzsave", 15.0)):
        rate = n_small / min(results[name])
        note = f"ours {peer.best_and_median(written)}; {name} on {n_small:,} tiles, as a rate: {peer.best_and_median(results[name])}"
        report.ratios.append(Ratio(f"explode and write, against {name}", best, rate, "tiles/s", best / rate, target, note=note))
    whole = n_tiles / min(stages["total"] for stages in results["medspark"])
    rate = n_small / min(results["OpenSlide"])
    report.ratios.append(Ratio("whole run (scan to commit), against OpenSlide", whole, rate, "tiles/s", whole / rate, None))
    stages = {name: statistics.median(run[name] for run in results["medspark"]) for name in results["medspark"][0]}
    report.remarks.append("median seconds of our stages: " + ", ".join(f"{name} {value:.2f}" for name, value in stages.items() if value))
    report.remarks.append(
        "the session is started and warmed before; OpenSlide's tiles are written by the tasks as ours are, and not committed"
    )
    return report


def openslide_job(spark: Any, path: Path, tile_px: int, read_px: tuple[int, int], out: Path) -> float:
    """Seconds of a Spark job that reads every tile with OpenSlide, encodes it (quality 80) and writes Parquet in its tasks.

    tile_px : of the stored tile;  read_px : (width, height) at level 0 that become it, resized where they differ
    """
    import openslide

    out.mkdir(parents=True, exist_ok=True)
    width, height = openslide.OpenSlide(str(path)).dimensions
    rows = list(range(-(-height // read_px[1])))
    cols = -(-width // read_px[0])

    def task(part: int, mine: Iterable[int]) -> Iterator[int]:
        yield read_and_write(str(path), mine, cols, tile_px, read_px, out / f"part-{part}.parquet")

    started = time.monotonic()
    done = spark.sparkContext.parallelize(rows, min(len(rows), 3 * peer.CORES)).mapPartitionsWithIndex(task).sum()
    seconds = time.monotonic() - started
    assert done == len(rows) * cols
    return seconds


def read_and_write(path: str, rows: Iterable[int], cols: int, tile_px: int, read_px: tuple[int, int], out: Path) -> int:
    """A task of the peer's job."""
    import numpy as np
    import openslide
    import pyarrow as pa
    import pyarrow.parquet as pq
    import simplejpeg
    from PIL import Image

    names = ["tile_row", "tile_col", "x_l0", "y_l0"]
    schema = pa.schema([("image_id", pa.string()), *((name, pa.int32()) for name in names), ("bytes", pa.binary())])
    slide = openslide.OpenSlide(path)
    records: list[tuple[Any, ...]] = []
    count = 0
    with pq.ParquetWriter(out, schema, compression={"bytes": "none", "image_id": "zstd"}, use_dictionary=False) as writer:

        def flush() -> None:
            columns = [pa.array(values, field.type) for values, field in zip(zip(*records, strict=True), schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            records.clear()

        for row in rows:
            for col in range(cols):
                x, y = col * read_px[0], row * read_px[1]
                region = slide.read_region((x, y), 0, read_px).convert("RGB")
                if read_px != (tile_px, tile_px):
                    region = region.resize((tile_px, tile_px), Image.Resampling.BOX)
                records.append((f"{path}:{row}:{col}", row, col, x, y, simplejpeg.encode_jpeg(np.asarray(region), 80, "RGB", "420")))
                count += 1
                if len(records) == PEER_ROW_GROUP:
                    flush()
        if records:
            flush()
    return count


def dzsave(path: Path, out: Path) -> float:
    """Seconds of ``vips dzsave`` to a zip: one level of 256 px tiles, JPEG quality 80, on as many threads as we have cores."""
    import pyvips

    pyvips.concurrency_set(peer.CORES) if hasattr(pyvips, "concurrency_set") else None
    out.mkdir(parents=True, exist_ok=True)
    load = pyvips.Image.openslideload if pyvips.type_find("VipsOperation", "openslideload") else pyvips.Image.tiffload
    started = time.monotonic()
    image = load(str(path), access="sequential")
    image.dzsave(str(out / "tiles.zip"), container="zip", tile_size=256, overlap=0, depth="one", suffix=".jpg[Q=80]")
    return time.monotonic() - started


def profile(given: Given) -> None:
    from medspark.config import Config, Tiling
    from medspark.slides.kind import slides_kind

    side = 60 if given.size == "small" else 150
    peer.profile_explode(slides_kind(), [phantoms.slide(given.work, side, side)], Config(tiling=Tiling(min_tissue=0.0)), given.work, "tile")


if __name__ == "__main__":
    peer.main("tiles", peer.options("tiles", __doc__, 3), bench, profile)
