"""From a lake to a feed and back: what `predict` writes about an image is what the model says of the feed's sample of it, and `evaluate` agrees with SQL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from medspark.feed.open import open_feed
from medspark.lake import predict, sql
from medspark.lake.evaluations import Evaluations
from medspark.pixels.functions import mask_dice
from medspark.pixels.masks import unpack
from medspark.train import apply, evaluate
from medspark.train.gathered import places
from medspark.train.objects import Objects
from tests.feed import lakes
from tests.lake import harness
from tests.train import tiny

pytestmark = pytest.mark.spark
CT = "SELECT image_id FROM slices WHERE modality = 'CT'"


def test_predicted_as_trained_and_evaluated_as_stored(spark: Any, filled: Path, tmp_path: Path) -> None:
    lakes.feed(spark, filled, name="whole", query=CT, labels=("nodule",), unlabelled="negative", context=1, window=(0.0, 1200.0))
    feed = open_feed(str(filled), "whole")
    model = tiny.made(tmp_path / "model", feed.card)
    lake = sql.register(spark, str(filled))
    applied = apply.applied(tmp_path / "model", "models:/tiny/1", broadcast=spark.sparkContext.broadcast)
    cohort = spark.read.format("delta").load(feed.uri)
    result = predict.predict(lake, applied, cohort, predict.Request(), "run", 60.0, lambda text: None)
    assert (result.images, result.failed) == (lakes.PATIENTS * lakes.SLICES, 0)
    rows = {row["image_id"]: row for row in harness.rows(filled, "labels") if row["annotator"] == applied.name}
    threshold, seen = model.thresholds["nodule"], 0
    for part in feed.card.parts:
        where = places(feed, part)
        for batch in feed.reader(part, 3).once():
            for probability in model.probabilities(batch.images)[..., 0]:
                row = rows[next(where).image_id]
                sure = np.abs(probability - threshold) > 1e-4
                assert sure.mean() > 0.99
                assert (unpack(row["mask"], row["rows"], row["cols"]) == (probability >= threshold))[sure].all()
                seen += 1
    assert seen == lakes.SLICES * lakes.PATIENTS

    kept = Evaluations(lake, "run")
    part = "test"
    spacing = evaluate.spacing_of_series(lake, feed.card)
    request = evaluate.Request(applied.uri, part, replicates=20, spacing_mm=spacing, objects=Objects(lake, feed.card))
    (tmp_path / "scratch").mkdir()
    said = evaluate.evaluate(feed, feed.reader(part, 4), model, request, kept.add, tmp_path / "scratch")
    for _ in range(2):  # said again, it replaces what was said before
        kept.commit(applied.uri, feed.name, feed.version, part)
        kept = Evaluations(lake, "again")
        evaluate.evaluate(feed, feed.reader(part, 4), model, request, kept.add, tmp_path / "scratch")
    found = [row for row in harness.rows(filled, "evaluations") if row["feed"] == "whole"]
    assert len(found) == said.rows == len({row["evaluation_id"] for row in found})
    truth = {row["image_id"]: row for row in harness.rows(filled, "labels") if row["source"] == "annotation" and row["label"] == "nodule"}
    dices = {row["unit_id"]: row["value"] for row in found if row["unit"] == "image" and row["metric"] == "dice"}
    assert dices
    for image_id, dice in dices.items():
        assert dice == pytest.approx(_dice(rows[image_id], truth.get(image_id)), abs=0.02)
    assert {"series_hd95_mm", "series_dice", "lesion_f1_pooled"} <= {row["metric"] for row in said.overall}
    assert all(row["low"] is None for row in said.overall)  # one test subject


def _dice(predicted: Mapping[str, Any], drawn: Mapping[str, Any] | None) -> float | None:
    """By the function that SQL has; where nothing was drawn 0, or None if nothing was predicted."""
    if drawn is None:
        return 0.0 if predicted["area_px"] else None
    return mask_dice(predicted["mask"], drawn["mask"], drawn["rows"], drawn["cols"])
