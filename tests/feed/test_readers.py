"""Readers on real files: two kinds equal batch by batch, ranks in step, every row once, resumable, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.feed.open import Feed, open_feed
from medspark.feed.reader import BadRow, Batch, MissingRows, Reader
from tests.phantoms.feeds import Made, write_feed

KINDS = ("arrow", "petastorm")


def taken(batches: list[Batch]) -> list[str]:
    return [row_id for batch in batches for row_id in batch.row_ids]


def equal(one: Batch, other: Batch) -> bool:
    if one.row_ids != other.row_ids:
        return False
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("images", "masks", "known", "targets", "weights")]
    return all((a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")) for a, b in pairs)


def assert_true(batch: Batch, made: Made) -> None:
    """The batch holds what was written."""
    for at, row_id in enumerate(batch.row_ids):
        sample = made.truth[row_id]
        assert np.array_equal(batch.images[at], sample.image) and batch.images.dtype == sample.image.dtype
        assert np.array_equal(batch.targets[at], sample.target) and batch.weights[at] == np.float32(sample.weight)
        if sample.masks is None:
            assert batch.masks is None and batch.known is None
        else:
            assert np.array_equal(batch.masks[at], sample.masks) and np.array_equal(batch.known[at], sample.known)


def opened(tmp_path: Path, **options: object) -> tuple[Made, Feed]:
    made = write_feed(tmp_path, **options)
    return made, open_feed(str(tmp_path), "phantom")


@pytest.mark.parametrize("kind", ["tiles", "slices", "volumes"])
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_all_sources_give_equal_true_batches(tmp_path: Path, kind: str, task: str) -> None:
    made, feed = opened(tmp_path, kind=kind, task=task, labels=("disc", "square"))
    far = (pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), feed.uri)  # read as an object store is
    for rank in range(2):
        readers: list[Reader] = [
            feed.reader("train", 4, rank, 2, seed=3, kind=name, workers=2, store=store)
            for name, store in (("arrow", None), ("arrow", far), ("petastorm", None))
        ]
        for epoch in (0, 1, 5):
            disk, *others = (list(reader.epoch(epoch)) for reader in readers)
            assert len(disk) == readers[0].steps_per_epoch == 5
            assert all(len(other) == 5 and all(map(equal, disk, other)) for other in others)
            for batch in disk:
                assert len(batch) == 4
                assert_true(batch, made)
        disk, *others = (list(reader.once()) for reader in readers)
        assert all(len(other) == len(disk) and all(map(equal, disk, other)) for other in others)
        for reader in readers:
            reader.close()


def test_files_whose_payloads_are_packed_are_read_all_the_same(tmp_path: Path) -> None:
    made, feed = opened(tmp_path, side=16, parts={"train": 24}, group_rows=4)
    for path in feed.paths("train"):
        pq.write_table(pq.read_table(path), path, row_group_size=4, compression="zstd")
    with closing(feed.reader("train", 4, workers=2)) as reader:
        for batch in reader.epoch(0):
            assert_true(batch, made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_step_together_and_see_every_row_once(tmp_path: Path, kind: str, ranks: int) -> None:
    made, feed = opened(tmp_path, side=16, parts={"train": 37, "val": 5}, group_rows=5)
    readers: list[Reader] = [feed.reader("train", 3, rank, ranks, kind=kind, workers=1) for rank in range(ranks)]
    epochs = [list(reader.epoch(0)) for reader in readers]
    assert {len(batches) for batches in epochs} == {37 // (3 * ranks)}
    seen = [row_id for batches in epochs for row_id in taken(batches)]
    assert len(set(seen)) == len(seen)
    everything = [row_id for reader in readers for row_id in taken(list(reader.once()))]
    assert tuple(everything) == made.order["train"]
    few = [feed.reader("val", 3, rank, ranks, kind=kind) for rank in range(ranks)]
    assert (
        tuple(row_id for reader in few for row_id in taken(list(reader.once()))) == made.order["val"]
    )  # also where some ranks have no row
    for reader in readers + few:
        reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_order_does_not_depend_on_workers_and_resumes(tmp_path: Path, kind: str) -> None:
    _, feed = opened(tmp_path, side=16, parts={"train": 120}, group_rows=4)
    one, many = (feed.reader("train", 5, seed=11, kind=kind, workers=workers) for workers in (1, 4))
    whole = {epoch: list(one.epoch(epoch)) for epoch in (2, 3)}
    for epoch in (2, 3):  # in sequence: the second is loaded ahead
        assert all(map(equal, whole[epoch], many.epoch(epoch)))
    for step in (0, 1, 13, 23, 24):
        assert all(map(equal, whole[2][step:], many.epoch(2, step)))
        assert len(list(many.epoch(2, step))) == 24 - step
    assert taken(whole[2]) != taken(whole[3]) and set(taken(whole[2])) == set(taken(whole[3]))
    other = feed.reader("train", 5, seed=12, kind=kind)
    assert taken(list(other.epoch(2))) != taken(whole[2])
    assert many.metrics()["reader/rows"] > 0
    for reader in (one, many, other):
        reader.close()


def test_an_epoch_may_be_left_early(tmp_path: Path) -> None:
    _, feed = opened(tmp_path, side=16, parts={"train": 80}, group_rows=4)
    reader = feed.reader("train", 4, seed=1)
    first = next(iter(reader.epoch(0)))
    assert equal(first, next(iter(reader.epoch(0))))
    whole = list(reader.epoch(0))
    assert equal(first, whole[0]) and len(whole) == 20
    interleaved = [pair for pair in zip(reader.epoch(1), reader.epoch(1), strict=True)]
    assert all(equal(*pair) for pair in interleaved)
    reader.close()


def spoiled(made: Made, folder: Path, change: object) -> None:
    """Rewrites the first training file with ``change`` applied to its rows, as a disk that rots would, behind the card's back."""
    path = folder / "feeds" / "phantom" / made.card.files[0].path
    table = pq.read_table(path)
    rows = change(table.to_pylist())
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path, row_group_size=8, compression="none")


