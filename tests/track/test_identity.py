"""What a run says of itself, and that a job's options can be repeated from it."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from medspark.config import Config
from medspark.errors import BadRequest
from medspark.feed.card import Card, ImageSpec, PartFile
from medspark.feed.reader import Batch
from medspark.track import identity
from medspark.track.tracker import Remembered


def card(**changes: object) -> Card:
    said = {
        "name": "lungs",
        "task": "classification",
        "labels": ("opacity",),
        "exclusive": False,
        "image": ImageSpec("image", (8, 8, 1), "uint8", "blosc2", ("value",)),
        "query": "SELECT image_id FROM photos",
        "tables": {"photos": 3, "labels": 5},
        "split": {"name": "published", "seed": 1},
        "within_subject": False,
        "seed": 7,
        "options": {},
        "recipe": {},
        "parts": {},
        "mean": (100.0,),
        "std": (50.0,),
        "files": (),
    }
    return Card(**{**said, **changes})  # type: ignore[arg-type]


def who(**changes: object) -> identity.Identity:
    return identity.identity("train_classifier", card(**changes), 4, Config(), ("deid",), seed=7, world=2)


def batch(value: int = 0) -> Batch:
    images = np.full((2, 8, 8, 1), value, np.uint8)
    return Batch(images, None, None, np.zeros((2, 1), np.float32), np.ones(2, np.float32), ("a", "b"))


def test_tags_are_words_that_filter_and_name_everything() -> None:
    tags = who().tags()
    assert tags["feed"] == "lungs" and tags["feed_version"] == "4" and tags["split"] == "published" and tags["world"] == "2"
    assert all(name.isidentifier() for name in tags), "the UI's filter takes these without quotes"
    params = who().params()
    assert params["table/labels"] == 5 and params["feed"] == "lungs" and params["feed_version"] == 4 and "package/numpy" in params


def test_another_card_is_another_identity() -> None:
    assert who().card == who(doubles=(("a", "b"),)).card, "the same files, and more that is known of them"
    files = (PartFile("a.parquet", "train", 10, "00ff", (4, 4)),)
    assert (
        len({who().card, who(mean=(101.0,)).card, who(labels=("b",)).card, who(recipe={"size": [4, 4]}).card, who(files=files).card}) == 5
    )
    assert who(within_subject=True).experiment == "classification: opacity (WITHIN-SUBJECT)"
    assert who(labels=tuple("abcdef")).experiment == "classification: 6 labels"


def test_no_address_and_no_key_is_said(tmp_path: Path) -> None:
    key = tmp_path / "Doe^John.key"
    said = identity.identity("train_classifier", card(), 4, _config(key), ("deid",), 1, 1)
    text = json.dumps([said.tags(), said.params()])
    assert "Doe" not in text and str(tmp_path) not in text


def _config(key: Path) -> Config:
    from medspark.config import Deid

    return Config(deid=Deid(key_file=str(key)))


def test_code_is_the_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    git = lambda *words: subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)
    assert identity.code(tmp_path).commit.startswith("release "), "no checkout"
    git("init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py")
    git("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "x")
    clean = identity.code(tmp_path)
    assert len(clean.commit) == 40 and not clean.dirty
    (tmp_path / "a.py").write_text("2\n")
    dirty = identity.code(tmp_path)
    assert dirty.dirty and dirty.commit == clean.commit and identity.code(tmp_path) == dirty


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser()
    options.add_argument("--lake", required=True)
    options.add_argument("--feed", required=True)
    options.add_argument("--num-proc", type=int, default=1)
    options.add_argument("--parts", nargs="+", default=["val"])
    options.add_argument("--tag", action="append", default=[])
    options.add_argument("--mixed", action="store_true")
    options.add_argument("--rate", type=float, default=1e-3)
    return options


@pytest.mark.parametrize(
    "words",
    ["--feed a", "--feed a@3 --num-proc 2 --mixed", "--feed a --parts val test --tag x=1 --tag y", "--feed=-1 --rate=-2e-5"],
)
def test_options_are_made_again_from_what_is_logged(words: str) -> None:
    given = parser().parse_args(["--lake", "/home/doe/lake", *words.split()])
    said = identity.arguments(parser(), given)
    assert not any("doe" in word for word in said)
    assert parser().parse_args(["--lake", "/home/doe/lake", *said]) == given


def test_a_repeated_run_must_begin_with_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Remembered()
    identity.say_batch(batch(), first)
    monkeypatch.setenv(identity.EXPECTED, first.said[identity.BATCH_TAG])
    identity.say_batch(batch(), Remembered())
    with pytest.raises(BadRequest, match="not the same feed"):
        identity.say_batch(batch(1), Remembered())
