"""Labels out and in again: the second lake's masks are those of the first, pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medspark import config
from medspark.deid.crosswalk import Crosswalk
from medspark.errors import BadRequest
from medspark.keys import Ids
from medspark.labels.kind import labels_kind
from medspark.lake import export, sql
from medspark.lake.store import Lake
from medspark.pixels import masks
from medspark.slides.kind import slides_kind
from tests.lake import harness
from tests.lake.annotated import annotated_series
from tests.phantoms import series as phantoms
from tests.phantoms import slides_work
from tests.real import shared_data

pytestmark = pytest.mark.spark

ALL = "SELECT label_row_id FROM labels"
HEAD, LIVER, SLIDE = "ct/ge_head_tilt", "ct/dcmqi_liver", "wsi/CMU-1-Small-Region.svs"


def importing(lake: Path, out: Path, spark: Any, paired: bool = True) -> Any:
    """Labels of an exported folder into a lake. ``paired``: with its ``pairs.csv``, as every format but SEG and COCO needs."""
    pairs, classes = out / "pairs.csv", out / "classes.csv"
    kind = labels_kind("auto", pairs if paired and pairs.exists() else None, classes if classes.exists() else None)
    return harness.run(spark, lake, [out], kind)


def exported(spark: Any, lake: Path, out: Path, format: Any, query: str = ALL, **rest: Any) -> export.Result:
    request = export.Request(query, format, str(out), rest.pop("overwrite", False))
    request.check()
    return export.export(sql.register(spark, str(lake)), request, **rest)


def painted(lake: Path, where: str | None = None) -> dict[tuple[str, str], np.ndarray]:
    """(image_id, label) -> union of the masks."""
    found: dict[tuple[str, str], np.ndarray] = {}
    for row in harness.rows(lake, "labels"):
        if row["mask"] is None or (where is not None and row["label"] != where):
            continue
        mask = masks.unpack(row["mask"], row["rows"], row["cols"])
        key = (row["image_id"], row["label"])
        found[key] = found[key] | mask if key in found else mask
    return found


def worst(first: Path, second: Path, where: str | None = None) -> int:
    """Pixels that differ, over all images and labels; fails where an image has no label or none was compared."""
    left, right = painted(first, where), painted(second, where)
    assert left
    assert left.keys() == right.keys()
    return int(sum((left[key] != right[key]).sum() for key in left))


def crosswalk(where: Path) -> config.Config:
    return config.load(None, [f"deid.key_file={json.dumps(str(where / 'deid.key'))}", "deid.crosswalk=true"])


@pytest.fixture(scope="module")
def head(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real tilted head with its segmentation (bone and soft tissue), its key's crosswalk beside the lake."""
    where = tmp_path_factory.mktemp("head")
    harness.run(spark, where / "lake", [shared_data(HEAD)], settings=crosswalk(where))
    harness.run(spark, where / "lake", [shared_data(HEAD + "_labels_derived/seg_bone_soft.dcm")], labels_kind())
    return where


@pytest.fixture
def images_alone(spark: Any, tmp_path: Path) -> Any:
    """A lake of a folder's images without labels, under the same key and data set: its image ids are the first lake's."""

    def make(relative: str, kind: Any = None, settings: config.Config | None = None) -> Path:
        harness.run(spark, tmp_path / "second", [shared_data(relative)], kind, settings)
        return tmp_path / "second"

    return make


@pytest.mark.slow
@pytest.mark.parametrize("format", ["coco", "png"])
def test_head_out_and_in(spark: Any, head: Path, tmp_path: Path, images_alone: Any, format: str) -> None:
    result = exported(spark, head / "lake", tmp_path / "out", format)
    assert (result.files, result.label_rows, result.rejected) == (1 if format == "coco" else 28, 55, 0)
    second = images_alone(HEAD)
    importing(second, tmp_path / "out", spark)
    assert worst(head / "lake", second) == 0


