"""Splits: quotas, stability, strata (laws over small numbers), the same in Spark, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medspark.errors import BadRequest
from medspark.lake import splits, sql
from medspark.lake.quotas import drawn, parse_parts, quotas
from medspark.lake.splits import Request
from medspark.photos.kind import photos_kind
from tests.lake import harness
from tests.phantoms import photos as phantom

SHARES = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(
    lambda weights: {f"p{place}": weight / sum(weights) for place, weight in enumerate(weights)}
)
UNITS = st.lists(st.integers(0, 12), min_size=1, max_size=6).map(
    lambda counts: [(f"u{stratum}-{number}", f"s{stratum}") for stratum, count in enumerate(counts) for number in range(count)]
)
EPSILON = 1e-6


def assign(units: Iterable[tuple[str, str]], held: dict[str, tuple[str, str]], shares: dict[str, float], seed: int) -> dict[str, str]:
    """unit -> part of every unit, old and new. units : (unit, stratum);  held : unit -> (stratum, part)"""
    fresh = sorted(entry for entry in units if entry[0] not in held)
    names = sorted({stratum for _, stratum in fresh})
    strata = np.array([names.index(stratum) for _, stratum in fresh], np.int64)
    places = drawn([unit for unit, _ in fresh], strata, names, Counter(held.values()), shares, seed)
    parts = {unit: part for unit, (_, part) in held.items()}
    return parts | {unit: list(shares)[place] for (unit, _), place in zip(fresh, places.tolist(), strict=True)}


def held_of(parts: dict[str, str], units: list[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    strata = dict(units)
    return {unit: (strata[unit], part) for unit, part in parts.items()}


@given(SHARES, UNITS, st.integers(0, 5))
def test_a_fresh_split_keeps_the_quota_in_every_stratum(shares: dict[str, float], units: list[tuple[str, str]], seed: int) -> None:
    parts = assign(units, {}, shares, seed)
    assert set(parts) == {unit for unit, _ in units}
    for stratum, n in Counter(stratum for _, stratum in units).items():
        got = Counter(parts[unit] for unit, of in units if of == stratum)
        for part, share in shares.items():
            assert floor(share * n + EPSILON) <= got[part] <= ceil(share * n - EPSILON), (stratum, part)


@given(SHARES, st.integers(0, 60))
def test_strata_of_one_unit_do_not_all_land_in_the_largest_part(shares: dict[str, float], count: int) -> None:
    units = [(f"u{number}", f"s{number}") for number in range(count)]
    got = Counter(assign(units, {}, shares, 1).values())
    assert all(abs(got[part] - share * count) <= 1 + EPSILON for part, share in shares.items())


@given(SHARES, UNITS, st.integers(0, 5), st.data())
def test_the_order_of_the_units_changes_nothing_and_added_units_move_nobody(
    shares: dict[str, float], units: list[tuple[str, str]], seed: int, data: st.DataObject
) -> None:
    assert assign(data.draw(st.permutations(units)), {}, shares, seed) == assign(units, {}, shares, seed)
    first = data.draw(st.lists(st.sampled_from(units), unique=True)) if units else []
    before = assign(first, {}, shares, seed)
    after = assign(units, held_of(before, units), shares, seed)
    assert {unit: after[unit] for unit in before} == before and set(after) == {unit for unit, _ in units}
    again = assign(units, held_of(after, units), shares, seed)
    assert again == after


@given(SHARES, UNITS, UNITS)
def test_new_units_fill_what_old_ones_leave(shares: dict[str, float], old: list[tuple[str, str]], more: list[tuple[str, str]]) -> None:
    """Whatever the old ones' parts are: no part that is above its ceiling gets a new unit while another is below its own."""
    held = Counter((stratum, "p0") for _, stratum in old)  # the worst case: all of them in one part
    new = Counter(stratum for _, stratum in more)
    for stratum, taken in quotas(new, held, shares).items():
        n = new[stratum] + held[stratum, "p0"]
        assert sum(count for _, count in taken) == new[stratum]
        whole = {part: count + held[stratum, part] for part, count in taken}
        grew = [part for part, count in taken if count and whole[part] > ceil(shares[part] * n - EPSILON)]
        assert not grew or all(whole[part] >= ceil(shares[part] * n - EPSILON) for part in shares)


def test_another_seed_is_another_split() -> None:
    units = [(f"u{number}", "") for number in range(40)]
    shares = {"train": 0.5, "test": 0.5}
    assert assign(units, {}, shares, 1) != assign(units, {}, shares, 2)


@pytest.mark.parametrize(
    "text", ["train", "train=0.8", "train=1,test=0.1", "train=0.5,train=0.5", "a b=1", "train=-1,test=2", "train=x,test=0.5"]
)
def test_parts_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="--parts"):
        parse_parts(text)


