"""Labels come about wherever annotations and images meet; order of arrival, second grids and second imports leave the right rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medspark import config
from medspark.labels.kind import labels_kind
from medspark.pixels import masks
from medspark.slides.kind import slides_kind
from tests.lake import harness
from tests.lake.annotated import annotated_series
from tests.phantoms import slides_work

pytestmark = pytest.mark.spark


def importing(**options: Any) -> Any:
    return labels_kind("auto", options.get("pairs"), options.get("classes"), explicit_dataset=False)


def test_seg_before_and_after_its_series(spark: Any, tmp_path: Path) -> None:
    folder, seg = annotated_series(tmp_path)
    first, last = tmp_path / "images-first", tmp_path / "labels-first"
    harness.run(spark, first, [folder])
    summary = harness.run(spark, first, [seg], importing())
    assert summary.written["labels"] == 3
    waiting = harness.run(spark, last, [seg], importing())
    assert waiting.written["labels"] == waiting.rejected == 0
    assert [row["code"] for row in harness.rows(last, "rejected")] == ["ORPHAN_LABEL"]
    assert [row["status"] for row in harness.rows(last, "sources")] == ["waiting"]
    for file in sorted(folder.iterdir()):
        harness.run(spark, last, [file])
    harness.same(first, last)
    harness.keys_unique(last)
    assert [row["area_px"] for row in sorted(harness.rows(last, "labels"), key=lambda row: row["area_px"])] == [1, 2, 3]
    assert [row["status"] for row in harness.rows(last, "sources") if row["job"] == "import_labels"] == ["ok"]
    assert harness.rows(last, "rejected") == []


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    image, _ = slides_work.stained(700, 500, [(50, 60, 400, 380)])
    return slides_work.write_svs(tmp_path / "slide-a.svs", [image], tile_px=128)


def geojson(path: Path) -> Path:
    square = [[100.0, 100.0], [300.0, 100.0], [300.0, 250.0], [100.0, 250.0], [100.0, 100.0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"objectType": "annotation", "classification": {"name": "tumour"}},
    }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def test_a_second_grid_gets_its_labels_too(spark: Any, tmp_path: Path, slide: Path) -> None:
    lake = tmp_path / "lake"
    drawn = geojson(tmp_path / "slide-a.geojson")
    harness.run(spark, lake, [slide], slides_kind(), config.load(None, ["tiling.tile_px=native", "tiling.min_tissue=0"]))
    harness.run(spark, lake, [drawn], importing())
    harness.run(spark, lake, [slide], slides_kind(), config.load(None, ["tiling.tile_px=100"]))
    tiles = {row["image_id"]: row["grid_id"] for row in harness.rows(lake, "tiles")}
    areas: dict[str, int] = {}
    for row in harness.rows(lake, "labels"):
        areas[tiles[row["image_id"]]] = areas.get(tiles[row["image_id"]], 0) + row["area_px"]
        assert masks.unpack(row["mask"], row["rows"], row["cols"]).sum() == row["area_px"]
    assert sorted(areas.values()) == [200 * 150, 200 * 150]
    assert len(harness.rows(lake, "slides")) == 1
    harness.keys_unique(lake)


def test_importing_again_with_other_classes_replaces(spark: Any, tmp_path: Path, slide: Path) -> None:
    lake = tmp_path / "lake"
    harness.run(spark, lake, [slide], slides_kind(), config.load(None, ["tiling.min_tissue=0"]))
    mask = np.zeros((500, 700), np.uint8)
    mask[100:200, 100:300] = 1
    path = tmp_path / "slide-a_mask.png"
    Image.fromarray(mask).save(path)
    harness.run(spark, lake, [path], importing())
    assert {row["label"] for row in harness.rows(lake, "labels")} == {"class_1"}
    classes = tmp_path / "classes.csv"
    classes.write_text("value,label,role\n1,gland,positive\n")
    for _ in range(2):
        harness.run(spark, lake, [path], importing(classes=str(classes)))
        rows = harness.rows(lake, "labels")
        assert {row["label"] for row in rows} == {"gland"}
        assert sum(row["area_px"] for row in rows) == 100 * 200
    harness.keys_unique(lake)


def test_one_file_for_many_images_labels_each(spark: Any, tmp_path: Path, slide: Path) -> None:
    """A COCO file names its images: each gets its own shapes only."""
    image, _ = slides_work.stained(300, 300, [(50, 60, 200, 180)])
    other = slides_work.write_svs(tmp_path / "slide-b.svs", [image], tile_px=128)
    coco = {
        "images": [
            {"id": 1, "file_name": "slide-a.svs", "width": 700, "height": 500},
            {"id": 2, "file_name": "slide-b.svs", "width": 300, "height": 300},
        ],
        "categories": [{"id": 5, "name": "gland"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 5,
                "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]],
                "bbox": [10, 10, 20, 10],
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": 2,
                "category_id": 5,
                "segmentation": [[40, 40, 50, 40, 50, 50, 40, 50]],
                "bbox": [40, 40, 10, 10],
                "iscrowd": 0,
            },
        ],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco))
    lake = tmp_path / "lake"
    harness.run(spark, lake, [slide, other], slides_kind(), config.load(None, ["tiling.min_tissue=0"]))
    harness.run(spark, lake, [path], importing())
    areas: dict[str, int] = {}
    for row in harness.rows(lake, "labels"):
        areas[row["parent_id"]] = areas.get(row["parent_id"], 0) + row["area_px"]
    assert sorted(areas.values()) == [100, 200]