def without_image(row: dict, data: bytes) -> dict:
    return {**row, "image": data}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image", ["tiles", "slices"])
def test_a_row_that_cannot_be_decoded_is_named(tmp_path: Path, kind: str, image: str) -> None:
    made, feed = opened(tmp_path, kind=image)
    bad = made.order["train"][9]
    spoiled(made, tmp_path, lambda rows: [without_image(r, r["image"][: len(r["image"]) // 3]) if r["row_id"] == bad else r for r in rows])
    stopping: Reader = feed.reader("train", 4, kind=kind)
    with pytest.raises(BadRow, match=bad):
        list(stopping.epoch(0))
    skipping = feed.reader("train", 4, kind=kind, bad_rows="skip")
    batches = list(skipping.epoch(0))
    assert len(batches) == skipping.steps_per_epoch and list(skipping.bad) == [bad] and skipping.metrics()["reader/bad_rows"] == 1
    for batch in batches:
        for at, row_id in enumerate(batch.row_ids):
            if row_id == bad:
                assert not batch.images[at].any() and not batch.masks[at].any() and not batch.known[at].any()
                assert np.isnan(batch.targets[at]).all() and batch.weights[at] == 0
    skipping.close()
    stopping.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_another_size_is_a_bad_row(tmp_path: Path, kind: str) -> None:
    made, feed = opened(tmp_path)
    small = write_feed(tmp_path / "small", side=32)
    data = pq.read_table(tmp_path / "small" / "feeds" / "phantom" / small.card.files[0].path)["image"][0].as_py()
    bad = made.order["train"][2]
    spoiled(made, tmp_path, lambda rows: [without_image(r, data) if r["row_id"] == bad else r for r in rows])
    with closing(feed.reader("train", 4, kind=kind)) as reader, pytest.raises(BadRow, match=r"decodes to \(32, 32, 3\)"):
        list(reader.epoch(0))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_rows_are_noticed(tmp_path: Path, kind: str) -> None:
    made, feed = opened(tmp_path)
    spoiled(made, tmp_path, lambda rows: rows[:-1])
    reader = feed.reader("train", 4, kind=kind)
    with pytest.raises(MissingRows, match="holds 7 rows, the card says 8"):
        list(reader.once())
    with pytest.raises(MissingRows, match="holds 7 rows, the card says 8"):
        list(reader.epoch(0))
    reader.close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "is gone"),
        (lambda path: path.write_bytes(b""), "is damaged .*; 0 bytes, the card says"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged .* bytes, the card says"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4] + b"????"), "is damaged"),
    ],
)
@pytest.mark.parametrize("far", [False, True])
def test_a_file_that_is_not_what_it_was_is_named(tmp_path: Path, damage: Callable[[Path], object], said: str, far: bool) -> None:
    _, feed = opened(tmp_path)
    damage(Path(feed.paths("train")[0]))
    store = (pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), feed.uri) if far else None
    with closing(feed.reader("train", 4, store=store)) as reader, pytest.raises(MissingRows, match=f"train-.*{said}.*build the feed again"):
        list(reader.epoch(0))


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    _, feed = opened(tmp_path, parts={"train": 3})
    with pytest.raises(BadRequest, match="3 rows cannot be shared by 4 ranks"):
        list(feed.reader("train", 1, 0, 4).epoch(0))
    with pytest.raises(BadRequest, match="no part val"):
        feed.reader("val", 1)
    with pytest.raises(BadRequest, match="no such share"):
        feed.reader("train", 1, 4, 4)
    tiny = feed.reader("train", 8)
    assert tiny.steps_per_epoch == 1 and len(taken(list(tiny.epoch(0)))) == 8  # rows repeat
    tiny.close()


def test_memory_is_used_again_only_when_nobody_holds_it(tmp_path: Path) -> None:
    made = write_feed(tmp_path, task="segmentation")
    with closing(open_feed(str(tmp_path), made.card.name).reader("train", 4, seed=3)) as reader:
        kept = list(reader.epoch(0))
        copies = [(batch.images.copy(), batch.masks.copy()) for batch in kept if batch.masks is not None]
        assert len(copies) == len(kept) > 2
        view = kept[0].images[1:, 2:]
        first, copy = kept[0].images.ctypes.data, view.copy()
        for batch, (images, masks) in zip(kept, copies, strict=True):
            assert np.array_equal(batch.images, images) and np.array_equal(batch.masks, masks)
        del kept, batch, images, masks
        again = {batch.images.ctypes.data for number in (1, 2) for batch in reader.epoch(number)}
        assert first not in again and np.array_equal(view, copy), "a view keeps its array"
        del view
        assert len(again) < 2 * len(copies), "some memory was used twice"
        assert all(address % 64 == 0 for address in again), "TensorFlow shares such memory"
