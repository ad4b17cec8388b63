"""Tiles that the file does not hold (another size, another resolution): our reader against the same Spark job through OpenSlide."""

from __future__ import annotations

import time
from typing import Any

from benchmarks import peer, phantoms
from benchmarks.peer import Given, Ratio, Report
from benchmarks.tiles import openslide_job, read_and_write

SIDES = {"small": 30, "medium": 90, "full": 225}  # stored tiles along a side of the slide
PEER_SIDE = {"small": 20, "medium": 40, "full": 60}  # OpenSlide's rate does not depend on it, and it commits nothing
TARGET = 3.0


def grids() -> dict[str, tuple[Any, int, int]]:
    """name -> (tiling, size of the new tile, pixels of level 0 along its side)."""
    from medspark.config import Tiling

    half = phantoms.MPP_UM * 2
    return {
        "tiles of 224 px at level 0": (Tiling(min_tissue=0.0, tile_px=224), 224, 224),
        f"tiles of 256 px at {half:g} µm/px (level 0 halved)": (Tiling(min_tissue=0.0, mpp_um=half), 256, 512),
    }


def bench(given: Given) -> Report:
    from medspark.config import Config
    from medspark.slides.kind import slides_kind

    side, peer_side = SIDES[given.size], PEER_SIDE[given.size]
    path, small, tiny = (phantoms.slide(given.work, tiles, tiles) for tiles in (side, peer_side, 8))
    report = Report(f"Re-encoded tiles: a slide of {side * 256:,} x {side * 256:,} px, local[{peer.CORES}]")
    with peer.session(given.work) as spark:
        for name, (tiling, tile_px, read_px) in grids().items():
            settings = Config(tiling=tiling)
            count, peer_count = ((-(-tiles * 256 // read_px)) ** 2 for tiles in (side, peer_side))
            peer.ingest(spark, peer.fresh(given.work, "warm"), [tiny], slides_kind(), settings)
            openslide_job(spark, tiny, tile_px, (read_px, read_px), peer.fresh(given.work, "warm"))

            def ours(settings: Config = settings, count: int = count) -> tuple[float, float]:
                summary = peer.ingest(spark, peer.fresh(given.work, "reencoded"), [path], slides_kind(), settings)
                assert summary.written["pixels"] == count, summary.written
                return summary.stages["explode"] + summary.stages["commit"], summary.seconds

            def theirs(tile_px: int = tile_px, read_px: int = read_px) -> float:
                return openslide_job(spark, small, tile_px, (read_px, read_px), peer.fresh(given.work, "openslide"))

            results = peer.alternate({f"medspark, {name}": ours, f"OpenSlide, {name}": theirs}, given.repeat)
            runs, other = results[f"medspark, {name}"], results[f"OpenSlide, {name}"]
            rate = peer_count / min(other)
            for what, place, target in ((f"{name}, explode and write", 0, TARGET), (f"{name}, scan to commit", 1, None)):
                seconds = [run[place] for run in runs]
                ours_rate = count / min(seconds)
                note = f"{count:,} tiles; ours {peer.best_and_median(seconds)}; OpenSlide on {peer_count:,} {peer.best_and_median(other)}"
                report.ratios.append(Ratio(what, ours_rate, rate, "tiles/s", ours_rate / rate, target, note=note))
    report.remarks.append("ours: stages explode and commit, decoding of every stored tile, resampling, encoding and measures included")
    return report


def profile(given: Given) -> None:
    from medspark.config import Config
    from medspark.slides.kind import slides_kind

    path, cols = phantoms.slide(given.work, 24, 24), 24 * 256
    for name, (tiling, tile_px, read_px) in grids().items():
        print(f"== {name}")
        peer.profile_explode(slides_kind(), [path], Config(tiling=tiling), given.work, "tile")
        best = float("inf")
        for _ in range(3):
            out = peer.fresh(given.work, "openslide")
            out.mkdir(parents=True)
            started = time.process_time()
            count = read_and_write(str(path), range(3), -(-cols // read_px), tile_px, (read_px, read_px), out / "part.parquet")
            best = min(best, time.process_time() - started)
        print(f"the same tiles by a task of the peer's: {1e6 * best / count:.0f} µs CPU per tile\n")


if __name__ == "__main__":
    peer.main("reencoded", peer.options("reencoded", __doc__, 3), bench, profile)
