"""Predictions as rows: what a task writes is what the model says of the stored pixels, once, whatever was killed before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.lake import predict, sql
from medspark.lake.batch import Batch
from medspark.lake.pixels import PixelReader
from medspark.lake.store import Lake
from medspark.photos.kind import photos_kind
from medspark.pixels.masks import unpack
from medspark.pixels.measure import measures
from tests.conftest import ROOT
from tests.lake import harness
from tests.lake.predicting import EVERYTHING, Above
from tests.phantoms import photos
from tests.phantoms import series as phantoms

pytestmark = pytest.mark.spark


def made(spark: Any, folder: Path) -> Path:
    """A lake of a series of seven slices (one missing in the middle) and three photos."""
    lake = folder / "lake"
    series = phantoms.write_series(folder / "series", [0, 2, 4, 8, 10, 12, 14])
    harness.run(spark, lake, [series])
    (folder / "cats").mkdir()
    for number, name in enumerate("abc"):
        (folder / "cats" / f"{name}.png").write_bytes(photos.png(photos.picture(seed=number + 2)))
    harness.run(spark, lake, [folder / "cats"], photos_kind("folder"))
    return lake


@pytest.fixture(scope="module")
def lake(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(spark, tmp_path_factory.mktemp("predict"))


def run(spark: Any, lake: Path, model: Above, query: str = EVERYTHING, round: int = 0, chunk: int = 4) -> predict.Result:
    there = sql.register(spark, str(lake))
    return predict.predict(there, model, sql.query(spark, query), predict.Request(round, chunk), "run", 60.0, lambda text: None)


def expected(lake: Path, model: Above) -> dict[str, np.ndarray]:
    """image_id -> probabilities, from the stored pixels and the rows of ``slices``, without Spark."""
    read = PixelReader(pafs.LocalFileSystem(), Lake(None, str(lake)).files("pixels"), "")  # type: ignore[arg-type]
    slices = sorted(harness.rows(lake, "slices"), key=lambda row: row["k"])
    stored = read([row["image_id"] for row in slices])
    found = {}
    for place, row in enumerate(slices):
        near = [slices[other] for other in model.neighbours(place, [row["k"] for row in slices])]
        found[row["image_id"]] = model.one([stored[other["image_id"]] for other in near], near)
    nothing = {"rescale_slope": None, "rescale_intercept": None}
    for image_id, array in read([row["image_id"] for row in harness.rows(lake, "photos")]).items():
        found[image_id] = model.one([array] * (2 * model.context + 1), [nothing] * (2 * model.context + 1))
    return found


def of_model(lake: Path, model: Above, round: int = 0) -> list[dict[str, Any]]:
    return [row for row in harness.rows(lake, "labels") if row["annotator"] == model.name and row["round"] == round]


def test_masks_are_those_of_the_model_on_the_stored_pixels(spark: Any, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "BAND", 3)  # so that neighbours come from other bands
    model = Above(context=1)
    result = run(spark, lake, model)
    assert (result.images, result.rows, result.done, result.failed, result.without_pixels) == (10, 20, 0, 0, 0)
    assert result.chunks >= 2
    truth = expected(lake, model)
    rows = of_model(lake, model)
    assert len(rows) == 20 and {row["source"] for row in rows} == {"model"}
    read = PixelReader(pafs.LocalFileSystem(), Lake(None, str(lake)).files("pixels"), "")  # type: ignore[arg-type]
    slices = {row["image_id"]: row for row in harness.rows(lake, "slices")}
    for row in rows:
        probability = truth[row["image_id"]][..., model.labels.index(row["label"])]
        mask = probability >= model.thresholds[row["label"]]
        assert (unpack(row["mask"], row["rows"], row["cols"]) == mask).all()
        assert row["confidence"] == pytest.approx(probability[mask].mean() if mask.any() else 1 - probability.max())
        of = slices.get(row["image_id"])
        stored = read([row["image_id"]])[row["image_id"]]
        values = stored if of is None else stored * of["rescale_slope"] + of["rescale_intercept"]
        measured = measures(mask, values)
        assert row["bbox"] == measured.pop("bbox")
        assert {name: row[name] for name in measured} == pytest.approx(measured)
        spacing = of and of["pixel_spacing_mm"]
        assert row["area_mm2"] == (pytest.approx(mask.sum() * spacing[0] * spacing[1]) if spacing else None)
        assert row["fraction"] == pytest.approx(mask.mean())
    harness.keys_unique(lake)
    again = run(spark, lake, model)
    assert (again.images, again.rows, again.done) == (0, 0, 10)
    assert len(of_model(lake, model)) == 20 and not harness.rows(lake, "claims")
    assert not [name for name in (lake / "_medspark").rglob("chunk=*")]


def test_another_round_and_part_of_a_cohort(spark: Any, lake: Path) -> None:
    model = Above(context=2)
    one = run(spark, lake, model, "SELECT image_id FROM slices WHERE k = 2", round=7)
    assert (one.images, one.rows) == (1, 2)
    (found,) = {row["image_id"] for row in of_model(lake, model, 7)}
    truth = expected(lake, model)[found][..., 0] >= 0.5  # its neighbours were read, though nobody asked for them
    (bright,) = [row for row in of_model(lake, model, 7) if row["label"] == "bright"]
    assert (unpack(bright["mask"], bright["rows"], bright["cols"]) == truth).all()
    rest = run(spark, lake, model, round=7)
    assert (rest.images, rest.done) == (9, 1)
    nothing = run(spark, lake, model, "SELECT 'no such image' AS image_id", round=7)
    assert (nothing.images, nothing.without_pixels) == (0, 1)


def test_classes(spark: Any, lake: Path) -> None:
    model = Above("classification")
    assert run(spark, lake, model).rows == 20
    truth = expected(lake, model)
    rows = [row for row in harness.rows(lake, "predictions") if row["model_uri"] == model.uri]
    for row in rows:
        both = truth[row["image_id"]]
        assert row["probability"] == pytest.approx(float(both[model.labels.index(row["label"])]))
        assert row["rank"] == sum(other > row["probability"] for other in map(float, both)) and row["threshold"] in (0.5, 0.75)
    assert run(spark, lake, model).done == 10


def test_volumes(spark: Any, lake: Path) -> None:
    model = Above(depth=4, name="model:volumes", uri="models:/volumes/1")
    one = run(spark, lake, model, "SELECT image_id FROM slices WHERE k = 5")
    assert (one.images, one.rows) == (1, 2)
    rest = run(spark, lake, model)
    assert (rest.images, rest.done, rest.without_pixels) == (6, 1, 3)  # photos are no volumes
    classes = Above("classification", depth=4, uri="models:/volumes/2")
    assert (first := run(spark, lake, classes)).images == 7 and first.rows == 2
    assert run(spark, lake, classes).done == 7


class Broken(Above):
    """Cannot look at photos."""

    def one(self, planes: Any, rows: Any) -> np.ndarray:
        if planes[0].ndim == 3:
            raise ValueError("secret words of a library")
        return super().one(planes, rows)


def test_an_image_that_the_model_refuses_costs_itself_alone(spark: Any, lake: Path) -> None:
    result = run(spark, lake, Broken(name="model:broken"))
    assert (result.images, result.failed) == (7, 3)
    assert sum(result.reasons.values()) == 3 and "secret" not in str(result.reasons)


def test_requests_that_cannot_be_served(spark: Any, lake: Path) -> None:
    with pytest.raises(BadRequest, match="expected a column image_id"):
        run(spark, lake, Above(), "SELECT series_id FROM series")
    other = Batch(Lake(spark, str(lake)), "other", "predict", "", 60.0)
    assert other.claim([predict.claim_of(Above(), 3)], {})
    with pytest.raises(BadRequest, match="another run predicts"):
        run(spark, lake, Above(), round=3)
    other.release()
    assert run(spark, lake, Above(), round=3).images == 10


@pytest.mark.slow
def test_killed_and_run_again(spark: Any, tmp_path: Path) -> None:
    """Before the second commit; then (recovery fences ``labels`` with a commit of its own) after the first of the next run."""
    lake = made(spark, tmp_path)
    model = Above(context=1)
    for step in (2, 3):
        process = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "lake" / "predicting.py"), str(step), str(lake)],
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=200,
            env={**os.environ, "PYSPARK_SUBMIT_ARGS": "--driver-memory 1g pyspark-shell"},
        )
        assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]
    left = len({row["image_id"] for row in of_model(lake, model)})
    assert 0 < left < 10, "the kills came too late to prove anything"
    result = run(spark, lake, model, chunk=2)
    assert (result.images, result.done) == (10 - left, left)
    whole = expected(lake, model)
    assert {(row["image_id"], row["label"]) for row in of_model(lake, model)} == {(one, label) for one in whole for label in model.labels}
    harness.keys_unique(lake)
    assert not harness.rows(lake, "claims")
