"""Verify finds damage and names it; the next ingest of the originals mends it; labels stay, nothing comes twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from medspark.lake.files import DataFile
from medspark.lake.store import Lake
from medspark.lake.upkeep import damage
from medspark.lake.upkeep.check import Asked, Damage, check
from medspark.slides.kind import slides_kind
from tests.lake import harness
from tests.lake.patients import files, flip, two_patients, upkeep
from tests.phantoms import tiff_slides

LOCAL = pafs.LocalFileSystem()


def checked(path: Path, table: str = "pixels") -> list[Damage]:
    sound = pq.read_metadata(path) if path.exists() and path.read_bytes()[-4:] == b"PAR1" else None
    asked = Asked(table, path.name, path.stat().st_size if path.exists() else 0, sound.num_rows if sound else 0)
    return [one for one in check(LOCAL, str(path.parent), asked, lambda group: True) if isinstance(one, Damage)]


@pytest.mark.spark
def test_a_flipped_byte_is_found_named_and_mended(spark: Any, tmp_path: Path) -> None:
    lake, (jones, _, smith) = two_patients(spark, tmp_path)
    before = harness.content(lake)
    assert before["labels"]
    said = upkeep(spark, lake, verify_share=1.0)["verified"]
    assert said["damaged"] == [] and said["rows"] >= 10 and not (lake / "_medspark" / "damage").exists()

    row = next(row for row in harness.rows(lake, "slices") if row["instance_number"] == 2 and row["rows"] == 4)
    flip(lake, row["image_id"])
    lines: list[str] = []
    said = upkeep(spark, lake, lines, verify_share=1.0)["verified"]
    assert [(one["table"], one["n"], one["ids"]) for one in said["damaged"]] == [("pixels", 1, [row["image_id"]])]
    assert said["images_lost"] == 1
    original = next(source["uri"] for source in harness.rows(lake, "sources") if source["source_id"] == row["source_id"])
    assert any(row["image_id"] in line and original in line for line in lines), lines

    other = harness.run(spark, lake, [jones if row["sop_instance_id"] is None else smith], dataset="elsewhere", dry_run=True)
    assert "mended" not in other.extra
    summary = harness.run(spark, lake, [jones, smith])
    assert summary.extra["mended"] == 1 and "not_mended" not in summary.extra
    assert not {table for table in summary.written} - {"kpi"}
    assert harness.content(lake) == before, "the image is back, byte for byte, and nothing else has changed"
    assert len({row["batch_id"] for row in harness.rows(lake, "pixels")}) == 1, "a payload file holds the rows of one batch"
    assert upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"] == []
    assert not (lake / "_medspark" / "damage").exists()
    assert "mended" not in harness.run(spark, lake, [jones, smith]).extra
    assert harness.rows(lake, "claims") == []


@pytest.mark.spark
def test_a_file_that_lost_its_footer_is_mended_when_all_its_originals_are_there(spark: Any, tmp_path: Path) -> None:
    lake, (jones, _, smith) = two_patients(spark, tmp_path)
    before = harness.content(lake)
    path = files(lake, "pixels")[0]
    path.write_bytes(path.read_bytes()[:-30])
    said = upkeep(spark, lake, verify_share=0.5)["verified"]
    assert said["images_lost"] == 5 and any("footer" in one["what"] for one in said["damaged"])
    half = harness.run(spark, lake, [smith])
    assert (half.extra["mended"], half.extra["not_mended"]) == (0, 5), "three images would be lost for good"
    assert path.name in {Path(name).name for name in Lake(spark, str(lake)).files("pixels")}
    assert harness.run(spark, lake, [jones, smith]).extra["mended"] == 5
    assert harness.content(lake) == before
    assert upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"] == []


@pytest.mark.spark
def test_a_tile_is_mended_from_its_slide(spark: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    slide = tiff_slides.generic(tmp_path / "in" / "a.tif", tiff_slides.pyramid(tiff_slides.picture(512, 384), 2), "jpeg", side=128)
    from medspark import config

    settings = config.load(None, ["tiling.tile_px=128", "tiling.assume_mpp_um=0.5", "tiling.min_tissue=0"])
    lake = tmp_path / "lake"
    harness.run(spark, lake, [slide], slides_kind(), settings)
    before = harness.content(lake)
    assert len(before["pixels"]) == 12
    victim = harness.rows(lake, "tiles")[5]["image_id"]
    flip(lake, victim)
    assert upkeep(spark, lake, verify_share=1.0)["verified"]["images_lost"] == 1
    assert "mended" not in harness.run(spark, lake, [slide], slides_kind(), config.load(None, ["tiling.tile_px=64"])).extra
    before = harness.content(lake)
    summary = harness.run(spark, lake, [slide], slides_kind(), settings)
    assert summary.extra["mended"] == 1
    after = harness.content(lake)
    assert {name: after[name] for name in after if name != "pixels"} == {name: before[name] for name in before if name != "pixels"}
    assert len(after["pixels"]) == len(before["pixels"]) and upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"] == []


@pytest.mark.spark
def test_damage_of_narrow_files_and_masks_is_listed(spark: Any, tmp_path: Path) -> None:
    lake, _ = two_patients(spark, tmp_path)
    here = Lake(spark, str(lake))
    slices = Path(here.files("slices")[0])
    data = bytearray(slices.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    slices.write_bytes(bytes(data))
    Path(here.files("series")[0]).unlink()
    labels = here.read("labels", [*pq.read_schema(here.files("labels")[0]).names])
    place = labels.schema.get_field_index("mask")
    worse = labels.set_column(place, labels.schema.field(place), pa.array([b"no mask"] * labels.num_rows))
    path = Path(here.files("labels")[0])
    pq.write_table(worse, path)
    said = upkeep(spark, lake, verify_share=1.0)["verified"]
    by_table = {one["table"]: one for one in said["damaged"]}
    assert "cannot be read" in by_table["slices"]["what"] or "has" in by_table["slices"]["what"]
    assert by_table["series"]["what"] == "the file is missing"
    assert any(one["n"] == labels.num_rows and "masks" in one["what"] for one in said["damaged"] if one["table"] == "labels")
    assert damage.load(here).lost == [], "what only payload can be mended of is not on the list"


@pytest.mark.spark
def test_no_flipped_bit_of_a_payload_goes_unseen(spark: Any, tmp_path: Path) -> None:
    """Every byte of every stored image, one bit each: the checksum finds it, and names that image only."""
    lake, _ = two_patients(spark, tmp_path)
    path = files(lake, "pixels")[0]
    sound = path.read_bytes()
    for row in harness.rows(lake, "pixels"):
        start = sound.find(row["bytes"])
        for at in range(start, start + len(row["bytes"]), 7):
            data = bytearray(sound)
            data[at] ^= 1 << (at % 8)
            path.write_bytes(bytes(data))
            assert [one.keys for one in checked(path)] == [(row["image_id"],)], at
    path.write_bytes(sound)
    assert checked(path) == []


def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    assert [one.what for one in checked(tmp_path / "none.parquet")] == ["the file is missing"]


@pytest.mark.spark
def test_images_without_pixels_and_doubled_pixels_are_found(spark: Any, tmp_path: Path) -> None:
    lake, _ = two_patients(spark, tmp_path)
    here = Lake(spark, str(lake))
    action = here.actions("pixels")[0]
    file = DataFile(action["relative"], action["size_bytes"], action["num_records"], "")
    here.transact("pixels", lambda version: ([], [file]))
    said = upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"]
    assert [(one["n"], one["what"]) for one in said] == [(5, "5 images have no pixels")]
    copy = lake / "pixels" / "part-copy.parquet"
    copy.write_bytes(Path(action["path"]).read_bytes())
    whole = json.dumps({"numRecords": action["num_records"]})
    here.transact("pixels", [DataFile(name, file.size, file.rows, whole) for name in (file.path, copy.name)])
    said = upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"]
    assert [(one["n"], one["what"]) for one in said] == [(5, "5 images have their pixels more than once")]
