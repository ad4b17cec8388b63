"""``jobs/evaluate.py`` and ``jobs/predict.py`` as programs: bad requests before Spark, and once through spark-submit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs as pafs

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from medspark.feed.sample import Recipe, neighbours
from medspark.keys import Ids
from medspark.lake import card
from medspark.lake.pixels import PixelReader
from medspark.lake.store import Lake
from medspark.pixels.masks import unpack
from tests.conftest import ROOT
from tests.lake import harness
from tests.phantoms import series as phantoms
from tests.phantoms.feeds import write_feed
from tests.train import tiny

HU = Recipe(kind="context", mode="window", window=(0.0, 2000.0), context=1)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake's card and a feed, and beside the lake a model of it and another one: enough for what is refused before Spark starts."""
    tmp_path = tmp_path_factory.mktemp("jobs")
    card.check_key(str(tmp_path / "lake"), Ids(None), create=True)
    made = write_feed(tmp_path / "lake", parts={"train": 8, "test": 8})
    tiny.made(tmp_path / "model", made.card)
    tiny.made(tmp_path / "other", tiny.card(HU, (16, 16)))
    return tmp_path / "lake"


@pytest.mark.parametrize(
    ("job", "arguments", "said"),
    [
        ("evaluate", ["--model", "model", "--feed", "nothing"], "feed nothing: not in lake"),
        ("evaluate", ["--model", "model", "--feed", "phantom@7"], "at version 7"),
        ("evaluate", ["--model", "model", "--feed", "phantom", "--part", "exam"], "has no part exam"),
        ("evaluate", ["--model", "nowhere", "--feed", "phantom"], "no such folder"),
        ("evaluate", ["--model", "other", "--feed", "phantom"], "evaluate it on a feed built alike"),
        ("evaluate", ["--model", "model", "--feed", "phantom", "--replicates", "0"], "expected 1 or more"),
        ("predict", ["--model", "model"], "one of the arguments --query --feed is required"),
        ("predict", ["--model", "model", "--feed", "phantom", "--query", "SELECT 1"], "not allowed with"),
        ("predict", ["--model", "model", "--query", "SELECT 1", "--part", "test"], "--part belongs to --feed"),
        ("predict", ["--model", "model", "--feed", "phantom", "--overlap", "1"], "--overlap"),
        ("predict", ["--model", "lake", "--feed", "phantom"], "no model of medspark"),
    ],
)
def test_a_bad_request_is_one_sentence_before_any_spark(lake: Path, job: str, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--lake", str(lake), *arguments],
        capture_output=True,
        text=True,
        cwd=lake.parent,
        timeout=120,
        env={**os.environ, "JAVA_HOME": "/nowhere", "PATH": "/nowhere"},
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.spark
@pytest.mark.slow
def test_evaluated_and_predicted_through_spark_submit(lake: Path, tmp_path: Path) -> None:
    key = f"deid.key_file={tmp_path}/deid.key"
    said = harness.ended(harness.job("evaluate", "--lake", lake, "--model", lake.parent / "model", "--feed", "phantom@0", submit=True))
    rows = harness.rows(lake, "evaluations")
    assert (said["images"], said["subjects"], said["written"]["evaluations"]) == (8, 2, len(rows))
    assert {row["unit"] for row in rows} == {"image", "slide", "subject", "all"} and "dice/disc" in said["measures"]
    assert sorted(file.name for file in (lake / said["pictures"]).iterdir()) == ["dice.png", "random.png", "reliability.png", "worst.png"]
    assert {"totm_s", "images_per_s"} <= {row["metric"] for row in harness.rows(lake, "kpi")}

    other = tmp_path / "ct"
    series = phantoms.write_series(tmp_path / "series", [0, 2, 4, 6, 8], Rows=20, Columns=24)
    harness.ended(harness.job("explode_series", "--lake", other, "--input", series, "--set", key))
    asked = ("--lake", other, "--model", lake.parent / "other", "--query", "SELECT image_id FROM slices WHERE k > 0")
    said = harness.ended(harness.job("predict", *asked, submit=True))
    assert (said["images"], said["skipped"], said["written"]["labels"]) == (4, 0, 8)
    _masks_are_the_model_s(other, lake.parent / "other")
    again = harness.ended(harness.job("predict", *asked))
    assert (again["images"], again["skipped"]) == (0, 4) and "labels" not in {name for name, count in again["written"].items() if count}
    harness.keys_unique(other)


def _masks_are_the_model_s(lake: Path, folder: Path) -> None:
    """What the executors wrote equals the prediction of the same images in this process."""
    from medspark.train import apply

    model = apply.applied(folder, "m")
    slices: list[dict[str, Any]] = sorted(harness.rows(lake, "slices"), key=lambda row: row["k"])
    stored = PixelReader(pafs.LocalFileSystem(), Lake(None, str(lake)).files("pixels"), "")([row["image_id"] for row in slices])  # type: ignore[arg-type]
    shares: list[float] = []
    found = {(row["image_id"], row["label"]): row for row in harness.rows(lake, "labels")}
    for place, row in enumerate(slices[1:], 1):
        near = [slices[other] for other in neighbours(place, 1, [one["k"] for one in slices])]
        (probabilities,) = model.probabilities([([stored[one["image_id"]] for one in near], near)])
        for number, label in enumerate(model.labels):
            of = found[row["image_id"], label]
            mask = unpack(of["mask"], of["rows"], of["cols"])
            doubtful = np.abs(probabilities[..., number] - model.thresholds[label]) < 1e-5
            assert ((mask == (probabilities[..., number] >= model.thresholds[label])) | doubtful).all()
            shares.append(mask.mean())
    assert min(shares) < 1 and max(shares) > 0 and any(0 < share < 1 for share in shares)  # or anything would be equal