@pytest.mark.slow
def test_head_as_segmentation_returns_under_its_original_uids(spark: Any, head: Path, tmp_path: Path, images_alone: Any) -> None:
    import highdicom

    restore = Crosswalk.beside(head / "deid.key", harness.KEY).restore
    result = exported(spark, head / "lake", tmp_path / "out", "seg", restore=restore)
    assert (result.files, result.label_rows) == (1, 55)
    file = next((tmp_path / "out").glob("*.dcm"))
    seg = highdicom.seg.segread(file)
    source = pydicom.dcmread(next(iter(sorted(shared_data(HEAD).iterdir()))), stop_before_pixels=True)
    assert (seg.PatientID, seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (
        source.PatientID,
        source.StudyInstanceUID,
        source.FrameOfReferenceUID,
    )
    given = highdicom.seg.segread(shared_data(HEAD + "_labels_derived/seg_bone_soft.dcm"))
    instances = sorted(uid for _, _, uid in given.get_source_image_uids())
    theirs = {number: given.get_segment_description(number).SegmentLabel for number in given.segment_numbers}
    ours = {seg.get_segment_description(number).SegmentLabel: number for number in seg.segment_numbers}
    assert sorted(theirs.values()) == sorted(ours)
    loose = {"ignore_spatial_locations": True, "assert_missing_frames_are_empty": True}
    for number, label in theirs.items():
        left = given.get_pixels_by_source_instance(instances, segment_numbers=[number], **loose)
        right = seg.get_pixels_by_source_instance(instances, segment_numbers=[ours[label]], **loose)
        assert (left == right).all()
        assert left.any()
    second = images_alone(HEAD)
    importing(second, tmp_path / "out", spark, paired=False)
    assert worst(head / "lake", second) == 0


@pytest.mark.slow
def test_head_is_refused_for_nifti_with_the_reason(spark: Any, head: Path, tmp_path: Path) -> None:
    result = exported(spark, head / "lake", tmp_path / "out", "nifti")
    assert (result.files, result.parents, result.rejected) == (0, 1, 1)
    listed = (tmp_path / "out" / "rejected.csv").read_text()
    assert "unevenly spaced (IRREGULAR_SPACING)" in listed
    assert "the median gap is" in listed


@pytest.mark.slow
@pytest.mark.parametrize("format", ["nifti", "coco", "png", "seg"])
def test_liver_with_overlapping_segments_out_and_in(spark: Any, tmp_path: Path, images_alone: Any, format: str) -> None:
    first = tmp_path / "first"
    harness.run(spark, first, [shared_data(LIVER + "/ct-3slice")])
    harness.run(spark, first, [shared_data(LIVER + "/liver.dcm"), shared_data(LIVER + "/partial_overlaps.dcm")], labels_kind())
    result = exported(spark, first, tmp_path / "out", format)
    assert result.rejected == 0
    assert result.label_rows == len(painted(first))
    second = images_alone(LIVER + "/ct-3slice")
    importing(second, tmp_path / "out", spark)
    assert worst(first, second) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("annotation", "how", "tile_px", "format"),
    [
        ("qupath.geojson", {"as_drawn"}, 256, "geojson"),
        ("asap.xml", {"as_drawn", "traced"}, 300, "geojson"),  # an exclusion cuts one of its shapes
        ("mask.png", {"traced"}, 256, "geojson"),
        ("mask.png", set(), 300, "png"),
    ],
)
def test_slide_out_and_in(spark: Any, tmp_path: Path, images_alone: Any, annotation: str, how: set[str], tile_px: int, format: str) -> None:
    first, settings = tmp_path / "first", config.load(None, [f"tiling.tile_px={tile_px}", "tiling.overlap_px=20", "tiling.min_tissue=1"])
    harness.run(spark, first, [shared_data(SLIDE)], slides_kind(), settings)
    harness.run(spark, first, [shared_data(f"wsi/annotations/CMU-1-Small-Region.{annotation}")], labels_kind())
    result = exported(spark, first, tmp_path / "out", format)
    assert (result.files, result.rejected) == (1, 0)
    assert {name for name in ("as_drawn", "traced") if result.counts[name]} == how
    second = images_alone(SLIDE, slides_kind(), settings)
    importing(second, tmp_path / "out", spark)
    assert worst(first, second) == 0


def test_what_cannot_be_done_is_said(spark: Any, tmp_path: Path) -> None:
    folder, seg = annotated_series(tmp_path)
    lake = tmp_path / "lake"
    harness.run(spark, lake, [folder])
    harness.run(spark, lake, [seg], labels_kind())
    with pytest.raises(BadRequest, match="expected a column label_row_id, image_id or parent_id"):
        exported(spark, lake, tmp_path / "out", "coco", "SELECT label FROM labels")
    with pytest.raises(BadRequest, match="no_such"):
        exported(spark, lake, tmp_path / "out", "coco", "SELECT no_such FROM labels")
    result = exported(spark, lake, tmp_path / "geo", "geojson")
    assert (result.rejected, result.files) == (1, 0)
    assert "not of a series" in (tmp_path / "geo" / "rejected.csv").read_text()
    assert exported(spark, lake, tmp_path / "geo", "coco", overwrite=True).rejected == 0
    assert not (tmp_path / "geo" / "rejected.csv").exists()
    assert exported(spark, lake, tmp_path / "none", "seg", ALL + " WHERE label = 'spleen'").files == 0
    assert exported(spark, lake, tmp_path / "coco", "coco", "SELECT parent_id FROM labels").label_rows == 3
    with pytest.raises(BadRequest, match="not empty"):
        exported(spark, lake, tmp_path / "coco", "coco")
    assert exported(spark, lake, tmp_path / "coco", "coco", "SELECT image_id FROM slices WHERE k = 2", overwrite=True).label_rows == 1
    document = json.loads((tmp_path / "coco" / "labels.json").read_text())
    assert [annotation["area"] for annotation in document["annotations"]] == [3]
    assert sorted(path.name for path in (tmp_path / "coco").iterdir()) == ["labels.json"]


