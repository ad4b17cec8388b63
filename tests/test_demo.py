"""The demo on its embedded inputs: answers, pictures, a second run that finds nothing new."""

from __future__ import annotations

import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from medspark.demo import derived, drawing, kind_pictures, phantom_ct, phantom_slide, phantom_xray, questions, run, samples
from medspark.errors import BadRequest
from medspark.lake import sql
from medspark.lake.open import open_lake
from medspark.pixels.picture import COLOURS
from tests.lake.harness import rows
from tests.real import shared_data


def test_embedded_inputs_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = samples.embedded(tmp_path / "a"), samples.embedded(tmp_path / "b")
    assert first.about == second.about
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 2 * len(first.series)
    differ = [str(file) for file in files if (tmp_path / "a" / file).read_bytes() != (tmp_path / "b" / file).read_bytes()]
    assert differ == []


def test_slide_is_the_real_picture(tmp_path: Path) -> None:
    import tifffile

    slide, _ = phantom_slide.write(tmp_path)
    with tifffile.TiffFile(slide) as file:
        assert file.is_svs
        level = file.pages[0].asarray()
    base = phantom_slide.picture()
    assert level.shape == base.shape == (phantom_slide.HEIGHT, phantom_slide.WIDTH, 3)
    assert np.abs(level.astype(int) - base).mean() < 4  # JPEG


def test_nodule_has_its_volume() -> None:
    _, masks = phantom_ct.volume()
    voxel_ml = phantom_ct.SPACING_MM**2 * phantom_ct.STEP_MM / 1000
    sphere_ml = 4 / 3 * math.pi * phantom_ct.NODULE_RADIUS_MM**3 / 1000
    assert masks["Nodule"].sum() * voxel_ml == pytest.approx(sphere_ml, rel=0.03)


def test_xray_is_dark_where_the_lungs_are_and_stores_the_dark_as_large() -> None:
    stored, mask = phantom_xray.projected()
    assert stored.shape == mask.shape == (phantom_xray.ROWS, phantom_ct.SIDE)
    row = phantom_xray.ROWS // 2
    lung, spine, air = (mask == phantom_xray.LUNG), stored[row, phantom_ct.SIDE // 2], stored[row, 0]
    assert spine < np.median(stored[lung]) < air == phantom_xray.FULL  # MONOCHROME1: the smallest value is white
    disc_px = math.pi * (phantom_ct.NODULE_RADIUS_MM / phantom_ct.SPACING_MM) ** 2
    assert (mask == phantom_xray.NODULE).sum() == pytest.approx(disc_px, rel=0.03)
    _, centre = np.argwhere(mask == phantom_xray.NODULE).mean(axis=0)
    assert centre == pytest.approx((phantom_ct.SIDE - 1) / 2 + phantom_ct.NODULE_MM[0] / phantom_ct.SPACING_MM, abs=0.5)


def test_thresholds_find_what_they_name(tmp_path: Path) -> None:
    photo, path = derived.retina(tmp_path)
    with Image.open(photo) as image:
        green = np.asarray(image)[..., 1].astype(float)
    mask = np.asarray(Image.open(path))
    field = green > 30
    assert green[mask == derived.VESSEL].mean() < green[field].mean() - 10 < green[field].mean() + 40 < green[mask == derived.DISC].mean()
    assert 0.05 < (mask == derived.VESSEL).sum() / field.sum() < 0.15  # vessels cover about a tenth of a fundus
    stored = np.full((200, 200), 300.0)
    stored[40:160, 30:80] = stored[40:160, 120:170] = 600  # two fields
    stored[:, 190:] = 900  # air beside the body reaches the border
    stored[70:130, 95:105] = 100
    fields = derived.field_mask(stored)
    assert (fields[45:155, 35:75] == derived.LUNG_FIELD).all() and (fields[45:155, 125:165] == derived.LUNG_FIELD).all()
    assert not fields[:, 180:].any() and (fields > 0).sum() == pytest.approx(2 * 120 * 50, rel=0.03)


def test_a_folder_without_the_demos_files_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="embedded"):
        samples.choose(str(tmp_path), tmp_path / "work")


def test_real_inputs_are_files_and_the_lungs_are_two(tmp_path: Path) -> None:
    from scipy.ndimage import label

    inputs = samples.choose(str(shared_data()), tmp_path)
    runs = (*inputs.slides, *inputs.series, *inputs.photos)
    assert all(path.exists() for _, paths in runs for path in paths) and all(path.is_file() for path in inputs.labels)
    assert {dataset for dataset, _ in runs} == {"cmu", "head-ct", "abdomen-ct", "chest-xray", "xray-phantom", "retina", "broken"}
    (path,) = (path for path in inputs.labels if path.parent.name == "derived")
    fields = np.asarray(Image.open(path))
    assert set(np.unique(fields)) == {0, derived.LUNG_FIELD} and label(fields)[1] == 2
    assert 0.3 < (fields > 0).mean() < 0.4
    assert f"{derived.LUNG_FIELD},lung by threshold,positive" in inputs.classes.read_text().splitlines()


def test_merged_adds_objects_of_one_label() -> None:
    upper, lower = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    upper[0], lower[0, :2], lower[1] = True, True, True
    common: dict[str, Any] = {"image_id": "i", "label": "l", "area_mm2": None, "value_mean": None}
    parts = [{**common, "mask": mask, "area_px": int(mask.sum()), "fraction": mask.mean()} for mask in (upper, lower)]
    (one,) = drawing.merged(parts)
    assert one["area_px"] == 8
    assert one["fraction"] == pytest.approx(0.5)


