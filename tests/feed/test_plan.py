"""Laws of the shard arithmetic, for all small parts: equal steps, every row once, order by names alone, resumable anywhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medspark.errors import BadRequest
from medspark.feed.plan import MIX_GROUPS, Plan, Window, plans

files = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=5), min_size=1, max_size=4)
ranks = st.integers(1, 6)
batches = st.integers(1, 9)


def numbers(plan: Plan, windows: list[Window]) -> list[int]:
    """Row numbers in the part, in the order in which they are taken."""
    first = np.cumsum([0, *(rows for groups in plan.row_groups for rows in groups)])
    place = {pair: i for i, pair in enumerate((f, g) for f, groups in enumerate(plan.row_groups) for g in range(len(groups)))}
    taken: list[int] = []
    for window in windows:
        held = np.concatenate([first[place[p.file, p.group]] + np.arange(p.start, p.stop) for p in window.pieces])
        taken += held[window.order].tolist()
    return taken


@given(files, ranks, batches)
def test_once_sees_every_row_exactly_once_in_order(groups: list[list[int]], ranks: int, batch: int) -> None:
    everything = [row for plan in plans(groups, ranks, batch) for row in numbers(plan, list(plan.once()))]
    assert everything == list(range(sum(map(sum, groups))))


@given(files, ranks, batches, st.integers(0, 3))
def test_steps_are_equal_and_full(groups: list[list[int]], ranks: int, batch: int, epoch: int) -> None:
    total = sum(map(sum, groups))
    if total < ranks:
        with pytest.raises(BadRequest, match="cannot be shared"):
            [list(plan.epoch(epoch)) for plan in plans(groups, ranks, batch)]
        return
    mine = plans(groups, ranks, batch)
    shares = [set(numbers(plan, list(plan.once()))) for plan in mine]
    taken = [numbers(plan, list(plan.epoch(epoch))) for plan in mine]
    assert len({plan.steps for plan in mine}) == 1
    dropped = repeated = 0
    for plan, share, rows in zip(mine, shares, taken, strict=True):
        assert len(rows) == plan.steps * batch and set(rows) <= share
        counted = Counter(rows).values()
        assert max(counted) - (min(counted) if len(counted) == len(share) else 0) <= 1  # repeats only after every row was seen
        dropped += len(share - set(rows))
        repeated += len(rows) - len(set(rows))
    said = mine[0].said()
    assert (said["rows_dropped_per_epoch"], said["rows_repeated_per_epoch"]) == (dropped, repeated)
    if total >= ranks * batch:  # what the docstring promises: nothing repeats, and less than a batch a rank is left out
        assert repeated == 0 and dropped < ranks * batch
    crossing = sum(groups_read(mine).values()) - sum(map(len, groups))
    assert said["row_groups_read_by_two_ranks"] <= crossing <= ranks - 1


def groups_read(mine: list[Plan]) -> Counter[tuple[int, int]]:
    return Counter((piece.file, piece.group) for plan in mine for piece in plan.pieces())


@given(files, ranks, batches, st.integers(0, 3), st.data())
def test_resume_goes_on_at_the_next_unseen_batch(groups: list[list[int]], ranks: int, batch: int, epoch: int, data: st.DataObject) -> None:
    plan = plans(groups, ranks, batch, seed=7)[data.draw(st.integers(0, ranks - 1))]
    if plan.total < ranks:
        return
    step = data.draw(st.integers(0, plan.steps))
    assert numbers(plan, list(plan.epoch(epoch, step))) == numbers(plan, list(plan.epoch(epoch)))[step * batch :]


@settings(max_examples=25)
@given(st.integers(0, 1 << 40), st.integers(0, 5))
def test_order_is_a_function_of_seed_and_epoch(seed: int, epoch: int) -> None:
    groups = ((16,) * 20,)
    order = numbers(Plan(groups, 0, 1, 8, seed), list(Plan(groups, 0, 1, 8, seed).epoch(epoch)))
    assert order == numbers(Plan(groups, 0, 1, 8, seed), list(Plan(groups, 0, 1, 8, seed).epoch(epoch)))
    assert sorted(order) == list(range(320))
    for other in (Plan(groups, 0, 1, 8, seed + 1).epoch(epoch), Plan(groups, 0, 1, 8, seed).epoch(epoch + 1)):
        assert numbers(Plan(groups, 0, 1, 8, seed), list(other)) != order


def test_batches_are_mixed_from_many_groups() -> None:
    plan = Plan(((16,) * 64,), 0, 1, 32, 0)
    rows = np.array(numbers(plan, list(plan.epoch(0)))).reshape(-1, 32)
    assert np.mean([len(set(batch // 16)) for batch in rows]) > MIX_GROUPS - 1


def test_resume_reads_no_window_that_it_skips() -> None:
    plan = Plan(((10,) * 32,), 0, 1, 10, 0)
    assert len(list(plan.epoch(0, 31))) == 1 and list(plan.epoch(0, 32)) == []
    with pytest.raises(BadRequest, match="has 32 steps"):
        list(plan.epoch(0, 33))