def test_what_contradicts_itself_is_refused() -> None:
    for request in (Request("a b", 0, {"train": 1.0}), Request("a", 0, {}), Request("a", 0, {}, stratify="x", from_column="y")):
        with pytest.raises(BadRequest):
            request.check()


def photos(spark: Any, lake: Path, folder: Path, count: int, first: int = 0) -> None:
    """Photos of subjects s<n>, two each, in folders that are classes."""
    table = ["file,subject"]
    for number in range(first, first + count):
        for side in "lr":
            where = folder / ("ill" if number % 3 == 0 else "well")
            where.mkdir(parents=True, exist_ok=True)
            (where / f"{number}{side}.png").write_bytes(phantom.png(phantom.picture(8, 9, seed=2 * number + (side == "r"))))
            table.append(f"{number}{side}.png,s{number}")
    harness.run(spark, lake, [folder], photos_kind("folder"), subjects=dict(line.split(",") for line in table[1:]))


@pytest.mark.spark
def test_a_lake_is_split_by_subject_and_keeps_its_parts(spark: Any, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    photos(spark, lake, tmp_path / "first", 15)
    request = Request("main", 7, {"train": 0.6, "val": 0.2, "test": 0.2}, stratify="label:ill")
    opened = sql.opened(spark, str(lake))
    opened.ensure(["splits"])
    result = splits.assign_splits(opened, request, "run1")
    assert result.parts == {"train": 9, "val": 3, "test": 3} == result.added
    rows = harness.rows(lake, "splits")
    ill = {row["subject_key"] for row in harness.rows(lake, "labels") if row["label"] == "ill"}
    strata = {row["subject_key"]: "present" if row["subject_key"] in ill else "absent" for row in harness.rows(lake, "subjects")}
    assert {row["unit_key"]: row["part"] for row in rows} == assign(strata.items(), {}, request.shares, 7), "the table's is the pure one"
    assert Counter((row["stratum"], row["part"]) for row in rows)["present", "train"] == 3
    version = opened.snapshot("splits").version()
    assert splits.assign_splits(opened, request, "run2").added == {}
    assert opened.snapshot("splits").version() == version

    photos(spark, lake, tmp_path / "second", 5, first=15)
    grown = splits.assign_splits(sql.opened(spark, str(lake)), request, "run3")
    assert sum(grown.added.values()) == 5 and grown.parts == {"train": 12, "val": 4, "test": 4}
    after = harness.rows(lake, "splits")
    assert [row for row in after if row["run_id"] == "run1"] == rows and len(after) == 20
    harness.keys_unique(lake)
    for other in (
        Request("main", 8, request.shares, stratify="label:ill"),
        Request("main", 7, {"train": 0.5, "test": 0.5}, stratify="label:ill"),
        Request("main", 7, request.shares),
        Request("main", 7, request.shares, unit="image", stratify="label:ill"),
    ):
        with pytest.raises(BadRequest, match="that split has unit subject, seed 7"):
            splits.assign_splits(opened, other, "run4")
    with pytest.raises(BadRequest, match="no table of the lake has it"):
        splits.assign_splits(opened, Request("x", 1, {"a": 1.0}, stratify="colour_of_eyes"), "run5")
    with pytest.raises(BadRequest, match="expected a column subject_key"):
        splits.assign_splits(opened, Request("x", 1, {"a": 1.0}, query="SELECT image_id FROM photos"), "run5")
    published = Request("published", 0, {}, from_column="dataset")
    assert splits.assign_splits(opened, published, "run5").parts == {"test": 20}
    assert splits.assign_splits(opened, published, "run5").added == {}
    side = "SELECT subject_key, CASE WHEN image_id < '8' THEN 'a' ELSE 'b' END AS side FROM photos"
    with pytest.raises(BadRequest, match="subjects with images in two parts"):
        splits.assign_splits(opened, Request("torn", 0, {}, from_column="side", query=side), "run5")
    moved = "SELECT subject_key, 'elsewhere' AS dataset FROM photos"
    with pytest.raises(BadRequest, match="a part never changes"):
        splits.assign_splits(opened, Request("published", 0, {}, from_column="dataset", query=moved), "run5")
    by_image = splits.assign_splits(opened, Request("within", 1, {"a": 0.5, "b": 0.5}, unit="image", stratify="dataset"), "run6")
    assert by_image.parts == {"a": 20, "b": 20}
    chosen = Request(
        "chosen", 1, {"a": 0.5, "b": 0.5}, stratify="n", query="SELECT subject_key, count(*) AS n FROM photos GROUP BY subject_key"
    )
    assert splits.assign_splits(opened, chosen, "run7").parts == {"a": 10, "b": 10}
    assert {row["stratum"] for row in harness.rows(lake, "splits") if row["split_name"] == "chosen"} == {"2"}
