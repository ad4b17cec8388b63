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

from medspark.demo import phantom_ct, phantom_slide, pictures, questions, run, samples
from medspark.errors import BadRequest
from medspark.lake import sql
from tests.lake.harness import rows


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


def test_a_folder_without_the_demos_files_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="embedded"):
        samples.choose(str(tmp_path), tmp_path / "work")


def test_merged_adds_objects_of_one_label() -> None:
    upper, lower = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    upper[0], lower[0, :2], lower[1] = True, True, True
    common: dict[str, Any] = {"image_id": "i", "label": "l", "area_mm2": None, "value_mean": None}
    parts = [{**common, "mask": mask, "area_px": int(mask.sum()), "fraction": mask.mean()} for mask in (upper, lower)]
    (one,) = pictures.merged(parts)
    assert one["area_px"] == 8
    assert one["fraction"] == pytest.approx(0.5)


@pytest.mark.spark
@pytest.mark.slow
def test_demo(spark: Any, tmp_path: Path) -> None:
    out, said = tmp_path / "demo", io.StringIO()
    assert run(str(out), data=samples.EMBEDDED, spark=spark, console=Console(file=said, width=140)) == 0
    text = said.getvalue()
    assert all(f"[{step}/7]" in text for step in range(1, 8))
    assert "What to type next" in text
    lake = sql.register(spark, str(out / "lake"))
    answers = [questions.ask(spark, question) for question in questions.QUESTIONS]
    assert all(answer.rows for answer in answers)
    assert all(answer.question.heading in text for answer in answers)

    held = {(row[0], row[1]) for row in answers[0].rows}
    assert held == {("ct-phantom", "CT"), ("histology", "slide"), ("pydicom", "CT"), ("pydicom", "MR")}
    volumes = {row[1]: row[answers[3].columns.index("volume ml")] for row in answers[3].rows}
    sphere_ml = 4 / 3 * math.pi * phantom_ct.NODULE_RADIUS_MM**3 / 1000
    assert volumes["Nodule"] == pytest.approx(sphere_ml, rel=0.05)
    assert Counter(row["code"] for row in rows(out / "lake", "rejected")) == {"SLIDE_UNSUPPORTED": 1, "TRUNCATED": 1}
    listed = (out / "questions.sql").read_text()
    assert listed.count(";") >= len(questions.QUESTIONS)

    seen = {path.stem: np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (out / "pictures").glob("*.png")}
    assert set(seen) == {"slide", "tiles", "series"}
    for name, picture in seen.items():
        assert min(picture.shape[:2]) > 300, name
        assert 0.02 < (picture.max(axis=-1) < 250).mean() < 0.98, name  # neither empty nor black
        wanted = 60 if name == "slide" else 200  # the map tints its tiles, only its legend has the pure colours
        assert all(_of_colour(picture, colour) > wanted for colour in pictures.COLOURS[:2]), name
    brown = (seen["tiles"][..., 0] > seen["tiles"][..., 2] + 40).mean()
    assert brown > 0.1  # the stain of the stored tiles

    versions = {name: lake.snapshot(name).version() for name in ("slides", "tiles", "slices", "labels", "pixels", "rejected")}
    again = io.StringIO()
    assert run(str(out), data=samples.EMBEDDED, spark=spark, console=Console(file=again, width=140)) == 0
    assert "in the lake already" in again.getvalue()
    assert {name: lake.snapshot(name).version() for name in versions} == versions


def _of_colour(picture: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return int((np.abs(picture - wanted).max(axis=-1) <= 2).sum())
