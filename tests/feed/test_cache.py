"""Copies on the local disk: nothing is fetched twice that could stay, the budget holds, kills and damage cost a fetch and never a wrong batch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medspark.errors import BadRequest
from medspark.feed.cache import Cache, _Order
from medspark.feed.open import open_feed
from medspark.feed.plan import plans
from medspark.feed.reader import Batch
from medspark.feed.shelf import Shelf
from tests.phantoms.feeds import write_feed
from tests.phantoms.slow_store import SlowStore

PLENTY = 1 << 30
GROUPS = 30


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(a.row_ids == b.row_ids and np.array_equal(a.images, b.images) for a, b in zip(one, other))


def feed_of(tmp_path: Path) -> object:
    write_feed(tmp_path, side=16, parts={"train": 4 * GROUPS, "val": 8}, group_rows=4)
    return open_feed(str(tmp_path), "phantom")


def reader_of(
    feed: object, store: SlowStore, tmp_path: Path, budget: int = PLENTY, stage: bool = False, rank: int = 0, ranks: int = 1
) -> object:
    where = (store.arrow(), f"{feed.lake}/feeds/{feed.name}")
    return feed.reader("train", 4, rank, ranks, seed=1, cache=Cache(str(tmp_path / "cache"), budget, stage), store=where)


def settled(reader: object, groups: int) -> None:
    """Waits until the walker has nothing more to stage."""
    for _ in range(400):
        if reader.metrics()["cache/staged"] + reader.metrics()["cache/kept"] >= groups:
            return
        time.sleep(0.01)
    raise AssertionError(reader.metrics())


@pytest.mark.parametrize("stage", [False, True])
def test_the_store_is_asked_once_for_each_row_group(tmp_path: Path, stage: bool) -> None:
    """A simulated store: what it is asked for is counted. Once in the first epoch is what a reader without a cache takes; then never again."""
    feed = feed_of(tmp_path)
    plain, store = SlowStore(), SlowStore()
    bare = feed.reader("train", 4, seed=1, store=(plain.arrow(), f"{feed.lake}/feeds/{feed.name}"))
    expected = [list(bare.epoch(epoch)) for epoch in range(3)]
    bare.close()
    reader = reader_of(feed, store, tmp_path, stage=stage)
    epochs = [list(reader.epoch(0))]
    settled(reader, GROUPS)
    after_first = (store.requests, store.bytes_read)
    said = reader.metrics()
    assert said["cache/misses"] + said["cache/staged"] == GROUPS  # none twice
    epochs += [list(reader.epoch(epoch)) for epoch in (1, 2)]
    assert (store.requests, store.bytes_read) == after_first
    assert all(map(same, epochs, expected))
    said = reader.metrics()
    assert said["cache/hits"] + said["cache/late_hits"] >= 2 * GROUPS and said["cache/store_bytes"] > 0 < said["cache/disk_bytes"]
    reader.close()
    again = reader_of(feed, store, tmp_path, stage=stage)  # a run that goes on finds the copies, and so does another one
    assert same(list(again.epoch(1)), expected[1]) and again.metrics()["cache/hit_rate"] == 1.0
    assert same(list(again.once()), [*feed.reader("train", 4).once()])
    again.close()
    assert store.bytes_read - after_first[1] == 0


def test_the_next_epoch_is_staged_while_this_one_stands_still(tmp_path: Path) -> None:
    feed = feed_of(tmp_path)
    store = SlowStore()
    reader = reader_of(feed, store, tmp_path, stage=True)
    batches = reader.epoch(0)
    next(batches)
    settled(reader, GROUPS)  # the trainer took one batch: the walker has fetched the rest
    assert reader.metrics()["cache/staged"] >= GROUPS // 3
    asked = store.requests
    list(batches)
    assert store.requests == asked
    reader.close()


@pytest.mark.parametrize("stage", [False, True])
def test_a_budget_for_half_serves_half_of_every_epoch(tmp_path: Path, stage: bool) -> None:
    feed = feed_of(tmp_path)
    whole = reader_of(feed, SlowStore(), tmp_path / "whole")
    expected = [list(whole.epoch(epoch)) for epoch in range(4)]
    blob = max(path.stat().st_size for path in (tmp_path / "whole" / "cache").iterdir() if not path.name.startswith("index.db"))
    whole.close()
    store = SlowStore()
    budget = blob * GROUPS // 2
    reader = reader_of(feed, store, tmp_path, budget, stage)
    shelf = Shelf(str(tmp_path / "cache"), budget)
    for epoch in range(4):
        before = reader.metrics()
        assert same(list(reader.epoch(epoch)), expected[epoch])
        assert shelf.used() <= budget
        after = reader.metrics()
        if epoch:
            asked = sum(after[f"cache/{name}"] - before[f"cache/{name}"] for name in ("hits", "late_hits", "misses"))
            hits = asked - (after["cache/misses"] - before["cache/misses"])
            assert hits / asked >= 0.4  # a least-recently-used shelf would serve none or few of a shuffled order
    assert reader.metrics()["cache/evicted"] > 0
    reader.close()
    shelf.close()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 14), st.integers(1, 14), st.integers(0, 1000))
def test_what_fits_is_hit_in_every_epoch(tmp_path_factory: pytest.TempPathFactory, groups: int, capacity: int, seed: int) -> None:
    """The law of the eviction: with room for c of n blobs that are each needed once an epoch, every epoch after the first hits at least c."""
    shelf = Shelf(str(tmp_path_factory.mktemp("shelf") / "s"), capacity * 10)
    orders = [np.random.default_rng([seed, epoch]).permutation(groups).tolist() for epoch in range(5)]
    for epoch in range(4):
        hits = 0
        for at, group in enumerate(orders[epoch]):
            now, due = epoch + at / groups, epoch + 1 + orders[epoch + 1].index(group) / groups
            if shelf.get(str(group), due) is not None:
                hits += 1
            else:
                shelf.put(str(group), bytes([group]) * 10, due, now)
            assert shelf.used() <= capacity * 10
        assert hits >= min(capacity, groups) * (epoch > 0)
    shelf.close()


def test_what_a_gone_run_left_leaves_first(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path / "s"), 30)
    assert shelf.put("old", b"0" * 10, due=0.5, now=0.0)  # of a run that ended at epoch 0
    assert shelf.put("soon", b"1" * 10, due=5.1, now=5.0) and shelf.put("later", b"2" * 10, due=5.9, now=5.0)
    assert shelf.put("new", b"3" * 10, due=5.5, now=5.0) and shelf.get("old") is None and shelf.get("later") == b"2" * 10
    assert not shelf.room(10, due=6.5, now=5.0) and not shelf.put("useless", b"4" * 10, due=6.5, now=5.0)
    assert shelf.put("urgent", b"5" * 10, due=5.2, now=5.0) and shelf.get("later") is None
    assert not shelf.put("huge", b"6" * 31, due=5.0, now=5.0) and shelf.get("urgent") == b"5" * 10
    shelf.close()


def test_a_damaged_copy_is_fetched_again(tmp_path: Path) -> None:
    feed, store = feed_of(tmp_path), SlowStore()
    reader = reader_of(feed, store, tmp_path)
    expected = list(reader.epoch(0))
    settled(reader, GROUPS)
    reader.close()
    blobs = sorted(path for path in (tmp_path / "cache").iterdir() if not path.name.startswith("index.db"))
    data = bytearray(blobs[0].read_bytes())
    data[len(data) // 2] ^= 4
    blobs[0].write_bytes(data)
    blobs[1].write_bytes(blobs[1].read_bytes()[:-7])
    blobs[2].unlink()
    again = reader_of(feed, store, tmp_path)
    assert same(list(again.epoch(0)), expected)
    assert again.metrics()["cache/damaged"] == 3 and again.metrics()["cache/misses"] == 3
    assert same(list(again.epoch(0)), expected) and again.metrics()["cache/misses"] == 3
    again.close()


WRITER = """
import sys
from medspark.feed.shelf import Shelf
shelf = Shelf(sys.argv[1], 40 * 100_000)
print("ready", flush=True)
for number in range(10**9):
    shelf.put(f"{number}-x", number.to_bytes(4, "little") * 25_000, due=number / 1e6 + 1, now=number / 1e6)
    shelf.get(f"{max(0, number - 3)}-x", number / 1e6 + 1)
