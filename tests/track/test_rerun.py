"""A run is repeated from what it logged, or refused where the feed or the first batch is another one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medspark.__main__ import main as medspark
from medspark.config import Config, load
from medspark.errors import BadRequest
from medspark.lake.card import CARD
from medspark.track import identity, rerun, runs
from tests.phantoms.feeds import write_feed

JOBS = Path(__file__).with_name("jobs")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lake")
    (place / CARD).parent.mkdir(parents=True)
    (place / CARD).write_text(json.dumps({"key": "none"}))
    write_feed(place, "lungs", side=16)
    return place


@pytest.fixture(autouse=True)
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rerun, "JOBS", JOBS)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def train(lake: Path, *words: str) -> str:
    summary = lake / "summary.json"
    command = [sys.executable, str(JOBS / "train_tiny.py"), "--lake", str(lake), "--feed=lungs", "--summary", str(summary), *words]
    subprocess.run(command, check=True)
    return str(json.loads(summary.read_text())["run_id"])


@pytest.mark.slow
@pytest.mark.spark
def test_a_run_is_repeated_with_its_options_and_settings(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(lake, "--seed=5", "--set", "guard.max_pixels=4096")
    assert medspark(["rerun", first, "--lake", str(lake), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["equal"] and said["only"] == []
    assert not [item for item in said["differs"] if not item.startswith("code:")], "code: somebody may save a file meanwhile"
    assert {change["metric"]: change["apart"] for change in said["changes"]} == {"loss": 0.0, "epoch/loss": 0.0}
    store = runs.client(runs.where(None, str(lake)))
    old, new = store.get_run(first), store.get_run(said["new"])
    assert new.data.tags["repeats"] == first and new.data.tags["seed"] == "5" and "repeats" not in old.data.tags
    assert new.data.tags[identity.BATCH_TAG] == old.data.tags[identity.BATCH_TAG] == said["batch"]
    assert new.data.params["settings"] == old.data.params["settings"] and new.data.params["feed_version"] == "0"


@pytest.mark.slow
@pytest.mark.spark
def test_what_comes_out_otherwise_is_said_and_another_batch_stops_the_job(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = runs.where(None, str(lake))
    drifting = train(lake, "--drift")
    assert medspark(["rerun", drifting, "--tracking-uri", uri]) == 0
    said = capsys.readouterr().out
    assert "not equal" in said and "epoch/loss" in said
    runs.client(uri).set_tag(drifting, identity.BATCH_TAG, "f" * 32)
    assert medspark(["rerun", drifting, "--tracking-uri", uri]) == 1, "the job refuses to go on"


def test_what_cannot_be_repeated(lake: Path, tmp_path: Path) -> None:
    uri = runs.where(None, str(lake))
    store = runs.client(uri)
    bare = store.create_run(runs.experiment(store, uri, "by hand")).info.run_id
    with pytest.raises(BadRequest, match=r"repeat\.json"):
        rerun.read(uri, bare)
    with pytest.raises(BadRequest, match="not in the tracking store"):
        rerun.read(uri, "0" * 32)
    with pytest.raises(BadRequest, match="--lake"):
        rerun.rerun(bare)
    with pytest.raises(BadRequest, match="lies in none"):
        rerun.lake_beside("http://tracking:5000")
    assert rerun.lake_beside(uri) == str(lake)
    logged = rerun.Logged("r", "train_tiny", (), {}, "lungs", 0, "", {"feed_card": "another"})
    with pytest.raises(BadRequest, match="not the one it was trained on"):
        rerun.check(logged, str(lake))


def test_settings_come_back_as_they_were() -> None:
    words = ["tiling.mpp_um=0.5", "labels.exclude_groups=['a','b']", "tiling.edge=drop", "verdicts.LOSSY=block"]
    settings = load(None, words)
    from dataclasses import asdict

    again = load(None, rerun.overrides(asdict(settings)))
    assert again == settings and rerun.overrides(asdict(Config())) == []


def test_code_and_packages_that_changed_are_named(lake: Path) -> None:
    from medspark.feed.open import open_feed

    digest = identity.card_digest(open_feed(str(lake), "lungs").card)
    then = {"feed_card": digest, "code": "abc", **{f"package/{name}": value for name, value in identity.packages().items()}}
    then["package/numpy"] = "0.1"
    found = rerun.check(rerun.Logged("r", "train_tiny", (), {}, "lungs", 0, "", then), str(lake))
    assert len(found) == 2 and any(text.startswith("package/numpy: 0.1 then") for text in found)
