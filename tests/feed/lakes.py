"""A lake with known truth for feeds: CT of five patients with nodules, photos of six with outlines and classes, a slide; and feeds read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from PIL import Image
from pydicom.sr.codedict import codes

from medspark import config
from medspark.feed import build, cohort
from medspark.feed.card import Card, parse
from medspark.feed.request import Request
from medspark.feed.rows import unpack_masks
from medspark.labels.kind import labels_kind
from medspark.lake import ingest, splits, sql
from medspark.lake.store import Lake
from medspark.photos.kind import photos_kind
from medspark.pixels import decode
from medspark.slides.kind import slides_kind
from tests.lake import harness
from tests.phantoms import photos as phantom
from tests.phantoms import series as phantoms
from tests.phantoms import slides_work

PATIENTS, SLICES, ROWS, COLS = 5, 8, 20, 24
NODULE = (slice(2, 5), slice(4, 10), slice(6, 15))
"""Slices, rows, columns."""
PHOTO, OUTLINED = (24, 30), 8
"""Rows and columns; how many of the photos have an outline."""
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def stored(patient: int, k: int) -> np.ndarray:
    """(ROWS, COLS) stored values that tell patient, slice, row and column."""
    row, col = np.mgrid[:ROWS, :COLS]
    return 500 + 200 * patient + 20 * k + row + col // 4


def ct(folder: Path, patient: int) -> tuple[Path, Path]:
    """(series, SEG) of one patient."""
    attributes: dict[str, Any] = {
        "PatientID": f"P{patient}",
        "StudyInstanceUID": f"{phantoms.ROOT}{patient}.3",
        "SeriesInstanceUID": f"{phantoms.ROOT}{patient}.2",
        "FrameOfReferenceUID": f"{phantoms.ROOT}{patient}.4",
        "SOPInstanceUID": tuple(f"{phantoms.ROOT}{patient}.7.{k}" for k in range(SLICES)),
        "Rows": ROWS,
        "Columns": COLS,
        "pixels": tuple(stored(patient, k) for k in range(SLICES)),
        **phantoms.FOR_HIGHDICOM,
    }
    series = phantoms.write_series(folder / f"ct{patient}", [2.0 * k for k in range(SLICES)], **attributes)
    images = sorted((pydicom.dcmread(file) for file in series.iterdir()), key=lambda ds: ds.ImagePositionPatient[2])
    mask = np.zeros((SLICES, ROWS, COLS), np.uint8)
    mask[NODULE] = 1
    kind, concept = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Nodule
    segment = SegmentDescription(1, "nodule", kind, concept, SegmentAlgorithmTypeValues.MANUAL, tracking_uid=None, tracking_id=None)
    seg = highdicom.seg.Segmentation(
        images,
        mask,
        SegmentationTypeValues.BINARY,
        [segment],
        f"{phantoms.ROOT}77.{patient}",
        9,
        f"{phantoms.ROOT}77.{patient}.1",
        1,
        "A",
        "m",
        "1",
        "1",
    )
    path = folder / f"seg{patient}.dcm"
    seg.save_as(path)
    return series, path


def photo(number: int) -> np.ndarray:
    return phantom.picture(*PHOTO, seed=number)


def disc(number: int) -> np.ndarray:
    """(rows, cols) bool, another one for each photo."""
    row, col = np.mgrid[: PHOTO[0], : PHOTO[1]]
    return (row - 10 - number % 3) ** 2 + (col - 14) ** 2 < 30


def fill(spark: Any, where: Path) -> Path:
    """The lake, with the split ``main`` over all subjects."""
    lake, inputs = where / "lake", where / "in"
    series = [ct(inputs, patient) for patient in range(PATIENTS)]
    truth = [seg for _, seg in series]
    subjects = {}
    for number in range(12):
        folder = inputs / "photos" / ("ill" if number % 3 == 0 else "well")
        folder.mkdir(parents=True, exist_ok=True)
        # The last two are the same picture of two people.
        (folder / f"photo{number}.png").write_bytes(phantom.png(photo(min(number, 10))))
        subjects[f"photo{number}.png"] = f"s{number // 2 if number < 10 else number}"
        if number < OUTLINED:
            truth.append(inputs / f"photo{number}_mask.png")
            Image.fromarray(disc(number).astype(np.uint8)).save(truth[-1])
    image, _ = slides_work.stained(512, 384, [(50, 60, 400, 380)])
    slide = slides_work.write_svs(inputs / "slide-a.svs", [image], tile_px=128)
    square = [[100.0, 100.0], [300.0, 100.0], [300.0, 250.0], [100.0, 250.0], [100.0, 100.0]]
    drawn = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"objectType": "annotation", "classification": {"name": "tumour"}},
    }
    truth.append(inputs / "slide-a.geojson")
    truth[-1].write_text(json.dumps({"type": "FeatureCollection", "features": [drawn]}))
    harness.run(spark, lake, [folder for folder, _ in series])
    harness.run(spark, lake, [inputs / "photos"], photos_kind("folder"), subjects=subjects)
    harness.run(spark, lake, [slide], slides_kind(), config.load(None, ["tiling.tile_px=native", "tiling.min_tissue=0"]))
    harness.run(spark, lake, truth, labels_kind("auto", None, None, explicit_dataset=False))
    opened = sql.opened(spark, str(lake))
    opened.ensure(["splits"])
    splits.assign_splits(opened, splits.Request("main", 3, SHARES), "split")
    splits.assign_splits(opened, splits.Request("by_image", 3, {"train": 0.5, "test": 0.5}, unit="image"), "split")
    return lake


def feed(spark: Any, lake: Path, **asked: Any) -> build.Outcome:
    """One build in this session."""
    request = Request(**{"name": "f", "split": "main", **asked})
    request.check()
    opened, tables = cohort.opened(spark, str(lake), request)
    summary = ingest.Summary("build_feed", "run", str(lake))
    return build.Build(opened, request, tables, "run", summary.timed).run()


def card_of(lake: Path, name: str = "f") -> Card:
    """From beside the files; the same is in the table's properties."""
    text = (lake / "feeds" / name / "card.json").read_text()
    snapshot = Lake(None, str(lake)).snapshot(f"feeds/{name}")  # type: ignore[arg-type]
    assert snapshot.metadata().configuration["medspark.card"] == text
    return parse(text)


def rows(lake: Path, name: str = "f") -> pa.Table:
    """All rows of the current version, in the order of the card's files."""
    card = card_of(lake, name)
    listed = [path.path for path in card.files]
    live = [action["relative"] for action in Lake(None, str(lake)).actions(f"feeds/{name}")]  # type: ignore[arg-type]
    assert sorted(listed) == sorted(live)
    for file in card.files:
        held = pq.ParquetFile(lake / "feeds" / name / file.path)
        assert tuple(held.metadata.row_group(group).num_rows for group in range(held.num_row_groups)) == file.row_groups
        assert set(held.read(columns=["part"]).column(0).to_pylist()) == {file.part}
    return pa.concat_tables(pq.read_table(lake / "feeds" / name / path) for path in listed)


def image(card: Card, row: dict[str, Any]) -> np.ndarray:
    return decode(row["image"], card.image.codec, card.image.dtype, card.image.shape)


def masks(card: Card, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return unpack_masks(row["mask"], len(card.labels), card.image.space)
