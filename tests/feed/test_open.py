"""A feed opens at a version, says what it holds, and refuses what was changed after it was built."""

from __future__ import annotations

import json
from pathlib import Path

import deltalake
import numpy as np
import pyarrow.parquet as pq
import pytest

from medspark.errors import BadRequest
from medspark.feed import rows
from medspark.feed.open import open_feed, parse_name
from medspark.pixels.codecs import decode
from tests.phantoms.feeds import write_feed


@pytest.mark.parametrize("kind", ["tiles", "slices", "volumes"])
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_phantom_holds_what_its_truth_says(tmp_path: Path, kind: str, task: str) -> None:
    made = write_feed(tmp_path, kind=kind, task=task, labels=("disc", "square"), exclusive=True)
    feed = open_feed(str(tmp_path), "phantom", verify=True)
    assert feed.card == made.card and feed.version == 0
    table = deltalake.DeltaTable(feed.uri).to_pyarrow_table()
    assert table.num_rows == sum(counts.rows for counts in feed.card.parts.values()) == len(made.truth)
    for row in table.to_pylist():
        sample = made.truth[row["row_id"]]
        image = feed.card.image
        assert np.array_equal(decode(row["image"], image.codec, image.dtype, image.shape), sample.image)
        if task == "segmentation":
            planes, known = rows.unpack_masks(row["mask"], 2, image.space)
            assert np.array_equal(np.moveaxis(planes, 0, -1), sample.masks) and np.array_equal(known, sample.known[..., 0])
            assert not (planes.sum(0) > 1).any()
    assert feed.card.files_of("train")[0].row_groups == (8, 8, 8)
    ids = [row_id for path in feed.paths("train") for row_id in pq.read_table(path, columns=["row_id"])[0].to_pylist()]
    assert tuple(ids) == made.order["train"]


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    assert write_feed(tmp_path / "a").card == write_feed(tmp_path / "b").card


def test_names() -> None:
    assert parse_name("lungs") == ("lungs", None) and parse_name("lungs-2@13") == ("lungs-2", 13)
    for wrong in ("", "@3", "lungs@", "lungs@x", "../lungs"):
        with pytest.raises(BadRequest, match="--feed"):
            parse_name(wrong)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    write_feed(tmp_path)
    feed = open_feed(str(tmp_path), "phantom@0")
    with pytest.raises(BadRequest, match="at version 7"):
        open_feed(str(tmp_path), "phantom@7")
    with pytest.raises(BadRequest, match="not in lake"):
        open_feed(str(tmp_path), "other")
    with pytest.raises(BadRequest, match="has no part extra"):
        feed.paths("extra")


def test_a_changed_feed_is_refused(tmp_path: Path) -> None:
    made = write_feed(tmp_path)
    folder = tmp_path / "feeds" / "phantom"
    action = {"remove": {"path": made.card.files[0].path, "deletionTimestamp": 1, "dataChange": True, "size": made.card.files[0].bytes}}
    (folder / "_delta_log" / f"{1:020d}.json").write_text(json.dumps(action) + "\n")
    with pytest.raises(BadRequest, match="1 files are gone"):
        open_feed(str(tmp_path), "phantom")
    assert open_feed(str(tmp_path), "phantom@0", verify=True).card == made.card
    victim = folder / made.card.files[1].path
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    open_feed(str(tmp_path), "phantom@0")
    with pytest.raises(BadRequest, match="does not hold the bytes"):
        open_feed(str(tmp_path), "phantom@0", verify=True)
    victim.unlink()
    with pytest.raises(BadRequest, match="not there"):
        open_feed(str(tmp_path), "phantom@0", verify=True)


def test_a_table_without_a_card_is_no_feed(tmp_path: Path) -> None:
    write_feed(tmp_path)
    log = tmp_path / "feeds" / "phantom" / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    actions[1]["metaData"]["configuration"] = {}
    log.write_text("\n".join(json.dumps(action) for action in actions))
    with pytest.raises(BadRequest, match="without a card"):
        open_feed(str(tmp_path), "phantom")
