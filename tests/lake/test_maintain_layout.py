"""Compact, cluster and vacuum: the plan is pure; the rows stay the same; what is pinned, open or young stays."""

from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from medspark.errors import BadRequest
from medspark.lake import pins
from medspark.lake.batch import Batch
from medspark.lake.store import Lake
from medspark.lake.upkeep import layout, vacuum
from medspark.lake.upkeep.layout import SMALL_BYTES, Laid
from tests.lake import harness
from tests.lake.patients import age, files, two_patients, upkeep
from tests.phantoms import series as phantoms

BIG = SMALL_BYTES + 1


def laid(path: str, low: Any, high: Any, size: int = BIG) -> Laid:
    wrap = lambda value: value if isinstance(value, tuple) else (value,)
    return Laid(path, size, 1, wrap(low), wrap(high))


def overlapping(files: list[Laid]) -> bool:
    return any(
        not layout._after(a.high, b.low) and not layout._after(b.high, a.low)
        for a, b in itertools.combinations(files, 2)
        if a.low and b.low
    )


def test_what_overlaps_is_laid_anew_and_nothing_else() -> None:
    clean = [laid("a", "a", "c"), laid("b", "c", "f"), laid("c", "f", "k")]  # sharing the last key is no overlap
    assert layout.stale(clean) == []
    reaching = laid("d", "d", "g")
    assert [sorted(file.path for file in group) for group in layout.stale([*clean, reaching])] == [["b", "c", "d"]]


def test_small_neighbours_are_merged_where_that_makes_fewer() -> None:
    tiny = [laid(str(place), f"{place:02d}", f"{place:02d}", 1 << 20) for place in range(9)]
    assert [len(group) for group in layout.stale(tiny)] == [9]
    apart = [laid("0", "0", "0", 1 << 20), laid("1", "1", "2"), laid("3", "3", "3", 1 << 20)]
    assert layout.stale(apart) == [], "a large file stands between them"
    assert [len(group) for group in layout.small(apart)] == [2]
    assert layout.small(tiny[:1]) == []


def test_a_constant_first_column_leaves_the_second_to_decide() -> None:
    one = [laid("a", ("d", "a"), ("d", "f")), laid("b", ("d", "f"), ("d", "k"))]
    assert layout.stale(one) == []
    assert len(layout.stale([*one, laid("c", ("d", "b"), ("d", "g"))])[0]) == 3


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_stretches_that_no_other_file_reaches_into(seed: int) -> None:
    chance = random.Random(seed)
    found = []
    for place in range(chance.randint(2, 30)):
        ends = sorted(f"{chance.randint(0, 60):02d}" for _ in range(2))
        found.append(laid(str(place), ends[0], ends[1], chance.choice([1 << 20, BIG, 50 << 20])))
    groups = layout.stale(found)
    moved = {file.path for group in groups for file in group}
    assert not overlapping([file for file in found if file.path not in moved]), "what stays does not overlap"
    for group in groups:
        ends = laid("group", min(file.low for file in group), max(file.high for file in group))
        outside = [file for file in found if file not in group]
        assert not any(overlapping([ends, file]) and file.path not in moved for file in outside)


