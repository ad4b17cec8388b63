"""SIGKILL while damaged pixels are made again, and while a subject is forgotten: run again, it ends as if nobody had died."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.lake import harness
from tests.lake.patients import age, files, flip, two_patients, upkeep
from tests.lake.test_kill import SEED
from tests.lake.test_maintain_forget import holding, others, words

pytestmark = [pytest.mark.spark, pytest.mark.slow]


def test_a_mend_that_was_killed_is_done_again(spark: Any, tmp_path: Path) -> None:
    """After its claim, with the images made and not exchanged, after the exchange: each time from the start, with another damage."""
    lake, (jones, _, smith) = two_patients(spark, tmp_path)
    before = harness.content(lake)
    damaged = [row["image_id"] for row in harness.rows(lake, "pixels")]
    for step, image_id in zip((1, 2, 3), damaged, strict=False):  # claim, exchange, release: two steps each
        flip(lake, image_id)
        assert upkeep(spark, lake, verify_share=1.0)["verified"]["images_lost"] == 1
        assert harness.killed(step, "series", lake, jones, smith).returncode == -signal.SIGKILL
        assert len(harness.rows(lake, "claims")) == 1, "it died at its work"
        summary = harness.run(spark, lake, [jones, smith])
        assert summary.extra.get("mended", 0) == (0 if step == 3 else 1)
        assert not {table for table, rows in summary.written.items() if rows} - {"kpi"}
        assert harness.content(lake) == before
        assert upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"] == []
        assert not (lake / "_medspark" / "damage").exists() and harness.rows(lake, "claims") == []
    age(lake, 2)
    upkeep(spark, lake, vacuum_hours=0)
    assert len(files(lake, "pixels")) == 1, "what the dead had made and not committed is gone, too"
    assert harness.content(lake) == before


def test_a_subject_is_forgotten_whoever_was_killed_at_it(spark: Any, tmp_path: Path) -> None:
    """Between the tables, and between the logs that lose their past; each run goes on where the last one has died."""
    lake, _ = two_patients(spark, tmp_path)
    subject = harness.rows(lake, "labels")[0]["subject_key"]
    said = words(lake, subject) | {"seg.dcm"}
    kept = others(lake, subject, said)
    chance = random.Random(SEED + 4)
    # Its claim, then pixels, labels, slices, planes, series, rejected, sources, subjects: two steps each; then four for each log.
    steps = [chance.randrange(3, 6), chance.randrange(6, 12), chance.randrange(20, 30)]
    print("seed", SEED, "steps", steps)
    for step in steps:
        assert harness.killed(step, "forget", lake, subject).returncode == -signal.SIGKILL, f"step {step} came too late"
        assert holding(lake, said), "it died before the end"
    done = upkeep(spark, lake, forget=subject)["forgotten"]
    assert done["images"] == 3 and holding(lake, said) == set()
    assert {table: rows for table, rows in harness.content(lake).items() if rows} == {table: rows for table, rows in kept.items() if rows}
    assert upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"] == []
    assert harness.rows(lake, "claims") == [] and not list((lake / "_medspark" / "forget").glob("*"))
