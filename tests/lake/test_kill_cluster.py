"""SIGKILL of `maintain_lake --cluster` between its passes, before and after its commits, and at a seeded time: the same rows, nothing left behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medspark.lake.upkeep import layout
from tests.conftest import ROOT
from tests.lake import harness, killed_layout
from tests.lake.patients import age, upkeep
from tests.lake.test_maintain_layout import many_batches

pytestmark = [pytest.mark.spark, pytest.mark.slow]
SEED = int(os.environ.get("MEDSPARK_KILL_SEED", "20261127"))


def killed(at: int, lake: Path, after_s: float = 300.0) -> tuple[int, list[str]]:
    """(status, the steps) of ``killed_layout.py``; its process group is killed from outside after ``after_s``."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "lake" / "killed_layout.py"), str(at), str(lake)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYSPARK_SUBMIT_ARGS": "--driver-memory 1g pyspark-shell"},
    )
    try:
        out, _ = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    return process.returncode, out.splitlines()


def settles(spark: Any, lake: Path) -> None:
    """Sorted rows take less room, so a first run may leave neighbours that now fit into one file; a second one leaves nothing to do."""
    upkeep(spark, lake, cluster=True)
    assert upkeep(spark, lake, cluster=True)["clustered"] == {}


def test_killed_at_its_steps_and_run_again(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "BOUNDS", killed_layout.BOUNDS)
    monkeypatch.setattr(layout, "NARROW_FILE_BYTES", killed_layout.FILE_BYTES)
    lake = many_batches(spark, tmp_path, 3)
    before = harness.content(lake)
    shutil.copytree(lake, tmp_path / "copy")
    status, steps = killed(-1, tmp_path / "copy")
    assert status == 0 and harness.content(tmp_path / "copy") == before
    chance = random.Random(SEED)
    wanted = [steps.index(name) for name in ("Scatter slices", "Gather slices", "after slices")]
    wanted += [steps.index("before slices"), chance.randrange(2, len(steps) - 2)]
    print("seed", SEED, "steps", [steps[step] for step in wanted])
    for step in sorted(wanted):
        there = tmp_path / f"lake-{step}"
        shutil.copytree(lake, there)
        assert killed(step, there)[0] == -signal.SIGKILL, f"step {steps[step]} came too late"
        assert harness.content(there) == before
        assert len(harness.rows(there, "claims")) == 1, "it died at its work"
        done = upkeep(spark, there, cluster=True)["clustered"]
        assert ("slices" in done) == (step < steps.index("after slices")), "what was committed is not done again"
        assert harness.content(there) == before
        settles(spark, there)
        assert harness.rows(there, "claims") == []
        age(there, 2)
        upkeep(spark, there, vacuum_hours=0)
        assert [path.name for path in (there / "_medspark").iterdir() if path.is_dir() and path.name != "pins"] == [], "runs and journals"
        unknown = upkeep(spark, there, vacuum_hours=0, dry_run=True)["vacuumed"]["unknown"]
        assert unknown == 0, "files that the dead had written and not committed"
        assert harness.content(there) == before


def test_killed_at_any_time(spark: Any, tmp_path: Path) -> None:
    """While tasks write runs or files: whatever they left is no part of the lake."""
    lake = many_batches(spark, tmp_path, 3)
    before = harness.content(lake)
    chance = random.Random(SEED + 1)
    for after_s in (chance.uniform(4.0, 7.0), chance.uniform(6.0, 9.0)):
        killed(-1, lake, after_s)
        assert harness.content(lake) == before
    upkeep(spark, lake, cluster=True)
    assert harness.content(lake) == before
    assert harness.rows(lake, "claims") == []
    settles(spark, lake)
