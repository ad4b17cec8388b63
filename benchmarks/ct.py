"""CT slices: scan to commit, against the same columns made by a pydicom script in a process pool on the same cores; bytes stored."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peer, phantoms
from benchmarks.peer import Given, Ratio, Report

SIZES = {"small": 300, "medium": 1500, "full": 5000}  # slices
CHUNK = 64  # files of one task of the peer's pool
GROUP = 8  # slices of a row group: 2 MB


def bench(given: Given) -> Report:
    from medspark.config import Config
    from medspark.lake.store import Lake
    from medspark.series.kind import series_kind

    count = SIZES[given.size]
    folder = phantoms.ct(given.work, count)
    stored: list[int] = []
    with peer.session(given.work) as spark, multiprocessing.get_context("spawn").Pool(peer.CORES) as pool:
        peer.ingest(spark, peer.fresh(given.work, "warm"), [phantoms.ct(given.work, 16)], series_kind(), Config())
        script(pool, phantoms.ct(given.work, 16), peer.fresh(given.work, "warm"))

        def ours() -> dict[str, float]:
            lake = peer.fresh(given.work, "ct")
            summary = peer.ingest(spark, lake, [folder], series_kind(), Config())
            assert summary.written["slices"] == summary.written["pixels"] == count, summary.written
            if not stored:
                stored.append(sum(Lake(spark, str(lake)).read("pixels", ["n_bytes"]).column(0).to_pylist()))
            return {**summary.stages, "total": summary.seconds}

        results = peer.alternate(
            {"medspark": ours, "pydicom": lambda: script(pool, folder, peer.fresh(given.work, "pydicom"))}, given.repeat
        )
    seconds, other = [run["total"] for run in results["medspark"]], results["pydicom"]
    report = Report(f"CT ingest: {count:,} slices of 512 x 512 int16, {peer.CORES} cores")
    note = f"whole run, scan to commit; ours {peer.best_and_median(seconds)}; the script {peer.best_and_median(other)}"
    report.ratios.append(
        Ratio("slices", count / min(seconds), count / min(other), "slices/s", min(other) / min(seconds), 1.0, stretch=1.5, note=note)
    )
    raw = count * 512 * 512 * 2
    report.ratios.append(Ratio("bytes stored", stored[0] / 1e6, raw / 1e6, "MB", stored[0] / raw, 0.40, at_least=False))
    best = min(results["medspark"], key=lambda run: run["total"])
    report.remarks.append("seconds of our stages (best run): " + ", ".join(f"{name} {value:.2f}" for name, value in best.items() if value))
    report.remarks.append(
        "ours also de-identifies headers, assembles series with their geometry and verdicts, hashes pixels, and can be killed at any time"
    )
    report.remarks.append("the session and the pool are started and warmed before")
    return report


def script(pool: Any, folder: Path, out: Path) -> float:
    """Seconds of what one writes in an afternoon: pydicom in a process pool, one Parquet file a chunk."""
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(map(str, folder.rglob("*.dcm")))
    done = sum(pool.imap_unordered(script_chunk, [(files[start : start + CHUNK], str(out)) for start in range(0, len(files), CHUNK)]))
    assert done == len(files)
    return time.monotonic() - started


def script_chunk(given: tuple[list[str], str]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files, out = given
    data = pa.Table.from_pylist([script_slice(path) for path in files])
    pq.write_table(
        data,
        f"{out}/{uuid.uuid4().hex}.parquet",
        row_group_size=GROUP,
        compression={name: "none" if name == "bytes" else "zstd" for name in _names(data)},
    )
    return len(files)


def _names(data: Any) -> list[str]:
    """Paths of the table's Parquet columns."""
    return [f"{field.name}.list.element" if str(field.type).startswith("list") else field.name for field in data.schema]


def script_slice(path: str) -> dict[str, Any]:
    """The row of one file."""
    import io

    import blosc2
    import pydicom

    data = Path(path).read_bytes()
    ds = pydicom.dcmread(io.BytesIO(data))
    array = ds.pixel_array
    values = array
    if "PixelPaddingValue" in ds:
        kept = array != ds.PixelPaddingValue
        values = array if kept.all() else array[kept]
    slope, intercept = float(ds.RescaleSlope), float(ds.RescaleIntercept)
    real = values.ravel().astype(np.float32)
    mean = float(real.mean(dtype=np.float64))
    std = float(np.sqrt(max(0.0, float(np.dot(real, real)) / max(1, real.size) - mean * mean)))
    del ds.PixelData
    return {
        "sop_instance_uid": str(ds.SOPInstanceUID),
        "series_instance_uid": str(ds.SeriesInstanceUID),
        "sha256": hashlib.sha256(data).hexdigest(),
        "rows": int(ds.Rows),
        "cols": int(ds.Columns),
        "position": [float(value) for value in ds.ImagePositionPatient],
        "orientation": [float(value) for value in ds.ImageOrientationPatient],
        "spacing": [float(value) for value in ds.PixelSpacing],
        "value_min": float(values.min()) * slope + intercept,
        "value_max": float(values.max()) * slope + intercept,
        "value_mean": mean * slope + intercept,
        "value_std": std * abs(slope),
        "header_json": json.dumps(ds.to_json_dict()),
        "bytes": bytes(blosc2.compress2(array, codec=blosc2.Codec.ZSTD, clevel=1, filters=[blosc2.Filter.SHUFFLE], typesize=2, nthreads=1)),
    }


def profile(given: Given) -> None:
    from medspark.config import Config
    from medspark.series.kind import series_kind

    files = sorted(phantoms.ct(given.work, 300).rglob("*.dcm"))
    started = time.process_time()
    for path in files[:100]:
        hashlib.sha256(path.read_bytes())
    print(f"SHA-256 of a file: {1e4 * (time.process_time() - started):.0f} µs CPU per slice")
    script_slice(str(files[0]))  # imports
    started = time.process_time()
    for path in files[:100]:
        script_slice(str(path))
    print(f"the pydicom script without Parquet: {1e4 * (time.process_time() - started):.0f} µs CPU per slice")
    peer.profile_explode(series_kind(), files, Config(), given.work, "slice", 40)


if __name__ == "__main__":
    peer.main("ct", peer.options("ct", __doc__, 3), bench, profile)
