"""Split and feed through spark-submit: a bad request before Spark, and PneumoniaMNIST with the parts that were published."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.feed import lakes
from tests.lake import harness
from tests.real import shared_data


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--query", "SELECT 1", "--name", "a b"], "letters, digits"),
        (["--query", " ", "--name", "a"], "expected SQL"),
        (["--query", "SELECT 1", "--name", "a", "--crop", "big"], "expected PX or ROWSxCOLS"),
        (["--query", "SELECT 1", "--name", "a", "--window", "40"], "expected CENTRE,WIDTH"),
        (["--query", "SELECT 1", "--name", "a"], "no lake there"),
    ],
)
def test_a_bad_request_is_one_sentence_before_any_spark(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "build_feed.py"), "--lake", str(tmp_path / "lake"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "JAVA_HOME": "/nowhere"},
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.spark
@pytest.mark.slow
def test_pneumonia_with_the_published_parts(tmp_path: Path) -> None:
    data = shared_data("medmnist/pneumoniamnist.npz")
    lake, key = tmp_path / "lake", f"deid.key_file={tmp_path}/deid.key"
    harness.ended(harness.job("ingest_photos", "--lake", lake, "--input", data, "--set", key))
    split = harness.ended(harness.job("assign_splits", "--lake", lake, "--name", "published", "--from-column", "source_part", submit=True))
    photos = harness.rows(lake, "photos")
    assert split["parts"] == dict(sorted(Counter(row["source_part"] for row in photos).items())) and split["written"]["splits"] == len(
        photos
    )
    by_subject = {row["subject_key"]: row["source_part"] for row in photos}
    assert {row["unit_key"]: row["part"] for row in harness.rows(lake, "splits")} == by_subject
    asked = (
        "--lake",
        lake,
        "--name",
        "pneumonia",
        "--split",
        "published",
        "--task",
        "classification",
        "--class-map",
        "class_0=,class_1=pneumonia",
    )
    asked += ("--query", "SELECT image_id FROM photos", "--world", "2", "--set", key)
    said = harness.ended(harness.job("build_feed", *asked, submit=True))
    arrays = np.load(data)
    card = lakes.card_of(lake, "pneumonia")
    assert (card.labels, card.exclusive, card.image.shape, card.image.dtype) == (("pneumonia",), False, (28, 28, 1), "uint8")
    table = lakes.rows(lake, "pneumonia").to_pylist()
    for part, counts in card.parts.items():
        labels = arrays[f"{part}_labels"][:, 0]
        assert counts.rows == counts.images == counts.subjects == len(labels) == said["parts"][part]["rows"]
        assert (counts.positives["pneumonia"], counts.negatives["pneumonia"]) == (int((labels == 1).sum()), int((labels == 0).sum()))
        assert said["row_groups"][part] % 2 == 0
        pictures = Counter((image.tobytes(), int(label)) for image, label in zip(arrays[f"{part}_images"], labels, strict=True))
        assert pictures == Counter((lakes.image(card, row).tobytes(), int(row["target"][0])) for row in table if row["part"] == part)
    assert abs(card.mean[0] - arrays["train_images"].mean()) < 1e-6 and abs(card.std[0] - arrays["train_images"].std()) < 1e-6
    everything = Counter(image.tobytes() for part in card.parts for image in arrays[f"{part}_images"])
    equal = sorted(count for count in everything.values() if count > 1)
    assert sorted(map(len, card.doubles)) == equal and said["doubles"] == len(equal) > 0
