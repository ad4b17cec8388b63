"""A lake of two patients for tests of upkeep, and upkeep run in the test's own session."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from medspark.labels.kind import labels_kind
from medspark.lake import maintain
from medspark.lake.store import Lake
from medspark.track.forget import TrackedRuns
from tests.lake import harness
from tests.lake.annotated import annotated_series
from tests.phantoms import series as phantoms

JONES, SMITH = "P1", "P2"


def write_patients(where: Path) -> tuple[Path, Path, Path]:
    """(folder of Jones, three slices; his SEG; folder of Smith, two slices)."""
    jones, seg = annotated_series(where / "jones")
    smith = phantoms.write_series(
        where / "smith" / "ct",
        [0, 3],
        PatientID=SMITH,
        PatientName="Smith^Ann",
        StudyInstanceUID=phantoms.ROOT + "33",
        SeriesInstanceUID=phantoms.ROOT + "22",
        FrameOfReferenceUID=phantoms.ROOT + "44",
        SOPInstanceUID=("8.1", "8.2"),
    )
    return jones, seg, smith


def two_patients(spark: Any, where: Path) -> tuple[Path, tuple[Path, Path, Path]]:
    """(lake, what `write_patients` wrote): both patients in one batch, so in one payload file; then the annotation."""
    folders = write_patients(where / "in")
    lake = where / "lake"
    harness.run(spark, lake, [folders[0], folders[2]])
    harness.run(spark, lake, [folders[1]], labels_kind("auto", None, None, explicit_dataset=False))
    return lake, folders


def upkeep(spark: Any, lake: Path, lines: list[str] | None = None, **asked: Any) -> dict[str, Any]:
    """What `maintain_lake` says of one run; ``lines`` receives what it prints for people. Runs are looked for where the job looks for them."""
    request = maintain.Request(**asked)
    request.check()
    maintain.check_lake(Lake(None, str(lake)), request)  # type: ignore[arg-type]
    say = (lines if lines is not None else []).append
    run = maintain.Maintenance(Lake(spark, str(lake)), request, 60.0, say=say, key_path=lake.parent / "deid.key", tracked=TrackedRuns)
    return run.run().json()


def subject_of(lake: Path, slices: int) -> str:
    """The subject_key that has so many slices."""
    counts: dict[str, int] = {}
    for row in harness.rows(lake, "slices"):
        counts[row["subject_key"]] = counts.get(row["subject_key"], 0) + 1
    return next(key for key, count in counts.items() if count == slices)


def files(lake: Path, table: str) -> list[Path]:
    """Data files on the disk, current or not."""
    return sorted((lake / table).glob("*.parquet"))


def age(lake: Path, hours: float) -> None:
    """Makes every file look as old as that to a vacuum; what a log says of times stays."""
    for path in lake.rglob("*"):
        then = path.stat().st_mtime - hours * 3600
        os.utime(path, (then, then))


def flip(lake: Path, image_id: str) -> Path:
    """Flips one bit in the middle of an image's stored bytes; the file that holds them."""
    for path in map(Path, Lake(None, str(lake)).files("pixels")):  # type: ignore[arg-type]
        data = bytearray(path.read_bytes())
        for row in pq.read_table(io.BytesIO(bytes(data))).to_pylist():
            if row["image_id"] == image_id:
                at = data.find(row["bytes"])
                assert at > 0 and data.count(row["bytes"]) == 1
                data[at + len(row["bytes"]) // 2] ^= 1
                path.write_bytes(bytes(data))
                return path
    raise AssertionError(f"no file holds {image_id}")
