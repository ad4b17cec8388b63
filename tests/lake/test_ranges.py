"""Cuts, loads and shares are pure: laws that hold for every table."""

from __future__ import annotations

from bisect import bisect_right

from hypothesis import given, settings
from hypothesis import strategies as st

from medspark.lake.upkeep.ranges import Place, Sample, cuts, edges, loads, rank, shares

KEYS = st.tuples(st.text("ab\U0001f600", max_size=2), st.none() | st.integers(0, 3))
PLACES = st.lists(st.tuples(KEYS, st.integers(0, 4)), max_size=60)
SIZES = st.lists(st.integers(0, 50), max_size=40)


def ranked(places: list[tuple[tuple[str, int | None], int]]) -> list[Place]:
    return sorted((rank(key), number) for key, number in places)


@given(PLACES, st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_cells_follow_each_other_and_hold_every_row_once(places: list[tuple[tuple[str, int | None], int]], aim: int) -> None:
    rows = ranked(places)
    found = cuts([Sample(row, 1.0) for row in rows], aim)
    assert found == sorted(set(found))
    ends = edges(found, len(rows), rows.__getitem__)
    assert ends == sorted(ends) and len(ends) == len(found) + 1 and ends[-1] == len(rows)
    cells = [bisect_right(found, row) for row in rows]
    assert ends == [sum(cell <= one for cell in cells) for one in range(len(found) + 1)], "both sides agree which cell a row is in"
    for cell in range(len(ends)):
        inside = [row for row, of in zip(rows, cells, strict=True) if of == cell]
        # Where every row is a sample a cell is what was asked for, or ends with rows that stand at one place.
        at_one = max((inside.count(row) for row in set(inside)), default=0)
        assert len(inside) <= aim + at_one


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=64, max_size=64), min_size=1, max_size=6), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_cell_is_off_by_a_sample_of_every_file(files: list[list[int]], count: int) -> None:
    every = 8
    samples = [
        Sample((rank((key,)), number), float(every)) for number, keys in enumerate(files) for key in sorted(set(keys))[every // 2 :: every]
    ]
    rows = ranked([((key,), number) for number, keys in enumerate(files) for key in set(keys)])  # type: ignore[misc]
    aim = max(1, len(rows) // count)
    ends = edges(cuts(samples, aim), len(rows), rows.__getitem__)
    largest = max(after - before for before, after in zip([0, *ends], ends, strict=False))
    assert largest <= aim + every * (len(files) + 1)


def test_a_key_that_all_rows_have_is_cut_between_files() -> None:
    samples = [Sample((rank(("same",)), number), 10.0) for number in range(9) for _ in range(3)]
    found = cuts(samples, 30.0)
    assert [number for _, number in found] == list(range(1, 9))


@given(SIZES, st.integers(1, 100))
def test_loads_are_bounded_and_leave_nothing_out(sizes: list[int], most: int) -> None:
    found = list(loads(sizes, most))
    assert [cell for load in found for cell in load] == list(range(len(sizes)))
    assert all(len(load) == 1 or sum(sizes[cell] for cell in load) <= most for load in found)


@given(SIZES, st.integers(1, 9))
def test_shares_are_even(sizes: list[int], count: int) -> None:
    found = list(shares(sizes, count))
    assert [load for share in found for load in share] == list(range(len(sizes)))
    assert len(found) <= count
    for share in found:
        assert sum(sizes[load] for load in share) <= sum(sizes) / count + 2 * max(sizes)
