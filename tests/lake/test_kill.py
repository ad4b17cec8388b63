"""SIGKILL at seeded steps of the commits, between the commits of two tables and at seeded times; a changed file list at the restart; two jobs."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from medspark.labels.kind import labels_kind
from medspark.photos.kind import photos_kind
from tests.lake import harness
from tests.phantoms import photos
from tests.phantoms import series as phantoms

pytestmark = [pytest.mark.spark, pytest.mark.slow]
SEED = int(os.environ.get("MEDSPARK_KILL_SEED", "20261122"))


def test_killed_at_any_step_and_run_again(spark: Any, tmp_path: Path) -> None:
    one = phantoms.write_series(tmp_path / "one", [0, 2, 4])
    two = phantoms.write_series(tmp_path / "two", [0, 3], SeriesInstanceUID=phantoms.ROOT + "22", SOPInstanceUID=("8.1", "8.2"))
    whole, lake = tmp_path / "whole", tmp_path / "lake"
    harness.run(spark, whole, [one, two])
    chance = random.Random(SEED)
    # claim, pixels, slices, series, subjects, sources, closed, released: two steps each, and recovery takes some of its own.
    steps = sorted(chance.sample(range(1, 14), 5))
    print("seed", SEED, "steps", steps)
    died = 0
    for turn, step in enumerate(steps):
        inputs = [one] if turn % 2 else [one, two]  # the restart has another file list than the run that died
        died += harness.killed(step, "series", lake, *inputs).returncode == -signal.SIGKILL
    assert died >= 3, "the kills came too late to prove anything"
    harness.killed(-1, "series", lake, one, two, after_s=chance.uniform(3.0, 9.0))
    harness.run(spark, lake, [one, two])
    harness.same(whole, lake)
    harness.keys_unique(lake)
    assert harness.rows(lake, "claims") == []


def test_photos_whose_classes_change_survive_kills(spark: Any, tmp_path: Path) -> None:
    """Before and after the commit point, and between the commits that replace the old classes."""
    folder = tmp_path / "cats"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.png").write_bytes(photos.png(photos.picture()))
    photos.medmnist(folder / "m.npz")
    whole, lake = tmp_path / "whole", tmp_path / "lake"
    harness.run(spark, whole, [folder], photos_kind("folder"))
    harness.run(spark, lake, [folder], photos_kind())
    chance = random.Random(SEED + 3)
    # claim, labels, sources, closed, then the old labels, the old ledger twice, release: two steps each.
    steps = [chance.choice((3, 4)), chance.choice((7, 8)), chance.choice((9, 10, 11))]
    died = [harness.killed(step, "photos", lake, folder).returncode == -signal.SIGKILL for step in steps]
    assert died[0] and sum(died) >= 2, f"the kills at {steps} came too late to prove anything"
    harness.run(spark, lake, [folder], photos_kind("folder"))
    harness.same(whole, lake)
    harness.keys_unique(lake)
    assert harness.rows(lake, "claims") == []


def test_labels_survive_a_kill_between_images_and_labels(spark: Any, tmp_path: Path) -> None:
    from tests.lake.annotated import annotated_series

    folder, annotation = annotated_series(tmp_path)
    whole, lake = tmp_path / "whole", tmp_path / "lake"
    harness.run(spark, whole, [annotation], labels_kind("auto", None, None, explicit_dataset=False))
    harness.run(spark, whole, [folder])
    expected = len(harness.rows(whole, "labels"))
    assert expected > 0
    harness.run(spark, lake, [annotation], labels_kind("auto", None, None, explicit_dataset=False))
    chance = random.Random(SEED + 1)
    for step in sorted(chance.sample(range(9, 24), 2)):
        harness.killed(step, "series", lake, folder)
    harness.run(spark, lake, [folder])
    harness.same(whole, lake)
    assert len(harness.rows(lake, "labels")) == expected


def test_two_jobs_at_once(spark: Any, tmp_path: Path) -> None:
    """Two processes, overlapping inputs, one series between them: all rows once."""
    both = phantoms.write_series(tmp_path / "both", [0, 2, 4])
    left = phantoms.write_series(tmp_path / "left", [0, 3], SeriesInstanceUID=phantoms.ROOT + "22", SOPInstanceUID=("8.1", "8.2"))
    right = phantoms.write_series(tmp_path / "right", [6, 8], SOPInstanceUID=("9.1", "9.2"))  # the same series as `both`, later slices
    whole, lake = tmp_path / "whole", tmp_path / "lake"
    harness.run(spark, whole, [left, both, right])
    jobs = [
        harness.job("explode_series", "--lake", lake, "--dataset", "test", "--input", *inputs) for inputs in ((left, both), (both, right))
    ]
    summaries = [harness.ended(process) for process in jobs]
    assert sum(summary["written"].get("slices", 0) for summary in summaries) == 7
    count = {name: len(harness.rows(lake, name)) for name in ("slices", "pixels", "series", "sources", "subjects")}
    assert count == {name: len(harness.rows(whole, name)) for name in count}
    harness.keys_unique(lake)
    by_position = sorted((row["position_mm"], row["k"]) for row in harness.rows(lake, "slices") if row["slice_thickness_mm"])
    assert {k for _, k in by_position} == {0, 1, 2, 3, 4}


def test_a_second_job_starts_while_the_first_is_stopped(spark: Any, tmp_path: Path) -> None:
    """A job that lives but does not move keeps its claims; the second waits for nothing that it does not need."""
    one = phantoms.write_series(tmp_path / "one", [0, 2])
    two = phantoms.write_series(tmp_path / "two", [0, 3], SeriesInstanceUID=phantoms.ROOT + "22", SOPInstanceUID=("8.1", "8.2"))
    lake = tmp_path / "lake"
    first = harness.job("explode_series", "--lake", lake, "--dataset", "test", "--input", one)
    deadline = time.time() + 120
    while not list((lake / "claims").glob("claim-*.parquet")) and time.time() < deadline and first.poll() is None:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        summary = harness.run(spark, lake, [two])
        assert summary.written["slices"] == 2
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    harness.ended(first)
    assert len(harness.rows(lake, "slices")) == 4
    harness.keys_unique(lake)
