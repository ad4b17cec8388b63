"""The law of data parallel training: two ranks that average are one rank with the big batch. With real Horovod, two processes on loopback."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from medspark.config import Train
from medspark.train.world import Solo, threads_of
from tests.train.memory_reader import phantom
from tests.train.rank_work import CASES, on_two_ranks, updated, whole_run

TOLERANCE = 2e-5  # of weights after two updates at a rate of 0.1: sums in float32, taken in another order


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(what two ranks returned, the feed, the folder)."""
    from horovod.runner import run

    folder = tmp_path_factory.mktemp("ranks")
    made = phantom(folder)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        found = run(on_two_ranks, args=(made, str(folder)), num_proc=2, use_gloo=True)
    finally:
        os.environ["PYTHONPATH"] = before or ""
    return found, made, folder


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_averaged_gradients_of_two_ranks_are_those_of_one_big_batch(ranks: Any, name: str) -> None:
    (first, second), _, _ = ranks
    alone = updated(name, Solo())
    moved = 0.0
    for one, other, big in zip(first[0][name], second[0][name], alone, strict=True):
        np.testing.assert_array_equal(one, other, "ranks hold the same weights")
        np.testing.assert_allclose(one, big, rtol=0, atol=TOLERANCE)
        moved = max(moved, float(np.abs(big).max()))
    assert moved > 100 * TOLERANCE


@pytest.mark.slow
def test_a_whole_run_on_two_ranks_is_that_of_one_with_twice_the_batch(ranks: Any, tmp_path: Path) -> None:
    found, made, _ = ranks
    alone = whole_run(made, str(tmp_path), 8, Solo())
    for _, done, _ in found:
        assert done.updates == alone.updates == 8 and done.best_epoch == alone.best_epoch
        for mine, other in zip(done.history, alone.history, strict=True):
            assert mine == pytest.approx(other, rel=2e-2, abs=2e-3), "Adam turns rounding of small gradients into steps"
    assert found[0][1].thresholds == found[1][1].thresholds


@pytest.mark.slow
def test_ranks_share_and_add_and_only_the_first_writes(ranks: Any) -> None:
    (_, _, first), (_, _, second) = ranks[0]
    assert first[0] == second[0] == {"rank": 0}
    assert first[1] == second[1] == [3.0]
    assert first[2] == ["checkpoints", "model", "pictures"]


def test_threads_are_shared_among_the_ranks_of_a_machine() -> None:
    world = Solo()
    cores = len(os.sched_getaffinity(0))
    assert threads_of(world, Train()) == cores
    world.local_size = 2  # type: ignore[misc]
    assert threads_of(world, Train()) == max(1, cores // 2)
    assert threads_of(world, Train(threads=3)) == 3
