"""Lesions by ``instance_key``: touching ones are told apart, crops and resampling find their place, and doubt falls back to components."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pytest

from medspark.feed.rows import pack_masks
from medspark.feed.sample import Recipe
from medspark.lake.store import Lake
from medspark.pixels.masks import pack, pack_u8
from medspark.scores.lesions import Detection
from medspark.tables.catalog import TABLES
from medspark.tables.rows import Rows
from medspark.train import segments
from medspark.train.gathered import Crop, Place
from medspark.train.objects import Objects
from tests.train import tiny

SIDE = 16


def box(row0: int, col0: int, row1: int, col1: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[row0:row1, col0:col1] = True
    return mask


LEFT, RIGHT = box(2, 2, 8, 6), box(2, 6, 8, 10)  # they touch


def row(image_id: str, key: str | None, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    blank = {field.name: None for field in TABLES["labels"].arrow() if field.nullable and field.name not in ("run_id", "batch_id")}
    given = {
        "label_row_id": f"{image_id}{key}{mask.sum()}",
        "target": "image",
        "target_id": image_id,
        "image_id": image_id,
        "parent_id": "series",
        "dataset": "d",
        "subject_key": "s",
        "label": "nodule",
        "instance_key": key,
        "role": "positive",
        "source": "annotation",
        "round": 0,
        "rows": SIDE,
        "cols": SIDE,
        "mask_codec": "bits-zstd",
        "mask": pack(mask),
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return {**blank, **given, **more}


def objects(tmp_path: Path, rows: list[dict[str, Any]], recipe: Recipe | None = None, **options: Any) -> Objects:
    lake = tmp_path / "lake"
    table = pa.Table.from_batches([Rows.of("labels", rows).to_arrow("run", "batch")])
    deltalake.write_deltalake(str(lake / "labels"), table)
    of = tiny.card(recipe or Recipe(), (SIDE, SIDE), labels=("nodule", "cyst"))
    return Objects(Lake(None, str(lake)), replace(of, tables={"labels": 0}, options=options))  # type: ignore[arg-type]


def crop(image_id: str, k: int, truth: np.ndarray, predicted: np.ndarray, row0: int = 0, col0: int = 0) -> Crop:
    none = np.zeros_like(truth)
    bits = pack_masks(np.stack([truth, none, predicted, none]), np.ones(truth.shape, bool))
    return Crop(Place(image_id, image_id, "series", "s", k, row0, col0), truth.shape, bits)


def found(keyed: Objects, crops: list[Crop], deep: bool) -> Detection:
    rows = keyed.of("series")
    numbered = keyed.painted(rows, "nodule", crops, *segments.frame(crops, deep))
    if deep:
        truth, predicted, known = segments.stacked(crops, 0, 2)
    else:
        (truth, _), (predicted, _), known = segments.pasted(crops, 2)
    return segments.lesions(truth, predicted, known, numbered)[0]


def test_touching_objects_of_slices_and_of_a_series(tmp_path: Path) -> None:
    keyed = objects(tmp_path, [row("a", "1", LEFT), row("a", "2", RIGHT), row("b", "2", RIGHT), row("b", None, box(12, 12, 14, 14))])
    a, b = crop("a", 4, LEFT | RIGHT, LEFT), crop("b", 5, RIGHT | box(12, 12, 14, 14), RIGHT)
    assert found(keyed, [a], deep=False) == Detection(found=1, missed=1)
    assert found(keyed, [b], deep=False) == Detection(found=1, missed=1)  # what has no key is an object of its own
    # In the series the prediction is one component over both slices: it finds the one that it meets most, and no other.
    assert found(keyed, [a, b], deep=True) == Detection(found=1, missed=2)
    nobody = replace_table(keyed)
    assert found(nobody, [a, b], deep=True) == Detection(found=1, missed=1)  # without keys both are one component


def replace_table(keyed: Objects) -> Objects:
    return Objects(keyed.lake, replace(keyed.card, tables={}))


def test_crops_and_sizes(tmp_path: Path) -> None:
    keyed = objects(
        tmp_path, [row("a", "1", LEFT), {**row("a", "2", RIGHT), "mask_codec": "u8-zstd", "mask": pack_u8(RIGHT * np.uint8(200))}]
    )
    for row0, col0 in ((0, 0), (3, 5), (-4, -4)):  # a crop that reaches beyond the image is padded
        truth = np.pad(LEFT | RIGHT, 8)[8 + row0 : 16 + row0, 8 + col0 : 16 + col0]
        piece = crop("a", 0, truth, truth, row0, col0)
        painted = keyed.painted(keyed.of("series"), "nodule", [piece], *segments.frame([piece]))
        assert painted is not None and ((painted > 0) == truth).all()
        assert set(np.unique(painted)) - {0} <= {1, 2}
    twice = objects(tmp_path / "twice", [row("a", "1", LEFT), row("a", "2", RIGHT)], Recipe(size=(2 * SIDE, 2 * SIDE)))
    large = np.kron(LEFT | RIGHT, np.ones((2, 2), bool))
    painted = twice.painted(twice.of("series"), "nodule", [crop("a", 0, large, large)], (0, 0), large.shape)
    assert painted is not None and np.abs((painted > 0).sum() - large.sum()) <= 8


def test_what_counts_is_what_the_feed_was_built_from(tmp_path: Path) -> None:
    rows = [row("a", "1", LEFT, label="solid"), row("a", "2", RIGHT, source="model"), row("a", "3", RIGHT, role="ignore")]
    keyed = objects(tmp_path, rows, classes={"solid": "nodule"}, label_sources=["annotation"])
    assert [(one["label"], one["instance_key"]) for one in keyed.of("series")] == [("nodule", "1")]
    assert keyed.of("another") == []


@pytest.mark.parametrize(
    ("recipe", "options"),
    [(Recipe(spacing_mm=(1.0, 1.0)), {}), (Recipe(kind="volume", depth=4), {}), (None, {"label_where": "annotator = 'x'"})],
)
def test_where_keys_cannot_be_put_back_there_are_none(tmp_path: Path, recipe: Recipe | None, options: dict[str, Any]) -> None:
    keyed = objects(tmp_path, [row("a", "1", LEFT)], **options)
    card = keyed.card if recipe is None else replace(keyed.card, recipe=recipe.to_dict())
    assert Objects(keyed.lake, card).of("series") == []


def test_readers_who_numbered_the_same_lesion_make_no_two(tmp_path: Path) -> None:
    keyed = objects(tmp_path, [row("a", "reader 1", LEFT), row("a", "reader 2", box(3, 2, 8, 6))])
    assert found(keyed, [crop("a", 0, LEFT, LEFT)], deep=False) == Detection(found=1)