def test_pseudonyms_by_default_and_originals_only_where_they_were_kept(spark: Any, tmp_path: Path) -> None:
    folder, seg = annotated_series(tmp_path)
    lake, kept = tmp_path / "lake", crosswalk(tmp_path)
    files = sorted(folder.iterdir())
    harness.run(spark, lake, files[:2], settings=kept)
    harness.run(spark, lake, [seg], labels_kind())
    restore = Crosswalk.beside(tmp_path / "deid.key", harness.KEY).restore
    originals = {str(value) for value in (pydicom.dcmread(file).SOPInstanceUID for file in files)}
    exported(spark, lake, tmp_path / "pseudonyms", "seg")
    plain = next((tmp_path / "pseudonyms").glob("*.dcm")).read_bytes()
    assert not any(uid.encode() in plain for uid in originals)
    assert b"P1" not in plain
    known = {row["sop_instance_id"] for row in harness.rows(lake, "slices")}
    ds = pydicom.dcmread(next((tmp_path / "pseudonyms").glob("*.dcm")))
    items = [item for of in ds.ReferencedSeriesSequence for item in of.ReferencedInstanceSequence]
    assert {str(item.ReferencedSOPInstanceUID) for item in items} == known
    assert {str(item.ReferencedSOPClassUID) for item in items} == {phantoms.CT}
    exported(spark, lake, tmp_path / "originals", "seg", restore=restore)
    back = pydicom.dcmread(next((tmp_path / "originals").glob("*.dcm")))
    assert back.PatientID == "P1"
    assert sum(uid.encode() in next((tmp_path / "originals").glob("*.dcm")).read_bytes() for uid in originals) == 2
    # A slice that came without deid.crosswalk: nothing is written, one sentence says what to do, and doing it helps.
    harness.run(spark, lake, files[2:])
    with pytest.raises(BadRequest, match=r"the crosswalk lacks 1 of the UIDs .* deid.crosswalk = true"):
        exported(spark, lake, tmp_path / "missing", "seg", restore=restore)
    assert list((tmp_path / "missing").iterdir()) == []
    harness.run(spark, tmp_path / "scratch", files, settings=kept)
    assert exported(spark, lake, tmp_path / "missing", "seg", restore=restore).label_rows == 3
    assert not any(uid in text for _, _, text in harness.strings(lake) for uid in originals)
    sealed = [path for path in (tmp_path / "deid.key.crosswalk").rglob("*") if path.is_file()]
    assert sealed
    assert {path.stat().st_mode & 0o777 for path in sealed} == {0o600}
    assert not any(uid.encode() in path.read_bytes() for path in sealed for uid in originals)


def test_two_grids_of_a_slide_are_two_files(spark: Any, tmp_path: Path) -> None:
    image, _ = slides_work.stained(700, 500, [(50, 60, 400, 380)])
    slide = slides_work.write_svs(tmp_path / "slide-a.svs", [image], tile_px=128)
    square = [[100.0, 100.0], [300.0, 100.0], [300.0, 250.0], [100.0, 250.0], [100.0, 100.0]]
    shape = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]}, "properties": {"classification": "tumour"}}
    (tmp_path / "slide-a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [shape]}))
    lake = tmp_path / "lake"
    for tile_px in (128, 100):
        harness.run(spark, lake, [slide], slides_kind(), config.load(None, [f"tiling.tile_px={tile_px}"]))
    harness.run(spark, lake, [tmp_path / "slide-a.geojson"], labels_kind())
    result = exported(spark, lake, tmp_path / "out", "geojson")
    assert (result.files, result.counts["as_drawn"]) == (2, 2)
    for file in (tmp_path / "out").glob("*.geojson"):
        assert json.loads(file.read_text())["features"][0]["geometry"]["coordinates"] == [square]
    assert Lake(spark, str(lake)).exists("labels")
    assert Ids(harness.KEY).fingerprint != "none"