def test_saved_colours_are_the_nearest_of_the_palette() -> None:
    rng = np.random.default_rng(3)
    array, palette = rng.integers(0, 256, (40, 50, 3), np.uint8), rng.integers(0, 256, (100, 3), np.uint8)

    def distance(places: np.ndarray) -> np.ndarray:
        return np.linalg.norm(array.astype(float) - palette[places], axis=-1)

    every = np.linalg.norm(array[:, :, None].astype(float) - palette, axis=-1)
    cell = 2 * math.hypot(2.5, 2.5, 2.5)  # twice the way from a cell's corner to where its centre is taken
    assert (distance(drawing._nearest(array, palette)) <= every.min(axis=-1) + cell).all()


def test_measures_in_the_unit_that_can_be_read() -> None:
    row = {"label": "Liver", "fraction": 0.1384, "area_px": 36_233}
    texts = [kind_pictures._measures({**row, "area_mm2": area}) for area in (23_804.5, 12.0, 0.003029, None)]
    assert texts == [f"Liver: 13.8 %, {area}" for area in ("238.0 cm²", "12.0 mm²", "3,029 µm²", "36,233 px")]


@pytest.mark.spark
@pytest.mark.slow
def test_demo(spark: Any, demo_folder: Path) -> None:
    out, text = demo_folder, (demo_folder / "said.txt").read_text()
    assert all(f"[{step}/8]" in text for step in range(1, 9))
    assert "What to type next" in text
    lake = sql.register(spark, str(out / "lake"))
    opened = open_lake(str(out / "lake"))
    answers = [questions.ask(spark, question) for question in questions.QUESTIONS]
    assert all(answer.rows for answer in answers)
    assert all(answer.question.heading in text for answer in answers)

    held = {(row[0], row[1]) for row in answers[0].rows}
    assert held == {
        ("ct-phantom", "CT"),
        ("histology", "slide"),
        *(("pydicom", name) for name in ("CT", "MR")),
        ("retina", "photo"),
        ("xray-phantom", "CR"),
    }
    volumes = {row[1]: row[answers[3].columns.index("volume ml")] for row in answers[3].rows}
    sphere_ml = 4 / 3 * math.pi * phantom_ct.NODULE_RADIUS_MM**3 / 1000
    assert volumes["Nodule"] == pytest.approx(sphere_ml, rel=0.05)
    sizes = {row[2]: dict(zip(answers[4].columns, row, strict=True)) for row in answers[4].rows}
    assert set(sizes) == {"Lung", "Nodule", "vessel by threshold", "disc by threshold"}
    assert all(row["mm2"] is None for row in sizes.values()) and sizes["Lung"]["pixel size from"] == "ImagerPixelSpacing"
    assert sizes["Nodule"]["px"] == (phantom_xray.projected()[1] == phantom_xray.NODULE).sum()
    assert Counter(row["code"] for row in rows(out / "lake", "rejected")) == {"SLIDE_UNSUPPORTED": 1, "TRUNCATED": 1}
    listed = (out / "questions.sql").read_text()
    assert listed.count(";") >= len(questions.QUESTIONS)

    seen = {path.stem: np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (out / "pictures").glob("*.png")}
    assert set(seen) == {"kinds", "slide", "tiles", "series"}
    drawn = opened.sql(kind_pictures.CHOICE).to_pylist()
    assert [row["kind"] for row in drawn] == ["tile", "CT slice", "CT slice", "MR slice", "X-ray", "photo"]
    assert [row["dataset"] for row in drawn[1:3]] == ["ct-phantom", "pydicom"]  # the labelled one first
    assert drawn[1]["image_id"] in {row["image_id"] for row in opened.rows("labels", ["image_id"], label="Nodule").to_pylist()}
    assert [bool(row["col_mm"]) for row in drawn] == [True, True, True, True, False, False]  # the detector's pixels are not the patient's
    assert all(opened.image(row["image_id"]).shape[:2] == (row["rows"], row["cols"]) for row in drawn)
    assert kind_pictures.one_of_each(opened, ["nothing"]) is None
    for name, picture in seen.items():
        assert min(picture.shape[:2]) > 300, name
        assert 0.02 < (picture.max(axis=-1) < 250).mean() < 0.98, name  # neither empty nor black
        wanted = 60 if name == "slide" else 200  # the map tints its tiles, only its legend has the pure colours
        assert all(_of_colour(picture, colour) > wanted for colour in COLOURS[:2]), name
    brown = (seen["tiles"][..., 0] > seen["tiles"][..., 2] + 40).mean()
    assert brown > 0.1  # the stain of the stored tiles

    versions = {name: lake.snapshot(name).version() for name in ("slides", "tiles", "slices", "photos", "labels", "pixels", "rejected")}
    again = io.StringIO()
    assert run(str(out), data=samples.EMBEDDED, spark=spark, console=Console(file=again, width=140), train=False) == 0
    assert "in the lake already" in again.getvalue()
    assert {name: lake.snapshot(name).version() for name in versions} == versions


def _of_colour(picture: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return int((np.abs(picture - wanted).max(axis=-1) <= 2).sum())
