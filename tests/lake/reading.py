"""A lake with known truth for reading: even, uneven, tilted, doubled, dark series, two readers, a slide; its path has a space and an ü."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from pydicom.sr.codedict import codes

from medspark import config
from medspark.labels.kind import labels_kind
from medspark.slides.kind import slides_kind
from tests.lake import harness
from tests.lake.test_labels import geojson
from tests.phantoms import series as phantoms
from tests.phantoms import slides_work

ROWS, COLS = 16, 20
SPACING_MM = (0.5, 0.75)  # between rows, between columns
ORIGIN_MM = (-10.0, -20.0)
SERIES = {"even": 1, "uneven": 2, "tilted": 3, "doubled": 4, "dark": 5}
"""Name of a series -> its number, which is its SeriesNumber in the lake."""
EVEN_MM = tuple(2.0 * place for place in range(12))
UNEVEN_MM = (0.0, 2.0, 4.0, 8.0, 10.0, 12.0, 14.0)
TILT_DEG = 15.0
AGREED = {"Anna^A": 0, "Boris^B": 1}
"""Readers -> columns by which the second one's first nodule is shifted."""
FIRST, SECOND = (slice(3, 6), slice(4, 8), slice(4, 8)), (slice(8, 10), slice(9, 12), slice(10, 15))
"""Two nodules: slices, rows, columns."""


@dataclass(frozen=True)
class Built:
    """uri : the lake;  series : name -> series_id;  expected Dice of the two nodules, in the order of their volumes"""

    uri: Path
    series: dict[str, str]
    dice: tuple[float, float]


def field(points_mm: np.ndarray) -> np.ndarray:
    """HU at (..., 3) LPS mm: linear, so that linear interpolation gives it exactly."""
    return points_mm @ np.array([4.0, 8.0, 16.0]) + 100.0


def origins(positions_mm: Sequence[float]) -> np.ndarray:
    return np.array([[*ORIGIN_MM, z] for z in positions_mm])


def values(origin_mm: np.ndarray, orientation: Sequence[float]) -> np.ndarray:
    """`field` at the pixels of one slice."""
    row, col = np.mgrid[:ROWS, :COLS]
    along = np.array(orientation[:3]) * SPACING_MM[1], np.array(orientation[3:]) * SPACING_MM[0]
    return field(origin_mm + col[..., None] * along[0] + row[..., None] * along[1])


def write(folder: Path, name: str, positions_mm: Sequence[float], tilt_deg: float = 0.0, **attributes: Any) -> Path:
    number, orientation = SERIES[name], phantoms.tilted(tilt_deg)
    # Stored values are sixteenths: the field is kept to 1/32 HU.
    pixels = tuple(np.rint(16 * values(origin, orientation)) for origin in origins(positions_mm))
    return phantoms.write_series(
        folder,
        positions_mm,
        tilt_deg,
        **{
            "SOPInstanceUID": tuple(f"{phantoms.ROOT}{number}.7.{place}" for place in range(len(positions_mm))),
            "SeriesInstanceUID": f"{phantoms.ROOT}{number}.2",
            "FrameOfReferenceUID": f"{phantoms.ROOT}{number}.4",
            "SeriesNumber": number,
            "Rows": ROWS,
            "Columns": COLS,
            "pixels": pixels,
            "RescaleSlope": 1 / 16,
            "RescaleIntercept": 0,
            "PixelSpacing": list(SPACING_MM),
            **phantoms.FOR_HIGHDICOM,
            **attributes,
        },
    )


def segmentation(folder: Path, path: Path, reader: str, shift: int, number: int) -> Path:
    """One reader's two nodules on the even series; both readers give each nodule the same tracking UID."""
    images = sorted((pydicom.dcmread(file) for file in folder.iterdir()), key=lambda ds: ds.ImagePositionPatient[2])
    masks = np.zeros((len(images), ROWS, COLS, 2), np.uint8)
    slices, rows, cols = FIRST
    masks[slices, rows, cols.start + shift : cols.stop + shift, 0] = 1
    masks[(*SECOND, 1)] = 1
    segments = [
        SegmentDescription(
            place,
            "Nodule",
            codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.Nodule,
            SegmentAlgorithmTypeValues.MANUAL,
            tracking_uid=f"{phantoms.ROOT}90.{place}",
            tracking_id=f"nodule {place}",
        )
        for place in (1, 2)
    ]
    seg = highdicom.seg.Segmentation(
        images,
        masks,
        SegmentationTypeValues.BINARY,
        segments,
        f"{phantoms.ROOT}77.{number}",
        9,
        f"{phantoms.ROOT}77.{number}.1",
        1,
        "ACME",
        "m",
        "1",
        "1",
        content_creator_name=reader,
    )
    seg.save_as(path)
    return path


def build(spark: Any, where: Path) -> Built:
    """Writes the inputs and ingests them."""
    lake, inputs = where / "a lake ü", where / "in"
    inputs.mkdir(parents=True)
    folders = [
        write(inputs / "even", "even", EVEN_MM),
        write(inputs / "uneven", "uneven", UNEVEN_MM),
        write(inputs / "tilted", "tilted", EVEN_MM, TILT_DEG),
        write(inputs / "doubled", "doubled", (0.0, 2.0, 2.0, 4.0)),
        write(
            inputs / "dark",
            "dark",
            (0.0,),
            PhotometricInterpretation="MONOCHROME1",
            Modality="MR",
            SOPClassUID=phantoms.MR,
            WindowCenter=0,
            WindowWidth=400,
        ),
    ]
    segs = [
        segmentation(folders[0], inputs / f"seg{number}.dcm", reader, shift, number)
        for number, (reader, shift) in enumerate(AGREED.items())
    ]
    image, _ = slides_work.stained(700, 500, [(50, 60, 400, 380)])
    slide = slides_work.write_svs(inputs / "slide-a.svs", [image], tile_px=128)
    harness.run(spark, lake, folders)
    harness.run(spark, lake, segs, labels_kind("auto", None, None, explicit_dataset=False))
    harness.run(spark, lake, [slide], slides_kind(), config.load(None, ["tiling.min_tissue=0"]))
    harness.run(spark, lake, [geojson(inputs / "slide-a.geojson")], labels_kind("auto", None, None, explicit_dataset=False))
    numbers = {number: name for name, number in SERIES.items()}
    series = {numbers[row["series_number"]]: row["series_id"] for row in harness.rows(lake, "series")}
    return Built(lake, series, (0.75, 1.0))
