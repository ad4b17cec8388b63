"""Feeds of phantoms: every row is what the lake says, the same inputs give the same bytes, and leaks stop the build."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medspark.errors import BadRequest
from medspark.labels.kind import labels_kind
from medspark.pixels import decode
from tests.feed import lakes
from tests.lake import harness
from tests.lake.patients import upkeep

pytestmark = pytest.mark.spark
CT = "SELECT image_id FROM slices WHERE modality = 'CT'"
PHOTOS = "SELECT image_id FROM photos"


def parts_of(lake: Path, name: str = "main") -> dict[str, str]:
    return {row["unit_key"]: row["part"] for row in harness.rows(lake, "splits") if row["split_name"] == name}


def patients(lake: Path) -> dict[str, tuple[int, int]]:
    """image_id -> (patient, k), from the smallest value of each slice."""
    return {row["image_id"]: (round((row["value_min"] + 1024 - 500) / 20) // 10, row["k"]) for row in harness.rows(lake, "slices")}


def test_slices_with_context_in_crops(spark: Any, filled: Path) -> None:
    outcome = lakes.feed(
        spark, filled, query=CT, labels=("nodule",), unlabelled="negative", context=1, crop=(12, 16), stride=(8, 8), world=2
    )
    card, table, who, parts = lakes.card_of(filled), lakes.rows(filled).to_pylist(), patients(filled), parts_of(filled)
    assert outcome.card == card and outcome.changed and card.runs >= 1
    assert (card.image.kind, card.image.shape, card.image.dtype, card.image.value_unit) == ("context", (12, 16, 3), "int16", "HU")
    assert card.image.channels == ("k-1", "k", "k+1") and card.image.spacing_mm == (0.5, 0.75)
    corners = {(row0, col0) for row0 in (0, 8) for col0 in (0, 8)}
    assert {(row["image_id"], row["row0"], row["col0"]) for row in table} == {(one, *corner) for one in who for corner in corners}
    assert len({row["row_id"] for row in table}) == len(table) == lakes.PATIENTS * lakes.SLICES * 4
    truth = np.zeros((lakes.SLICES, lakes.ROWS, lakes.COLS), bool)
    truth[lakes.NODULE] = True
    for row in table:
        patient, k = who[row["image_id"]]
        box = slice(row["row0"], row["row0"] + 12), slice(row["col0"], row["col0"] + 16)
        near = [lakes.stored(patient, min(max(k + step, 0), lakes.SLICES - 1))[box] - 1024 for step in (-1, 0, 1)]
        assert (lakes.image(card, row) == np.stack(near, axis=-1)).all()
        drawn, known = lakes.masks(card, row)
        assert known.all() and (drawn[0] == truth[k][box]).all()
        assert row["target"] == [1.0 if drawn.any() else 0.0] and row["k"] == k and row["weight"] == 1.0
        assert row["part"] == parts[row["subject_key"]]
    counts = card.parts
    subjects = {part: len({row["subject_key"] for row in table if row["part"] == part}) for part in counts}
    assert sum(part.positive_px["nodule"] for part in counts.values()) == sum(int(lakes.masks(card, row)[0].sum()) for row in table)
    assert sum(part.rows for part in counts.values()) == len(table) and {part: one.subjects for part, one in counts.items()} == subjects
    assert counts["train"].positives["nodule"] + counts["train"].negatives["nodule"] == counts["train"].rows
    values = np.stack([lakes.image(card, row) for row in table if row["part"] == "train"]).reshape(-1, 3).astype(float)
    assert np.allclose(card.mean, values.mean(axis=0)) and np.allclose(card.std, values.std(axis=0))
    for part in counts:
        assert sum(len(file.row_groups) for file in card.files_of(part)) % 2 == 0
    assert [row["row_id"] for row in table] != sorted(row["row_id"] for row in table)


def test_the_same_inputs_give_the_same_bytes_and_another_seed_another_order(spark: Any, filled: Path) -> None:
    asked = {"query": PHOTOS, "labels": ("class_1",), "within_subject": False, "name": "again"}
    first = lakes.feed(spark, filled, **asked)
    folder = filled / "feeds" / "again"
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.parquet")}
    assert {file.path: file.sha256 for file in first.card.files} == before
    for path in folder.glob("*.parquet"):
        path.unlink()
    spark.conf.set("spark.sql.shuffle.partitions", "3")  # other partitions, the same bytes
    try:
        second = lakes.feed(spark, filled, **asked)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "4")
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.parquet")} == before
    assert second.version == first.version and not second.changed
    other = lakes.feed(spark, filled, **asked, seed=1)
    assert other.changed and other.version == first.version + 1 and other.card.to_json() != first.card.to_json()
    assert [file.path for file in other.card.files] == [action["relative"] for action in sorted_actions(filled)]
    # Photos without an outline are left out, since nobody said that they show nothing.
    assert sum(part.rows for part in first.card.parts.values()) == lakes.OUTLINED
    shown = [row for row in lakes.rows(filled, "again").to_pylist()]
    assert all(lakes.masks(other.card, row)[0].any() for row in shown)
    assert other.card.image.shape == (*lakes.PHOTO, 3) and other.card.image.dtype == "uint8"
    orders = {file.sha256 for card in (first.card, other.card) for file in card.files_of("train")}
    for seed in (2, 3, 4):  # few rows: two seeds may shuffle them alike, since ids depend on where the files lie
        orders |= (
            {file.sha256 for file in lakes.feed(spark, filled, **asked, seed=seed).card.files_of("train")} if len(orders) < 2 else set()
        )
    assert len(orders) > 1


def sorted_actions(lake: Path) -> list[dict[str, Any]]:
    from medspark.lake.store import Lake

    order = {file.path: place for place, file in enumerate(lakes.card_of(lake, "again").files)}
    return sorted(Lake(None, str(lake)).actions("feeds/again"), key=lambda action: order[action["relative"]])  # type: ignore[arg-type]


def test_classes_of_whole_images_and_equal_pictures(spark: Any, filled: Path) -> None:
    card = lakes.feed(spark, filled, query=PHOTOS, task="classification", labels=("ill", "well"), weights="balanced").card
    assert card.exclusive and card.image.codec == "blosc2"
    assert len(card.doubles) == 1 and len(card.doubles[0]) == 2, "photos 10 and 11 are one picture of two subjects"
    table = lakes.rows(filled).to_pylist()
    label = {row["image_id"]: row["label"] for row in harness.rows(filled, "labels") if row["label"] in ("ill", "well")}
    assert {row["image_id"]: row["target"] for row in table} == {
        one: [1.0, 0.0] if name == "ill" else [0.0, 1.0] for one, name in label.items()
    }
    assert all(row["mask"] == b"" for row in table)
    train = [row for row in table if row["part"] == "train"]
    by_class = [sum(row["weight"] for row in train if row["target"][place] == 1) for place in (0, 1)]
    assert math.isclose(by_class[0], by_class[1], rel_tol=1e-6) and math.isclose(sum(by_class), len(train), rel_tol=1e-6)
    assert all(row["weight"] == 1.0 for row in table if row["part"] != "train")


def test_images_share_their_series_labels_only_where_that_is_asked_for(spark: Any, filled: Path, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    shutil.copytree(filled, lake)
    series = sorted({(row["series_id"], row["dataset"]) for row in harness.rows(lake, "slices")})
    said = {one: "bleeding" if number < 2 else "clear" for number, (one, _) in enumerate(series[:4])}
    path = tmp_path / "findings.csv"
    path.write_text("image,label\n" + "".join(f"{one},{label}\n" for one, label in said.items()))
    harness.run(spark, lake, [path], labels_kind("csv", None, None, explicit_dataset=False))
    asked = {"query": CT, "task": "classification", "labels": ("bleeding",), "classes": {"clear": ""}, "name": "series"}
    with pytest.raises(BadRequest, match="no image of the cohort shows bleeding"):
        lakes.feed(spark, lake, **asked)
    with pytest.raises(BadRequest, match="its series has: see --inherit series"):
        lakes.feed(spark, lake, **{**asked, "labels": (), "label_where": "label <> 'nodule'"})
    card = lakes.feed(spark, lake, **asked, inherit=("series", "slide")).card
    rows = lakes.rows(lake, "series").to_pylist()
    assert {row["parent_id"] for row in rows} == set(said) and len(rows) == 4 * lakes.SLICES
    assert all(row["target"] == [1.0 if said[row["parent_id"]] == "bleeding" else 0.0] for row in rows)
    assert card.options["inherit"] == ["series", "slide"]
    for wrong in ({"inherit": ("series",), "task": "segmentation"}, {"inherit": ("patient",)}):
        with pytest.raises(BadRequest, match="--inherit"):
            lakes.feed(spark, lake, **{**asked, **wrong})


def test_tiles_pass_through_and_negatives_are_thinned(spark: Any, filled: Path) -> None:
    tiles = "SELECT image_id, 'train' AS part FROM tiles"
    card = lakes.feed(spark, filled, query=tiles, split="", unlabelled="negative").card
    assert card.image.codec == "jpeg" and card.image.shape == (128, 128, 3) and card.labels == ("tumour",) and card.image.mpp_um == 0.5
    stored = {row["image_id"]: row for row in harness.rows(filled, "pixels")}
    table = lakes.rows(filled).to_pylist()
    assert len(table) == len(harness.rows(filled, "tiles")) == 12
    assert all(row["image"] == stored[row["image_id"]]["bytes"] for row in table)
    assert sum(int(lakes.masks(card, row)[0].sum()) for row in table) == 200 * 150 == card.parts["train"].positive_px["tumour"]
    positives = card.parts["train"].positives["tumour"]
    thinned = lakes.feed(spark, filled, query=tiles, split="", unlabelled="negative", negatives_per_positive=0.5).card.parts["train"]
    assert (thinned.positives["tumour"], thinned.negatives["tumour"]) == (positives, positives // 2)
    assert decode(table[0]["image"], "jpeg", "uint8", card.image.shape).shape == (128, 128, 3)


def test_whole_small_volumes(spark: Any, filled: Path) -> None:
    card = lakes.feed(spark, filled, query=CT, labels=("nodule",), unlabelled="negative", volume=(10, 20, 24), window=(40, 400)).card
    assert (card.image.kind, card.image.shape, card.image.dtype, card.image.window) == ("volume", (10, 20, 24, 1), "uint8", (40.0, 400.0))
    table, who = lakes.rows(filled).to_pylist(), patients(filled)
    assert len(table) == lakes.PATIENTS and sum(part.images for part in card.parts.values()) == lakes.PATIENTS
    for row in table:
        patient, _ = who[row["image_id"]]
        hu = np.stack([lakes.stored(patient, min(k, lakes.SLICES - 1)) - 1024.0 for k in range(10)])
        grey = np.rint(np.clip((hu - 40) / 400 + 0.5, 0, 1) * 255)
        assert (lakes.image(card, row)[..., 0] == grey).all()
        drawn, known = lakes.masks(card, row)
        assert known[:8].all() and not known[8:].any()
        assert drawn[0].sum() == drawn[0][lakes.NODULE].sum() == 3 * 6 * 9


def test_a_feed_is_verified_by_its_checksums(spark: Any, filled: Path, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    shutil.copytree(filled, lake)
    lakes.feed(spark, lake, query=PHOTOS, labels=("class_1",), name="kept")
    lines: list[str] = []
    assert upkeep(spark, lake, lines, verify_share=1.0)["verified"]["damaged"] == []
    path = next((lake / "feeds" / "kept").glob("*.parquet"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = upkeep(spark, lake, lines, verify_share=1.0)["verified"]["damaged"]
    assert [(one["table"], one["file"]) for one in said] == [("feeds/kept", path.name)] and "the feed's card lists" in said[0]["what"]


def test_leaks_stop_the_build(spark: Any, filled: Path) -> None:
    torn = "SELECT image_id, CASE WHEN k < 4 THEN 'train' ELSE 'test' END AS part FROM slices"
    keys = {row["subject_key"] for row in harness.rows(filled, "slices")}
    with pytest.raises(BadRequest, match="subjects in two parts") as stopped:
        lakes.feed(spark, filled, query=torn, name="leaky", unlabelled="negative")
    assert all(key in str(stopped.value) for key in keys)
    with pytest.raises(BadRequest, match="divides images, not subjects"):
        lakes.feed(spark, filled, query=CT, split="by_image", name="leaky", unlabelled="negative")
    assert not (filled / "feeds" / "leaky").exists()
    card = lakes.feed(spark, filled, query=torn, split="", name="within", unlabelled="negative", within_subject=True).card
    assert card.within_subject and set(card.parts) == {"train", "test"}
    assert not list((filled / "_medspark").glob("feed-*")), "private folders are gone, whatever happened"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"query": "SELECT series_id FROM slices"}, "expected a column image_id"),
        ({"query": "SELECT image_id FROM nowhere"}, "nowhere"),
        ({"query": CT, "split": "other"}, "no such split"),
        ({"query": CT, "split": ""}, "give that column, or --split"),
        ({"query": "SELECT image_id FROM slices WHERE false"}, "returns no image"),
        ({"query": CT, "labels": ("spleen",)}, "no image of the cohort shows spleen; it shows nodule"),
        ({"query": "SELECT image_id, 1 AS row0 FROM slices"}, "needs both"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(spark: Any, filled: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        lakes.feed(spark, filled, **{"name": "never", **asked})
    assert not (filled / "feeds" / "never").exists()
