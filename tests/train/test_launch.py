"""Ranks on Spark: too many are refused, a hanging or killed one ends the run with a sentence, and the run goes on."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from medspark.errors import BadRequest
from medspark.train import checkpoint, launch, loop, predictor
from tests.train.memory_reader import TINY, MemoryReaders, phantom
from tests.train.rank_work import Trouble

STALL_S = 8.0


def gone(pid: int, within_s: float = 30.0) -> bool:
    """Whether a process ends within that time: Horovod gives a process five seconds to end by itself, and kills it then."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X"):
                return True
        except OSError:
            return True
        time.sleep(0.2)
    return False


@pytest.mark.spark
@pytest.mark.slow
def test_a_rank_hangs_then_one_is_killed_and_the_run_ends_with_all_its_steps(spark: Any, tmp_path: Path) -> None:
    """It is rank 0 that hangs, stopped by a signal: Horovod's own check of stalls lives there, so that only the driver can notice."""
    made = phantom(tmp_path)
    settings = replace(TINY, stall_s=STALL_S, checkpoint_updates=2, pictures=2, width=4)
    plan = loop.Plan("both", checkpoint.run_folder(str(tmp_path), "both"), made.name, 0, made.card, 2, 4, 5, settings)
    with pytest.raises(BadRequest, match=r"--num-proc 9.*slots"):
        launch.train(plan, MemoryReaders(made), launch.Tracking(), 9, spark)

    stop = Trouble("stop", rank=0, epoch=0, step=3, once=str(tmp_path / "stopped"))
    started = time.monotonic()
    with pytest.raises(launch.RunFailed, match=r"rank 0 made no progress for \d+ s .*--resume both"):
        launch.train(plan, MemoryReaders(made, stop), launch.Tracking(), 2, spark)
    assert time.monotonic() - started < 120
    assert gone(int((tmp_path / "stopped").read_text())), "no rank is left behind"

    again = replace(plan, resume=True)
    kill = Trouble("kill", rank=1, epoch=1, step=1, once=str(tmp_path / "killed"))
    with pytest.raises(launch.RunFailed, match="--resume both"):
        launch.train(again, MemoryReaders(made, kill), launch.Tracking(), 2, spark)
    assert gone(int((tmp_path / "killed").read_text()))

    done = launch.train(again, MemoryReaders(made), launch.Tracking(), 2, spark)
    assert done.resumed_at == 4 and done.updates == 8 and len(done.history) == 2
    assert predictor.load(Path(plan.folder) / "model").said["updates"] == 8
    assert checkpoint.names(plan.folder, "ranks") == []