@pytest.mark.parametrize("seed", range(40))
def test_what_was_laid_out_is_at_rest(seed: int) -> None:
    chance = random.Random(seed)
    found = []
    for place in range(chance.randint(2, 12)):
        ends = sorted(f"{chance.randint(0, 60):02d}" for _ in range(2))
        found.append(laid(str(place), ends[0], ends[1], chance.choice([1 << 12, 1 << 20, 10 << 20, BIG])))
    groups = layout.stale(found)
    after = [file for file in found if not any(file in group for group in groups)]
    for number, group in enumerate(groups):
        count = layout.parts(group)
        lows = sorted(file.low[0] for file in group)
        cuts = [lows[0], *(lows[len(lows) * part // count] for part in range(1, count)), max(file.high[0] for file in group)]
        size = sum(file.size for file in group) // count
        after += [laid(f"new{number}-{part}", cuts[part], cuts[part + 1], size) for part in range(count)]
    assert layout.stale(after) == []


def test_which_batch_wrote_a_file() -> None:
    assert vacuum.of_batch("part-0123abcd-44.parquet") == "0123abcd"
    assert vacuum.of_batch("part-0123abcd.parquet") == "0123abcd"
    assert vacuum.of_batch("claim-0123abcd-5.parquet") == "0123abcd"
    assert vacuum.of_batch("x.parquet") == ""


# ---- on a lake


def many_batches(spark: Any, where: Path, count: int) -> Path:
    """A lake that was filled by so many batches."""
    lake = where / "lake"
    for place in range(count):
        uids = {
            "SeriesInstanceUID": f"{phantoms.ROOT}9{place}",
            "SOPInstanceUID": (f"7.{place}.1", f"7.{place}.2"),
            "PatientID": f"P{place}",
        }
        harness.run(spark, lake, [phantoms.write_series(where / f"s{place}", [0, 2], **uids)])
    return lake


@pytest.mark.spark
def test_cluster_keeps_every_row_and_makes_look_ups_open_one_file(spark: Any, tmp_path: Path) -> None:
    lake = many_batches(spark, tmp_path, 3)
    before = harness.content(lake)
    payload = files(lake, "pixels")
    assert len(Lake(spark, str(lake)).files("slices")) == 3
    planned = upkeep(spark, lake, cluster=True, dry_run=True)["clustered"]
    assert planned["slices"]["files"] == 3 and len(Lake(spark, str(lake)).files("slices")) == 3
    said = upkeep(spark, lake, cluster=True)["clustered"]
    assert said["slices"]["files_before"] == 3 and said["slices"]["files_after"] == 1 and said["slices"]["rows"] == 6
    assert harness.content(lake) == before
    assert files(lake, "pixels") == payload
    there = Lake(spark, str(lake)).actions("slices")[0]
    assert there["min.series_id"] and there["min.image_id"] and there["num_records"] == 6
    order = [(row["series_id"], row["k"]) for row in harness.rows(lake, "slices")]
    assert order == sorted(order)
    assert upkeep(spark, lake, cluster=True)["clustered"] == {}, "a second run finds nothing to do"
    # Rows only moved: whoever follows the table sees no change, and ingest goes on as before.
    log = sorted((lake / "slices" / "_delta_log").glob("*.json"))[-1].read_text()
    assert '"dataChange":true' not in log and '"dataChange":false' in log
    harness.run(
        spark,
        lake,
        [
            phantoms.write_series(
                tmp_path / "s0",
                [0, 2, 4],
                PatientID="P0",
                SeriesInstanceUID=phantoms.ROOT + "90",
                SOPInstanceUID=("7.0.1", "7.0.2", "7.0.3"),
            )
        ],
    )
    assert len(harness.rows(lake, "slices")) == 7
    harness.keys_unique(lake)
    assert spark.read.format("delta").load(str(lake / "slices")).count() == 7


@pytest.mark.spark
def test_files_are_cut_at_their_size_and_do_not_overlap(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = many_batches(spark, tmp_path, 3)
    before = harness.content(lake)
    monkeypatch.setattr(layout, "NARROW_FILE_BYTES", 18_000)
    monkeypatch.setattr(layout, "SMALL_BYTES", 9_000)
    upkeep(spark, lake, cluster=True)
    found = [layout.laid(action, layout.order("slices")) for action in Lake(spark, str(lake)).actions("slices")]
    assert len(found) > 1 and not overlapping(found)
    assert harness.content(lake) == before


@pytest.mark.spark
def test_vacuum_counts_what_it_removes_and_keeps_what_is_needed(spark: Any, tmp_path: Path) -> None:
    lake, _ = two_patients(spark, tmp_path)
    here = Lake(spark, str(lake))
    pinned = {"slices": here.snapshot("slices").version(), "series": here.snapshot("series").version()}
    pins.pin(here, "run-7", pinned, model="none")
    upkeep(spark, lake, compact=True)
    third = phantoms.write_series(
        tmp_path / "third", [0, 2], PatientID="P3", SeriesInstanceUID=phantoms.ROOT + "71", SOPInstanceUID=("6.1", "6.2")
    )
    harness.run(spark, lake, [third])
    upkeep(spark, lake, cluster=True)
    before = harness.content(lake)
    stray = lake / "pixels" / "part-feedfeedfeedfeedfeedfeedfeedfeed-000000000000.parquet"
    stray.write_bytes(files(lake, "pixels")[0].read_bytes())
    (lake / "_medspark" / "scan-dead-1" / "journal").mkdir(parents=True)
    (lake / "_medspark" / "scan-dead-1" / "journal" / "0-0-0.open").write_text("")
    young = upkeep(spark, lake, vacuum_hours=0, dry_run=True)["vacuumed"]
    assert young["unknown"] == 0 and young["files"], "a file of this minute may be somebody's who holds no claim"

    old = {table: set(files(lake, table)) - {Path(path) for path in here.files(table)} for table in ("slices", "series", "pixels")}
    age(lake, 30)
    planned = upkeep(spark, lake, vacuum_hours=25, dry_run=True)["vacuumed"]
    assert planned["unknown"] == 1 and stray.exists()
    said = upkeep(spark, lake, vacuum_hours=25)["vacuumed"]
    assert said["unknown"] == 1 and not stray.exists() and said["tables"] == {"pixels": 1}, "removals are an hour old at most"
    assert said["folders"] >= 1 and not (lake / "_medspark" / "scan-dead-1").exists()

    held = {Path(path) for table in pinned for path in here.files(table, pinned[table])}
    said = upkeep(spark, lake, vacuum_hours=0)["vacuumed"]
    gone = {path for paths in old.values() for path in paths if not path.exists()}
    assert gone and not gone & held and said["tables"].get("slices", 0) == len(gone & old["slices"])
    assert here.read("slices", ["image_id"], files=here.files("slices", pinned["slices"])).num_rows == 5
    assert harness.content(lake) == before

    assert pins.unpin(here, "run-7") and not pins.unpin(here, "run-7")
    upkeep(spark, lake, vacuum_hours=0)
    assert {path for path in held if path.exists()} <= {Path(path) for table in pinned for path in here.files(table)}
    assert harness.content(lake) == before
    assert upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"] == []


@pytest.mark.spark
def test_an_open_batch_is_left_in_peace(spark: Any, tmp_path: Path) -> None:
    lake, _ = two_patients(spark, tmp_path)
    here = Lake(spark, str(lake))
    batch = Batch(here, "run", "explode_series", "x", 60.0)
    assert batch.claim(["somebody"], {})
    payload = lake / "pixels" / f"part-{batch.batch_id}-0.parquet"
    payload.write_bytes(b"not yet committed")
    (lake / "_medspark" / batch.batch_id).mkdir()
    age(lake, 100)
    with pytest.raises(BadRequest, match="is open"):
        upkeep(spark, lake, vacuum_hours=1)
    with pytest.raises(BadRequest, match="is open"):
        upkeep(spark, lake, vacuum_hours=23.9)
    upkeep(spark, lake, vacuum_hours=24)
    assert payload.exists() and (lake / "_medspark" / batch.batch_id).exists()
    batch.release()
    assert upkeep(spark, lake, vacuum_hours=1)["vacuumed"]["tables"]["pixels"] == 1
    assert not payload.exists()


@pytest.mark.spark
def test_while_the_lake_is_held_no_batch_opens(spark: Any, tmp_path: Path) -> None:
    from medspark.lake.upkeep.alone import alone

    lake, _ = two_patients(spark, tmp_path)
    here = Lake(spark, str(lake))
    waited: list[float] = []
    with alone(here, "a test", "run", 60.0) as held:
        batch = Batch(here, "run", "explode_series", "x", 60.0)

        def waiting() -> None:
            waited.append(time.monotonic())
            held.release()

        assert batch.claim(["somebody"], {}, waiting) == ["somebody"]
    assert len(waited) == 1
    batch.release()
    assert harness.rows(lake, "claims") == []


def test_pins_are_checked(spark: Any, tmp_path: Path) -> None:
    lake, _ = two_patients(spark, tmp_path)
    here = Lake(spark, str(lake))
    with pytest.raises(BadRequest, match="no table nowhere"):
        pins.pin(here, "a", {"nowhere": 0})
    with pytest.raises(BadRequest, match="a name is letters"):
        pins.pin(here, "../a", {"slices": 0})
    card = lake / "feeds" / "lungs" / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"tables": {"slices": 1}, "files": []}))
    assert [(pin.name, dict(pin.tables)) for pin in pins.pins(here)] == [("feed:lungs", {"slices": 1})]
    card.write_text("{")
    with pytest.raises(BadRequest, match="not valid JSON"):
        upkeep(spark, lake, vacuum_hours=0)


@pytest.mark.spark
def test_layout_gives_way_to_an_ingest_that_changed_a_file(spark: Any, tmp_path: Path) -> None:
    """A file of the group is exchanged between the sort and the commit: nothing is committed, nothing left behind, the next plan succeeds."""
    lake = many_batches(spark, tmp_path, 3)
    here = Lake(spark, str(lake))
    work = layout.plan(here, "slices", True)
    victim = here.actions("slices")[0]["min.series_id"]
    here.rewrite("slices", lambda rows: rows.filter(pc.equal(rows.column("frame_number"), 1)), "series_id", [victim])
    before = harness.content(lake)
    there = files(lake, "slices")
    assert layout.rewrite(here, "slices", work.groups[0], "batch") is None
    assert files(lake, "slices") == there
    assert layout.lay_out(here, True, "batch")["slices"]["files_after"] == 1
    assert harness.content(lake) == before
