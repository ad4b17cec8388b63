"""Photos through the engine: secrets, order of arrival, classes that change, masks and outlines whoever came first."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medspark.labels.kind import labels_kind
from medspark.photos.kind import photos_kind
from medspark.pixels import masks
from tests.lake import harness
from tests.phantoms import photos as phantom
from tests.real import shared_data

pytestmark = pytest.mark.spark


def importing(**options: Any) -> Any:
    return labels_kind("auto", options.get("pairs"), options.get("classes"), explicit_dataset=False)


def folder_of_photos(folder: Path) -> Path:
    """One of each kind, each with the secret in it, in folders that are classes."""
    (folder / "cats").mkdir(parents=True)
    (folder / "dogs").mkdir()
    (folder / "cats" / "a.jpg").write_bytes(phantom.jpeg(phantom.picture()))
    (folder / "cats" / "turned.jpg").write_bytes(phantom.jpeg(phantom.picture(seed=5), 6))
    (folder / "dogs" / "b.png").write_bytes(phantom.png(phantom.picture(seed=7)))
    phantom.tiff(folder / "dogs" / "c.tif", phantom.picture(seed=9))
    (folder / "dogs" / "d.bmp").write_bytes(phantom.bmp(phantom.picture(seed=11)))
    phantom.medmnist(folder / "m.npz")
    return folder


def test_no_secret_reaches_the_lake(spark: Any, tmp_path: Path) -> None:
    folder, lake = folder_of_photos(tmp_path / "in"), tmp_path / "lake"
    planted = [path.name for path in folder.rglob("*.*") if phantom.SECRET in path.read_bytes()]
    assert len(planted) == 5
    summary = harness.run(spark, lake, [folder], photos_kind("folder"))
    assert (summary.written["photos"], summary.written["labels"], summary.rejected) == (
        17,
        29,
        0,
    )  # 5 photos, 12 of an array with two labels each
    harness.keys_unique(lake)
    words = [word.decode() for word in (phantom.SECRET, phantom.SECRET[:8], b"52.2297N")]
    found = [(table, column) for table, column, text in harness.strings(lake) for word in words if word in text]
    assert not found
    for file in lake.rglob("*"):  # whatever lies in the lake, committed or not
        if file.is_file():
            assert phantom.SECRET not in file.read_bytes(), file.name
    assert harness.run(spark, lake, [folder], photos_kind("folder")).written.total() == 0


def test_files_one_by_one_in_any_order_give_the_same_lake(spark: Any, tmp_path: Path) -> None:
    folder = folder_of_photos(tmp_path / "in")
    mask = folder / "a_mask.png"
    Image.fromarray((phantom.picture()[..., 0] > 100).astype(np.uint8)).save(mask)
    whole, fed = tmp_path / "whole", tmp_path / "fed"
    kinds = {True: importing(), False: photos_kind("folder")}
    harness.run(spark, whole, [folder], kinds[False])
    harness.run(spark, whole, [mask], kinds[True])
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    random.Random(2).shuffle(files)
    files.sort(key=lambda path: path != mask)  # the mask comes first and waits
    for file in files:
        if file == mask:
            assert harness.run(spark, fed, [file], kinds[True]).written["labels"] == 0
        harness.run(spark, fed, [file], kinds[False])
    harness.same(whole, fed)
    harness.keys_unique(fed)
    assert {row["status"] for row in harness.rows(fed, "sources") if row["job"] == "import_labels"} == {"ok"}
    row = next(row for row in harness.rows(fed, "labels") if row["label"] == "class_1" and row["mask"])
    assert (masks.unpack(row["mask"], row["rows"], row["cols"]) == (phantom.picture()[..., 0] > 100)).all()
    assert row["value_mean"] is not None and row["area_mm2"] is None


def test_classes_that_change_are_replaced(spark: Any, tmp_path: Path) -> None:
    folder, lake = folder_of_photos(tmp_path / "in"), tmp_path / "lake"
    harness.run(spark, lake, [folder], photos_kind())
    plain = harness.content(lake)
    assert len(harness.rows(lake, "labels")) == 12
    summary = harness.run(spark, lake, [folder], photos_kind("folder"))
    assert (summary.written["photos"], summary.written["pixels"], summary.written["labels"]) == (0, 0, 29)
    harness.keys_unique(lake)
    assert len(harness.rows(lake, "labels")) == 29
    assert len(harness.rows(lake, "photos")) == 17
    assert sorted(row["n_images"] for row in harness.rows(lake, "sources")) == [1, 1, 1, 1, 1, 12]
    harness.run(spark, lake, [folder], photos_kind())
    assert harness.content(lake) == plain


def test_outlines_tables_and_runs_of_photos(spark: Any, tmp_path: Path) -> None:
    """GeoJSON, COCO (polygon and run lengths) and CSV name photos of one stem each; photos come in two batches."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.png").write_bytes(phantom.png(phantom.picture()))
    runs = np.zeros((20, 28), np.uint8)
    runs[3:7, 4:9] = 1
    counts, flat = [0], runs.T.ravel()
    for value, before in zip(flat, [0, *flat[:-1]], strict=True):
        counts.append(1) if value != before else counts.__setitem__(-1, counts[-1] + 1)
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 28, "height": 20}, {"id": 2, "file_name": "b.png", "width": 28, "height": 20}],
        "categories": [{"id": 5, "name": "lesion"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "segmentation": [[2, 3, 12, 3, 12, 8, 2, 8]], "bbox": [2, 3, 10, 5], "iscrowd": 0},
            {
                "id": 2,
                "image_id": 2,
                "category_id": 5,
                "segmentation": {"size": [20, 28], "counts": counts},
                "bbox": [4, 3, 5, 4],
                "iscrowd": 0,
            },
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    (tmp_path / "table.csv").write_text("image,label,value,x,y,width,height\na.png,benign,0,,,,\nin/c.png,box,,1,2,3,4\n")
    square = [[[5, 5], [15, 5], [15, 10], [5, 10], [5, 5]]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": square},
        "properties": {"classification": {"name": "scale"}},
    }
    (tmp_path / "c.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    annotations = [tmp_path / "coco.json", tmp_path / "table.csv", tmp_path / "c.geojson"]
    first, last = tmp_path / "first", tmp_path / "last"
    harness.run(spark, first, [folder], photos_kind())
    harness.run(spark, first, annotations, importing())
    harness.run(spark, last, annotations, importing())
    harness.run(spark, last, [folder / "a.png", folder / "c.png"], photos_kind())
    assert {
        row["status"] for row in harness.rows(last, "sources") if row["uri"].endswith("coco.json") and row["job"] == "import_labels"
    } == {"waiting"}
    harness.run(spark, last, [folder / "b.png"], photos_kind())
    harness.same(first, last)
    found = {(row["label"], row["area_px"], row["class_value"]) for row in harness.rows(first, "labels")}
    assert found == {("lesion", 50, None), ("lesion", 20, None), ("benign", None, "0"), ("box", 12, None), ("scale", 50, None)}
    photos = {row["image_id"]: row for row in harness.rows(first, "photos")}
    assert all(row["parent_id"] == photos[row["image_id"]]["source_id"] for row in harness.rows(first, "labels"))


def test_a_picture_of_few_colours_does_not_label_itself(spark: Any, tmp_path: Path) -> None:
    """It looks like a label image; a mask of the same name in another folder is one."""
    drawn = (phantom.picture()[..., 0] > 100).astype(np.uint8)
    for folder in ("in", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(drawn * 200).save(tmp_path / folder / "a.png")
    lake = tmp_path / "lake"
    harness.run(spark, lake, [tmp_path / "in"], photos_kind())
    summary = harness.run(spark, lake, [tmp_path / "in"], importing())
    assert (summary.written["labels"], summary.rejected) == (0, 1)
    assert [(row["code"], row["stage"]) for row in harness.rows(lake, "rejected")] == [("LABEL_FORMAT", "link")]
    assert harness.run(spark, lake, [tmp_path / "masks"], importing()).written["labels"] == 1
    assert [row["area_px"] for row in harness.rows(lake, "labels")] == [int(drawn.sum())]


def test_real_masks_on_real_photos(spark: Any, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    retina = shared_data("retina/hrf")
    harness.run(spark, lake, [retina], photos_kind(exclude="AVmanual"))
    pairs, classes = tmp_path / "pairs.csv", tmp_path / "classes.csv"
    pairs.write_text("image,annotation\n06_h.jpg,06_h_AVmanual.png\n07_dr.jpg,07_dr_AVmanual.png\n")
    classes.write_text("value,label,role\n#ff0000,artery,\n#0000ff,vein,\n#00ff00,crossing,ignore\n")
    harness.run(spark, lake, [retina], importing(pairs=pairs, classes=classes))
    drawn = {row["label"]: 0 for row in harness.rows(lake, "labels")}
    for row in harness.rows(lake, "labels"):
        drawn[row["label"]] += row["area_px"]
    # Counted apart from medspark (MANIFEST): arteries 370,018 + 288,060, veins 397,678 + 304,383, other 62,174 + 43,918.
    assert drawn == {"artery": 658_078, "vein": 702_061, "crossing": 106_092}
    for folder, areas in (("dermoscopy", None), ("cxr/jsrt_demo", [48006, 68727, 74013, 93159])):
        before = {row["label_row_id"] for row in harness.rows(lake, "labels")}
        harness.run(spark, lake, [shared_data(folder)], importing())
        harness.run(spark, lake, [shared_data(folder)], photos_kind())
        rows = [row for row in harness.rows(lake, "labels") if row["label_row_id"] not in before]
        assert len(rows) == 4 and {row["label"] for row in rows} == {"class_255"}
        if areas:
            assert sorted(row["area_px"] for row in rows) == areas
    assert {row["code"] for row in harness.rows(lake, "rejected")} == set()
    harness.keys_unique(lake)


def test_counts_of_every_folder_of_real_photos(spark: Any, tmp_path: Path) -> None:
    lake, root = tmp_path / "lake", shared_data()
    expected = {"retina": (4, 0), "dermoscopy": (4, 4), "cxr": (6, 5), "histology_patches": (9, 0), "medmnist": (5030, 0)}
    for folder, (photos, skipped) in expected.items():
        summary = harness.run(spark, lake, [root / folder], photos_kind(class_pattern="^([A-Z]+)-"), dataset=folder)
        assert (summary.written["photos"], summary.skipped, summary.rejected) == (photos, skipped, 0)
    labels = [row["label"] for row in harness.rows(lake, "labels") if row["dataset"] == "histology_patches"]
    assert sorted(labels) == ["ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"]
    harness.keys_unique(lake)


def test_the_job_itself(tmp_path: Path) -> None:
    folder, lake = folder_of_photos(tmp_path / "in"), tmp_path / "lake"
    table = tmp_path / "labels.csv"
    table.write_text("file,label,value\na.jpg,tabby,1\n")
    given = ("--lake", lake, "--input", folder, "--class-from", "folder", "--labels", table)
    summary = harness.ended(harness.job("ingest_photos", *given, submit=True))
    assert summary["written"]["photos"] == summary["written"]["pixels"] == 17
    assert summary["written"]["labels"] == 30
    assert harness.ended(harness.job("ingest_photos", *given, submit=True))["written"] == {"kpi": 7}
    harness.ended(harness.job("ingest_photos", "--lake", lake, "--input", folder, "--class-pattern", "("), 2)