"""


def test_killed_at_any_instant(tmp_path: Path) -> None:
    folder = str(tmp_path / "s")
    random = np.random.default_rng(0)
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(random.uniform(0.005, 0.08))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        shelf = Shelf(folder, 40 * 100_000)
        index = sqlite3.connect(f"{folder}/index.db")
        rows = dict(index.execute("SELECT key, bytes FROM blobs WHERE ready = 1").fetchall())
        assert index.execute("SELECT count(*) FROM blobs WHERE ready = 0").fetchone() == (0,)
        index.close()
        assert {name for name in os.listdir(folder) if not name.startswith("index.db")} == rows.keys()
        assert sum(rows.values()) == shelf.used() <= 40 * 100_000
        for key in rows:
            assert shelf.get(key) == int(key.removesuffix("-x")).to_bytes(4, "little") * 25_000
        assert shelf.damaged == 0
        shelf.close()


def one_rank(lake: str, cache: str, budget: int, rank: int, results: object) -> None:
    feed, store = open_feed(lake, "phantom"), SlowStore()
    reader = feed.reader("train", 4, rank, 2, seed=1, cache=Cache(cache, budget), store=(store.arrow(), f"{lake}/feeds/phantom"))
    plain = feed.reader("train", 4, rank, 2, seed=1)
    equal = all(same(list(reader.epoch(epoch)), list(plain.epoch(epoch))) for epoch in range(6))
    results.put((rank, equal, reader.metrics()["cache/hit_rate"], Shelf(cache, budget).used() <= budget))
    reader.close()
    plain.close()


@pytest.mark.parametrize("fraction", [2, 0.4])
def test_ranks_of_a_node_share_a_folder(tmp_path: Path, fraction: float) -> None:
    feed_of(tmp_path)
    size = sum(file.bytes for file in open_feed(str(tmp_path), "phantom").card.files_of("train"))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    budget = int(size * fraction)
    ranks = [context.Process(target=one_rank, args=(str(tmp_path), str(tmp_path / "cache"), budget, rank, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    said = [results.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    assert all(equal and fits for _, equal, _, fits in said)
    assert all(rate > (0.8 if fraction > 1 else 0.1) for _, _, rate, _ in said)


def test_the_folder_is_ours_alone_and_the_budget_possible(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path / "deep" / "cache"), 1000)
    assert stat.S_IMODE((tmp_path / "deep" / "cache").stat().st_mode) == 0o700
    shelf.close()
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(BadRequest, match="others could read"):
        Shelf(str(tmp_path / "open"), 1000)
    with pytest.raises(BadRequest, match="its disk has"):
        Shelf(str(tmp_path / "big"), 1 << 60)
    with pytest.raises(BadRequest, match="above 0"):
        Shelf(str(tmp_path / "none"), 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="cache folder"):
        Shelf(str(tmp_path / "file"), 10)
    (tmp_path / "bad").mkdir(mode=0o700)
    (tmp_path / "bad" / "index.db").write_text("not a database, but long enough to be read as the header of one" * 40)
    with pytest.raises(BadRequest, match="delete the folder"):
        Shelf(str(tmp_path / "bad"), 1000)


def test_a_full_disk_costs_speed_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, store = feed_of(tmp_path), SlowStore()
    expected = list(feed.reader("train", 4, seed=1).epoch(0))
    reader = reader_of(feed, store, tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert same(list(reader.epoch(0)), expected)
    assert reader.metrics()["cache/kept"] == 0
    reader.close()


def test_an_index_that_breaks_costs_speed_and_not_the_run(tmp_path: Path) -> None:
    feed, store = feed_of(tmp_path), SlowStore()
    expected = [list(feed.reader("train", 4, seed=1).epoch(epoch)) for epoch in range(3)]
    reader = reader_of(feed, store, tmp_path, stage=True)
    batches = reader.epoch(0)
    got = [next(batches)]
    for name in ("index.db", "index.db-wal"):
        path = tmp_path / "cache" / name
        if path.exists():
            path.write_bytes(b"junk" * 5000)
    assert same(got + list(batches), expected[0])
    assert same(list(reader.epoch(1)), expected[1]) and reader.metrics()["cache/failed"] > 0
    reader.close()


@given(st.lists(st.lists(st.integers(1, 5), max_size=5), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 3))
def test_every_row_group_has_one_place_in_every_epoch(groups: list[list[int]], ranks: int, epoch: int) -> None:
    for plan in plans(groups, ranks, 2, seed=3):
        if not plan.rows:
            continue
        order = _Order(plan)
        share = [(piece.file, piece.group) for piece in plan.pieces()]
        assert sorted(order.group(epoch, at) for at in range(order.length)) == sorted(share)
        assert all(order.group(epoch, order.place(group, epoch)) == group for group in share)
        read = list(dict.fromkeys((piece.file, piece.group) for window in plan.epoch(epoch) for piece in window.pieces))
        assert [order.group(epoch, at) for at in range(len(read))] == read


def test_petastorm_reads_files_by_itself(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="use kind arrow"):
        feed_of(tmp_path).reader("train", 4, kind="petastorm", cache=Cache(str(tmp_path / "cache"), 100))


def test_a_new_folder_may_be_opened_by_all_ranks_at_once(tmp_path: Path) -> None:
    """SQLite does not wait its turn when a new index is switched to its write-ahead log: it says at once that another is at it."""
    together = threading.Barrier(4)

    def opened(place: int) -> int:
        together.wait()
        shelf = Shelf(str(tmp_path / str(place)), 1000)
        try:
            return shelf.used()
        finally:
            shelf.close()

    with ThreadPoolExecutor(4) as ranks:
        for place in range(40):
            assert list(ranks.map(opened, [place] * 4)) == [0] * 4
