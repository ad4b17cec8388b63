"""Label formats: laws, foreign oracles (highdicom, nibabel, pycocotools, Pillow), and every real label file with its figures."""

from __future__ import annotations

import contextlib
import io
import json
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medspark.config import Config, Guard
from medspark.errors import BadRequest, Rejected, SkippedSource
from medspark.keys import Ids
from medspark.labels.codebook import Codebook, Entry, read_codebook, to_snomed
from medspark.labels.formats import FORMATS, bands, json_items, reader
from medspark.labels.formats.coco import decode_runs
from medspark.labels.kind import labels_kind
from medspark.labels.pairs import Pairs, annotation_stem, image_ref, read_pairs
from medspark.labels.regions import Context, MaskPlane, Region, ring
from medspark.pixels.masks import unpack, unpack_u8
from medspark.tables.names import file_token, folder_token, image_stem
from medspark.tables.rows import Rejection
from medspark.tables.work import SourceFile
from tests.phantoms import bombs
from tests.phantoms.annotations import asap_xml, feature, label_image, write_json
from tests.real import shared_data

IDS = Ids(b"k" * 32)
SQUARE = [(0, 0), (10, 0), (10, 10), (0, 10)]


def context(uri: Path | str, **changes: Any) -> Context:
    return Context(IDS, changes.pop("settings", Config()), str(uri), **changes)


def read(name: str, path: Path, **changes: Any) -> list[Any]:
    return list(reader(name)(str(path), context(path, **changes)))


def mask_of(plane: MaskPlane) -> np.ndarray:
    if plane.mask_codec == "bits-zstd":
        return unpack(plane.mask, plane.rows, plane.cols)
    return unpack_u8(plane.mask, plane.rows, plane.cols)


def area_of(plane: MaskPlane) -> int:
    array = mask_of(plane)
    return int((array if plane.threshold is None else array >= plane.threshold).sum())


def areas(planes: Iterable[MaskPlane]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for plane in planes:
        found[plane.label] += area_of(plane)
    return dict(found)


def shapes(items: Iterable[Region]) -> dict[tuple[str, str], int]:
    return dict(Counter((item.label, item.geometry) for item in items))


def rejected(name: str, path: Path, **changes: Any) -> str:
    """The code of the fault, raised or yielded."""
    try:
        items = read(name, path, **changes)
    except Rejected as error:
        return error.code
    codes = {item.code for item in items if isinstance(item, Rejected)}
    assert len(codes) == 1, items
    return codes.pop()


# --- names and pairs ---------------------------------------------------------------------------------------------------------------


def test_a_name_is_cut_the_same_on_both_sides() -> None:
    for image, annotation in [
        ("slide.svs", "slide.asap.xml"),
        ("slide.svs", "slide.qupath.geojson"),
        ("slide.svs", "slide.svs.geojson"),
        ("slide.ome.tif", "slide_mask.png"),
        ("case.nii.gz", "case_seg.nii.gz"),
        ("case.nii.gz", "case-label.nii.gz".replace("-label", "_labels")),
        ("1.jpg", "1-mask.png"),
        ("CMU-1-Small-Region.svs", "CMU-1-Small-Region.mask.tif"),
        ("a.b.png", "a.b_Segmentation.PNG"),
    ]:
        assert image_stem(image) == annotation_stem(annotation), (image, annotation)
    assert annotation_stem("_mask.png") == "_mask"  # never cut to nothing
    assert image_stem(".hidden") == ".hidden" and image_stem("none") == "none"


def test_references_match_the_tokens_of_the_images() -> None:
    uri = "file:///data/study/slide.svs"
    assert image_ref(IDS, "slide.svs") == f"name:{file_token(IDS, uri)}"
    assert image_ref(IDS, "x/study/slide.svs") == f"path:{folder_token(IDS, uri)}/{file_token(IDS, uri)}"
    assert image_ref(IDS, "x/study/") == image_ref(IDS, "study") == f"folder:{folder_token(IDS, uri)}"
    assert image_ref(IDS, "1.2.840.113") == f"folder:{IDS.token('1.2.840.113')}"  # a folder named by a UID has no extension
    assert image_ref(IDS, "ab" * 16) == "image:" + "ab" * 16
    assert file_token(IDS, "a.zip!study/slide.svs") == file_token(IDS, uri)


def test_pairs_and_classes_are_checked(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("image,annotation\na.svs,x.xml\nb.svs,x.xml\nc.svs,deep/x.xml\n")
    pairs = read_pairs(table)
    assert pairs.refs(IDS, "/data/x.xml") == (image_ref(IDS, "a.svs"), image_ref(IDS, "b.svs"))
    assert pairs.refs(IDS, "/data/deep/x.xml") == (image_ref(IDS, "c.svs"),)
    assert pairs.refs(IDS, "/data/y.xml") == ()
    classes = tmp_path / "classes.csv"
    classes.write_text("value,label,role\n1,tumour,\n2.0,rim,ignore\n#FF0000,artery,positive\n")
    assert read_codebook(classes).entries == (Entry(1, "tumour"), Entry(2, "rim", "ignore"), Entry("ff0000", "artery"))
    bad = ["value,label\nx,tumour\n", "value,label\n1,\n", "value,label,role\n1,a,maybe\n", "value,label\n1,a\n1,b\n", "a,b\n1,2\n", ""]
    for text in [*bad, "value,label\n1.5,a\n"]:
        classes.write_text(text)
        with pytest.raises(BadRequest):
            read_codebook(classes)
    for text in ["image,annotation\na.svs,\n", "a,b\n1,2\n", ""]:
        table.write_text(text)
        with pytest.raises(BadRequest):
            read_pairs(table)
    with pytest.raises(BadRequest):
        read_pairs(tmp_path / "absent.csv")
    with pytest.raises(BadRequest):
        labels_kind("word")


def test_retired_codes_become_snomed_ct() -> None:
    assert to_snomed("T-62000", "SRT") == ("10200004", "SCT")  # liver
    assert to_snomed("10200004", "SCT") == ("10200004", "SCT")
    assert to_snomed("none-such", "SRT") == ("none-such", "SRT")


# --- ASAP --------------------------------------------------------------------------------------------------------------------------


def test_asap_groups_and_exclusion(tmp_path: Path) -> None:
    path = tmp_path / "s.asap.xml"
    shapes_ = [("Polygon", "Tumour", SQUARE), ("Polygon", "Hole", SQUARE), ("PointSet", "None", SQUARE), ("Rectangle", "Tumour", SQUARE)]
    path.write_text(asap_xml(shapes_, {"Tumour": "None", "Hole": "Exclusion", "Exclusion": "None"}))
    items = read("asap", path)
    assert shapes(items) == {("Tumour", "polygon"): 1, ("Hole", "polygon"): 1, ("unclassified", "point"): 4, ("Tumour", "box"): 1}
    assert [item.role for item in items if item.properties.get("exclude") == "true"] == ["ignore"]
    assert {item.ref_image for item in items} == {f"name:{IDS.token('s')}"}
    pairs = Pairs({"s.asap.xml": ("a.svs", "b.svs")})
    assert len(read("asap", path, pairs=pairs)) == 2 * len(items)


@pytest.mark.parametrize(
    ("points", "code"),
    [
        ([("nan", 0), (1, 1), (2, 0)], "LABEL_GEOMETRY"),
        ([("1e300", 0), (1, 1), (2, 0)], "LABEL_GEOMETRY"),
        ([("inf", 0), (1, 1), (2, 0)], "LABEL_GEOMETRY"),
        ([("word", 0), (1, 1), (2, 0)], "LABEL_GEOMETRY"),
        ([(0, 0), (1, 1)], "LABEL_GEOMETRY"),
        ([(0, 0), (1, 1), (0, 0)], "LABEL_GEOMETRY"),
        ([], "LABEL_GEOMETRY"),
    ],
)
def test_asap_refuses_impossible_shapes_and_keeps_the_others(tmp_path: Path, points: list[Any], code: str) -> None:
    path = tmp_path / "s.xml"
    path.write_text(asap_xml([("Polygon", "bad", points), ("Polygon", "good", SQUARE)]))
    assert rejected("asap", path) == code
    assert [item.label for item in read("asap", path) if isinstance(item, Region)] == ["good"]


def test_asap_reads_a_desktop_with_comma_decimals(tmp_path: Path) -> None:
    path = tmp_path / "s.xml"
    path.write_text(asap_xml([("Dot", "a", [("1,5", "2,25")])]))
    assert read("asap", path)[0].rings[0].tolist() == [[1.5, 2.25]]


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><ASAP_Annotations>&d;</ASAP_Annotations>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><ASAP_Annotations>&b;</ASAP_Annotations>',
        "<ASAP_Annotations><Annotations>",
        "<Annotations MicronsPerPixel='0.5'/>",
        "plain",
    ],
)
def test_hostile_and_foreign_xml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.xml"
    path.write_text(text)
    assert rejected("asap", path) == "LABEL_FORMAT"
    if text.startswith("<ASAP_Annotations>"):  # how it ends is seen when it is read
        assert labels_kind().scan(str(path), str(path), IDS, Config()) == {"format": "asap"}
        return
    with pytest.raises(Rejected, match="LABEL_FORMAT"):
        labels_kind().scan(str(path), str(path), IDS, Config())


def test_asap_elements_count_at_their_place_only(tmp_path: Path) -> None:
    text = asap_xml([("Polygon", "a", SQUARE), ("Polygon", "b", SQUARE)], {"a": "Exclusion", "b": "None", "Exclusion": "None"})
    shape = text[text.index("<Annotation ") : text.index("</Annotation>") + len("</Annotation>")]
    group = '<Group Name="b" PartOfGroup="Exclusion" />'
    for before in ("<Annotations>", "<AnnotationGroups>"):
        wrong = f"<Other><Annotations>{shape}</Annotations></Other><Other>{shape}{group}</Other>" + "<x><y/></x>" * 3
        path = tmp_path / "s.xml"
        path.write_text(text.replace(before, wrong + before))
        items = read("asap", path)
        assert [(item.label, item.role, len(item.rings[0]), item.instance_key) for item in items] == [
            ("a", "ignore", 4, "0"),
            ("b", "positive", 4, "1"),
        ]


def test_asap_is_read_shape_by_shape(tmp_path: Path) -> None:
    path = tmp_path / "s.xml"
    outline = [(float(x), float(y)) for x, y in 50 * np.random.default_rng(1).random((40, 2))]
    path.write_text(asap_xml([("Polygon", "cell", outline)] * 500))
    read("asap", path)  # its parser is imported
    tracemalloc.start()
    try:
        assert sum(len(item.rings[0]) for item in reader("asap")(str(path), context(path))) == 20_000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size  # as a tree it would be nine times the text
    finally:
        tracemalloc.stop()
    path.write_text(path.read_text()[:-30])
    with pytest.raises(Rejected, match="not well-formed"):
        next(reader("asap")(str(path), context(path)))  # nothing of a file that breaks off


def test_asap_real_files() -> None:
    found = shapes(read("asap", shared_data("wsi/annotations/CMU-1-Small-Region.asap.xml")))
    assert found == {("TissueB", "polygon"): 5, ("TissueA", "polygon"): 4, ("Exclusion", "polygon"): 1}
    base = shared_data("wsi/annotations/asap_cmu1")
    assert shapes(read("asap", base / "CMU-1_detection.xml")) == {("malignant", "box"): 22, ("benign", "box"): 1, ("cell", "point"): 4}
    classification = {("malignant", "polygon"): 2, ("benign", "polygon"): 2, ("benign", "point"): 1}
    assert shapes(read("asap", base / "CMU-1_classification.xml")) == classification
    assert shapes(read("asap", base / "CMU-1_segmentation.xml")) == {("malignant", "polygon"): 2, ("benign", "polygon"): 2}
    samples = shared_data("wsi/annotations/format_samples/asap")
    expected = {"dot": ("point", 1), "pointset": ("point", 5), "polygon": ("polygon", 1)}
    for name, (geometry, count) in expected.items():
        assert shapes(read("asap", samples / f"asap-{name}.xml")) == {("unclassified", geometry): count}


# --- GeoJSON -----------------------------------------------------------------------------------------------------------------------


def test_geojson_shapes(tmp_path: Path) -> None:
    ring = [*map(list, SQUARE), [0, 0]]
    hole = [[2, 2], [4, 2], [4, 4], [2, 2]]
    document = [
        feature("Polygon", [ring, hole], "Tumour", id="a"),
        feature("MultiPolygon", [[ring], [ring, hole]], "Tumour", id="b"),
        feature("MultiLineString", [[[0, 0], [1, 1]], [[2, 2], [3, 3]]], "Line", id="PathAnnotationObject"),
        feature("MultiPoint", [[0, 0], [1, 1]], "Ignore*", id="d"),
        feature("Polygon", [ring], "Cell", id="e", nucleusGeometry={"type": "Polygon", "coordinates": [hole]}),
    ]
    collections = [document, {"type": "FeatureCollection", "features": document}]
    for place, whole in enumerate(collections):
        items = read("geojson", write_json(tmp_path / f"s{place}.geojson", whole))
        assert shapes(items) == {
            **{("Tumour", "polygon"): 2, ("Tumour", "box"): 1, ("Line", "line"): 2, ("Ignore*", "point"): 2},
            **{("Cell", "box"): 1, ("Cell: nucleus", "polygon"): 1},
        }
        assert [len(item.rings) for item in items[:3]] == [2, 1, 2]
        assert [item.instance_key for item in items[:4]] == ["a", "b", "b", "2"]
        assert {item.role for item in items if item.label == "Ignore*"} == {"ignore"}
        assert not any("Doe" in str(item) for item in items)  # a typed name goes nowhere
        assert items[0].rings[0].shape == (4, 2)  # the repeated first point is left out


@pytest.mark.parametrize(
    ("geometry", "code"),
    [
        (None, "LABEL_GEOMETRY"),
        ({"type": "Polygon", "coordinates": []}, "LABEL_GEOMETRY"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "LABEL_GEOMETRY"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, None], [2, 2]]]}, "LABEL_GEOMETRY"),
        ({"type": "Polygon", "coordinates": [0, 1]}, "LABEL_GEOMETRY"),
        ({"type": "Point", "coordinates": [1]}, "LABEL_GEOMETRY"),
        ({"type": "Point", "coordinates": [1e400, 2]}, "LABEL_GEOMETRY"),
        ({"type": "Sphere", "coordinates": [1, 2]}, "LABEL_FORMAT"),
    ],
)
def test_geojson_bad_geometry(tmp_path: Path, geometry: Any, code: str) -> None:
    document = [{"type": "Feature", "geometry": geometry, "properties": None}]
    assert rejected("geojson", write_json(tmp_path / "s.geojson", document)) == code


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_json_is_read_item_by_item_as_the_library_reads_it_whole(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_items, "CHUNK_CHARS", chunk)
    values = [1, -2.5e-7, 'a\u00e4"b' * 30, None, True, {"features": [1]}, [[], {}], 12345678901234567890]
    objects = ({"features": values, "type": "x", "other": values}, {"a": 1, "features": []}, {}, {"features": 3})
    for document in (*objects, values, [], "text", 7):
        for text in (json.dumps(document), json.dumps(document, indent=2) + "\n", "  " + json.dumps(document, ensure_ascii=False)):
            *found, (is_item, rest) = json_items.items(io.StringIO(text), "features")
            held = document if isinstance(document, list) else document.get("features") if isinstance(document, dict) else None
            assert [value for _, value in found] == (held if isinstance(held, list) else []) and all(flag for flag, _ in found)
            assert not is_item
            if document is held:
                assert rest is None
            else:
                assert rest == ({**document, "features": []} if isinstance(document, dict) and isinstance(held, list) else document)
    good = json.dumps({"features": values, "other": values})
    for end in range(len(good)):
        with pytest.raises(ValueError):
            list(json_items.items(io.StringIO(good[:end]), "features"))
    for bad in ("[1,]", '{"a" 1}', "{1: 2}", "[1] 2", '{"features": [1 2]}', "[nul]", '{"features": [1]', "[1}"):
        with pytest.raises(ValueError):
            list(json_items.items(io.StringIO(bad), "features"))


def test_a_fault_in_a_long_document_is_found_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_items, "CHUNK_CHARS", 100)
    stream = io.StringIO('[{"a": 1}, {"a" 1 }' + " " * 1000 + '{"b": 2}, ' * 10_000 + "{}]")
    with pytest.raises(ValueError):
        list(json_items.items(stream, "features"))
    assert stream.tell() < 500  # a gigabyte behind it is never read


def test_a_slide_full_of_cells_is_not_held_in_memory(tmp_path: Path) -> None:
    ring = [[round(x, 2), round(y, 2)] for x, y in 50 * np.random.default_rng(1).random((100, 2))]
    path = write_json(tmp_path / "cells.geojson", {"type": "FeatureCollection", "features": [feature("Polygon", [ring], "cell")] * 4000})
    tracemalloc.start()
    try:
        assert sum(len(item.rings[0]) for item in reader("geojson")(str(path), context(path))) == 400_000
        assert tracemalloc.get_traced_memory()[1] < 3 * path.stat().st_size  # as one document it would be fourteen times the text
    finally:
        tracemalloc.stop()
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Rejected, match="not valid JSON"):
        next(reader("geojson")(str(path), context(path)))  # nothing of a document that breaks off


def test_a_million_coco_annotations_are_not_held_in_memory(tmp_path: Path) -> None:
    flat = [round(value, 2) for value in 50 * np.random.default_rng(1).random(200)]
    annotations = [{"id": number, "image_id": 1, "category_id": 1, "segmentation": [flat]} for number in range(4000)]
    head = {"images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 60}], "categories": [{"id": 1, "name": "cell"}]}
    path = write_json(tmp_path / "cells.json", {"annotations": annotations, **head})  # what they belong to stands behind them
    size = path.stat().st_size
    del annotations
    tracemalloc.start()
    try:
        assert labels_kind().scan(str(path), str(path), IDS, Config()) == {"format": "coco"}
        assert sum(len(item.rings[0]) for item in reader("coco")(str(path), context(path))) == 400_000
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()


def test_a_geometry_alone_is_geojson_too(tmp_path: Path) -> None:
    polygon = {"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]]]}
    for document in (polygon, {"type": "GeometryCollection", "geometries": [polygon]}):
        path = write_json(tmp_path / "a.geojson", document)
        assert labels_kind().scan(str(path), str(path), IDS, Config()) == {"format": "geojson"}
        assert shapes(read("geojson", path)) == {("unclassified", "box"): 1}


def test_foreign_json_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("[" * 100_000)
    samples = "wsi/annotations/format_samples/sectra/pathologycore-"
    real = [
        shared_data(f"{samples}area.json"),
        shared_data(f"{samples}polyline.json"),
        shared_data("wsi/annotations/camelyon16/Tumor_001.json"),
    ]
    for path in [broken, write_json(tmp_path / "empty.json", {}), *real]:
        with pytest.raises(Rejected, match="LABEL_FORMAT"):
            labels_kind().scan(str(path), str(path), IDS, Config())
        assert rejected("geojson", path) == "LABEL_FORMAT"


def test_geojson_real_files() -> None:
    samples = shared_data("wsi/annotations/format_samples/qupath_geojson")
    expected = {
        **{"brush": ("polygon", 1), "ellipse": ("polygon", 1), "polygon": ("polygon", 1), "wand": ("polygon", 1), "rectangle": ("box", 1)},
        **{"line": ("line", 1), "polyline": ("line", 1), "point": ("point", 1), "multipoint": ("point", 3)},
    }
    for name, (geometry, count) in expected.items():
        assert shapes(read("geojson", samples / f"qupath-{name}.json")) == {("unclassified", geometry): count}, name
    cells = shared_data("wsi/annotations/format_samples/qupath_geojson_advanced/qupath-polygon-cell-classified.json")
    assert shapes(read("geojson", cells)) == {("Cell", "polygon"): 2, ("Nucleus", "polygon"): 2}
    items = read("geojson", shared_data("wsi/annotations/CMU-1-Small-Region.qupath.geojson"))
    assert shapes(items) == {("TissueB", "polygon"): 5, ("TissueA", "polygon"): 4}
    assert sorted(len(item.rings) for item in items) == [1] * 8 + [2]


# --- DICOM SEG ---------------------------------------------------------------------------------------------------------------------

SEG_FILES = {
    "ct/dcmqi_liver/liver.dcm": {"Liver": 107098},
    "ct/dcmqi_liver/partial_overlaps.dcm": {"GREEN": 9602, "ORANGE": 11888, "PURPLE": 10743, "LIGHT_BLUE": 6693, "DARK_BLUE": 4713},
    "ct/dcmqi_small/sparse-labelmap-noppv.dcm": {"Liver": 630},
    "ct/dcmqi_small/sparse-labelmap-ppv5.dcm": {"Liver": 630},
    "ct/ge_head_tilt_labels_derived/seg_bone_soft.dcm": {"bone_gt400HU": 373405, "soft_tissue_0_80HU": 1348411},
    "highdicom/seg_image_ct_binary.dcm": {"first segment": 638},
    "highdicom/seg_image_ct_binary_fractional.dcm": {"first segment": 638},
    "highdicom/seg_image_ct_binary_overlap.dcm": {"first segment": 64, "second segment": 16},
    "highdicom/seg_image_ct_binary_single_frame.dcm": {"first segment": 1832},
    "highdicom/seg_image_ct_true_fractional.dcm": {"first segment": 638},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("relative", SEG_FILES)
def test_seg_agrees_with_highdicom(relative: str) -> None:
    """Every pixel of every source instance and segment, as ``get_pixels_by_source_instance`` gives them."""
    import highdicom

    path = shared_data(relative)
    planes = read("seg", path)
    assert areas(planes) == SEG_FILES[relative]
    seg = highdicom.seg.segread(path)
    numbers = [one.segment_number for one in seg.SegmentSequence if one.SegmentLabel != "Background"]
    uids = sorted({uid for _, _, uid in seg.get_source_image_uids()})
    whole = seg.get_pixels_by_source_instance(
        uids, segment_numbers=numbers, assert_missing_frames_are_empty=True, rescale_fractional=False, ignore_spatial_locations=True
    )
    mine = np.zeros(whole.shape, np.int64)
    refs = {f"sop:{IDS.uid(uid)}#{frame}": place for place, uid in enumerate(uids) for frame in (0, 1)}
    keys = [seg.get_segment_description(number) for number in numbers]
    names = [str(IDS.uid(one.tracking_uid) if one.tracking_uid else one.segment_number) for one in keys]
    for plane in planes:
        mine[refs[plane.ref_image], ..., names.index(str(plane.instance_key))] += mask_of(plane)
    np.testing.assert_array_equal(mine, whole)


def test_seg_planes_lie_where_the_slices_lie() -> None:
    """Counts per slice in position order, affine equal to the slice's own."""
    import pydicom

    base, images = shared_data("ct/ge_head_tilt_labels_derived"), shared_data("ct/ge_head_tilt")
    counts = json.loads((base / "pixel_counts.json").read_text())
    planes = read("seg", base / "seg_bone_soft.dcm")
    for label in ("bone_gt400HU", "soft_tissue_0_80HU"):
        mine = {plane.ref_image: plane for plane in planes if plane.label == label}
        for name, count in zip(counts["order_by_position"], counts[label], strict=True):
            ds = pydicom.dcmread(images / name, stop_before_pixels=True)
            plane = mine.pop(f"sop:{IDS.uid(ds.SOPInstanceUID)}#0", None)
            assert (area_of(plane) if plane else 0) == count, name
            if plane is None:
                continue
            affine = np.array(plane.affine).reshape(4, 4)
            np.testing.assert_allclose(affine[:3, 3], np.array(ds.ImagePositionPatient, float), atol=1e-3)
            np.testing.assert_allclose(
                affine[:3, 0], np.array(ds.ImageOrientationPatient[:3], float) * float(ds.PixelSpacing[1]), atol=1e-5
            )
            assert plane.ref_series_id == IDS.uid(ds.SeriesInstanceUID)
        assert not mine


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "count", "area"), [("control", 19, 523), ("dots", 45, 200)])
def test_seg_on_a_slide_agrees_with_highdicom(name: str, count: int, area: int) -> None:
    import highdicom

    path = shared_data(f"highdicom/seg_image_sm_{name}.dcm")
    planes = read("seg", path)
    assert sum(map(area_of, planes)) == area and len({plane.label for plane in planes}) == count
    seg = highdicom.seg.segread(path)
    whole = seg.get_total_pixel_matrix()
    mine = np.zeros((whole.shape[0], whole.shape[1], seg.number_of_segments), np.int64)
    names = [str(IDS.uid(seg.get_segment_description(number).tracking_uid)) for number in range(1, seg.number_of_segments + 1)]
    for plane in planes:
        assert (plane.ref_rows, plane.ref_cols, plane.affine) == (*whole.shape[:2], None) and plane.ref_image.endswith("#0")
        place = (slice(plane.row0, plane.row0 + plane.rows), slice(plane.col0, plane.col0 + plane.cols), names.index(plane.instance_key))
        mine[place] += mask_of(plane)
    np.testing.assert_array_equal(mine, whole)


def test_seg_without_references_is_found_by_its_plane(tmp_path: Path) -> None:
    import pydicom

    ds = pydicom.dcmread(shared_data("ct/dcmqi_liver/liver.dcm"))
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    ds.save_as(tmp_path / "seg.dcm")
    planes = read("seg", tmp_path / "seg.dcm")
    assert {plane.ref_image for plane in planes} == {f"plane:{IDS.uid(ds.FrameOfReferenceUID)}"}
    assert sorted(plane.affine[11] for plane in planes) == pytest.approx([-128.69, -127.69, -126.69], abs=0.02)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda ds: ds.pop("PixelData"), "LABEL_FORMAT"),
        (lambda ds: setattr(ds, "PixelData", ds.PixelData[:1000]), "PIXEL_LENGTH"),
        (lambda ds: setattr(ds, "NumberOfFrames", 300), "LABEL_FORMAT"),
        (lambda ds: setattr(ds, "Rows", 60000) or setattr(ds, "Columns", 60000), "TOO_LARGE"),
        (lambda ds: setattr(ds, "SegmentationType", "OTHER"), "LABEL_FORMAT"),
        (lambda ds: setattr(ds.SegmentSequence[0], "SegmentNumber", 9), "LABEL_FORMAT"),
        (lambda ds: ds.pop("SegmentSequence"), "LABEL_FORMAT"),
    ],
)
def test_seg_that_contradicts_itself(tmp_path: Path, change: Any, code: str) -> None:
    import pydicom

    ds = pydicom.dcmread(shared_data("ct/dcmqi_liver/liver.dcm"))
    change(ds)
    ds.save_as(tmp_path / "seg.dcm")
    assert rejected("seg", tmp_path / "seg.dcm") == code


def test_seg_retired_code_and_a_cut_object() -> None:
    (plane,) = read("seg", shared_data("broken/pydicom/liver_1frame.dcm"))
    assert (area_of(plane), plane.code, plane.code_scheme, plane.code_meaning) == (36233, "10200004", "SCT", "Liver")


@pytest.mark.filterwarnings("ignore")
def test_tiled_full_seg_and_label_map(tmp_path: Path) -> None:
    """Objects that highdicom writes and no real file shows: TILED_FULL with tiles over the edge; RLE-compressed label map."""
    import highdicom
    import pydicom
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    source = pydicom.dcmread(shared_data("highdicom/sm_image.dcm"))
    description = [SegmentDescription(number, f"s{number}", codes.SCT.Tissue, codes.SCT.ConnectiveTissue, "MANUAL") for number in (1, 2)]
    truth = np.zeros((1, 50, 50), np.uint8)
    truth[0, 3:29, 7:44], truth[0, 35:49, 2:50] = 1, 2
    for kind in ("BINARY", "LABELMAP"):
        seg = highdicom.seg.Segmentation(
            *([source], truth, kind, description, highdicom.UID(), 1, highdicom.UID(), 1, "m", "m", "1", "1"),
            tile_pixel_array=True,
            tile_size=(16, 20),
            dimension_organization_type="TILED_FULL" if kind == "BINARY" else "TILED_SPARSE",
            omit_empty_frames=kind != "BINARY",
            content_creator_name="Doe^Jane",
            **({"transfer_syntax_uid": pydicom.uid.RLELossless} if kind == "LABELMAP" else {}),
        )
        seg.save_as(tmp_path / f"{kind}.dcm")
        planes = read("seg", tmp_path / f"{kind}.dcm")
        mine = np.zeros((50, 50), np.uint8)
        for plane in planes:
            mine[plane.row0 : plane.row0 + plane.rows, plane.col0 : plane.col0 + plane.cols][mask_of(plane)] = int(plane.label[1])
        np.testing.assert_array_equal(mine, truth[0])
        assert {plane.annotator for plane in planes} == {IDS.annotator("Doe^Jane")}
        assert {plane.ref_image for plane in planes} == {f"sop:{IDS.uid(source.SOPInstanceUID)}#0"}


# --- RTSTRUCT ----------------------------------------------------------------------------------------------------------------------


def test_rtstruct_real_files() -> None:
    base = shared_data("ct/ge_head_tilt_labels_derived")
    xor, misplaced = read("rtstruct", base / "rtstruct_bone_xor.dcm"), read("rtstruct", base / "rtstruct_bone_misplaced.dcm")
    assert (len(xor), len(misplaced)) == (159, 156)
    assert {item.properties["contour_geometric_type"] for item in xor} == {"CLOSEDPLANAR_XOR"}
    assert {item.properties["contour_geometric_type"] for item in misplaced} == {"CLOSED_PLANAR"}
    assert len({item.ref_image for item in xor}) == 28 and all(item.ref_image.startswith("sop:") for item in xor)
    assert {(item.label, item.instance_key, item.geometry) for item in xor} == {("bone_gt400HU", "1", "contour")}
    assert all(ring.shape[1] == 3 for item in xor for ring in item.rings)
    phantom = shared_data("ct/rtutils_phantom")
    assert len(read("rtstruct", phantom / "rt.dcm")) == 2
    for name in ("invalid_reference_rt.dcm", "non_existent_reference_rt.dcm"):
        items = read("rtstruct", phantom / name)
        assert Counter(item.label for item in items) == {f"ROI-{number}": 3 for number in (1, 2, 3, 4)}
        assert {float(item.rings[0][0, 2]) for item in items} == {60.0, 65.0, 70.0}
    assert {item.ref_series_id for item in read("rtstruct", phantom / "non_existent_reference_rt.dcm")} == {None}


def test_rtstruct_without_meta_and_without_references() -> None:
    items = read("rtstruct", shared_data("broken/pydicom/rtstruct.dcm"))
    assert shapes(items) == {("patient", "contour"): 3, ("Isocenter 1", "point"): 1, ("Isocenter 2", "point"): 1}
    assert all(item.ref_image.startswith("plane:") for item in items)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda contour: setattr(contour, "ContourData", [1, 2, 3, 4]), "LABEL_GEOMETRY"),
        (
            lambda contour: setattr(contour, "ContourData", [1, 2, 3, 4, 5, 6]) or setattr(contour, "NumberOfContourPoints", 2),
            "LABEL_GEOMETRY",
        ),
        (lambda contour: setattr(contour, "NumberOfContourPoints", 3), "LABEL_GEOMETRY"),
        (lambda contour: setattr(contour, "ContourData", [1e9] * 12), "LABEL_GEOMETRY"),
        (lambda contour: setattr(contour, "ContourGeometricType", "ROUND"), "LABEL_FORMAT"),
    ],
)
def test_rtstruct_bad_contour(tmp_path: Path, change: Any, code: str) -> None:
    import pydicom

    ds = pydicom.dcmread(shared_data("ct/rtutils_phantom/rt.dcm"))
    change(ds.ROIContourSequence[0].ContourSequence[0])
    ds.save_as(tmp_path / "rt.dcm")
    assert rejected("rtstruct", tmp_path / "rt.dcm") == code
    assert sum(isinstance(item, Region) for item in read("rtstruct", tmp_path / "rt.dcm")) == 1


def test_a_pair_overrides_what_the_object_refers_to() -> None:
    """For archives that blank their UIDs: the series' folder is named, the planes are placed by their geometry."""
    pairs = Pairs({"liver.dcm": ("ct-3slice/",), "rt.dcm": ("ab" * 16,)})
    planes = read("seg", shared_data("ct/dcmqi_liver/liver.dcm"), pairs=pairs)
    assert {plane.ref_image for plane in planes} == {f"folder:{IDS.token('ct-3slice')}"} and all(plane.affine for plane in planes)
    assert {item.ref_image for item in read("rtstruct", shared_data("ct/rtutils_phantom/rt.dcm"), pairs=pairs)} == {"image:" + "ab" * 16}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_are_refused_and_never_crash(tmp_path: Path, seed: int) -> None:
    """A handful of random bytes of a real file changed: rows, rejections or a skip, nothing else."""
    generator = np.random.default_rng(seed)
    names = ["ct/dcmqi_small/sparse-labelmap-ppv5.dcm", "highdicom/sm_annotations.dcm", "ct/rtutils_phantom/rt.dcm"]
    names += ["wsi/annotations/format_samples/qupath_geojson/qupath-rectangle.json", "wsi/annotations/format_samples/asap/asap-polygon.xml"]
    data = bytearray(shared_data(names[seed % len(names)]).read_bytes())
    for place in generator.integers(0, len(data), 1 + seed // 5):
        data[place] = generator.integers(0, 256)
    path = tmp_path / f"damaged{Path(names[seed % len(names)]).suffix}"
    path.write_bytes(bytes(data[: len(data) - seed * 3]))
    with contextlib.suppress(Rejected, SkippedSource):
        explode(path)


# --- ANN ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outline", [[(0, 0), (5, 5)], [(0, 0), (5, 5), (0, 0), (5, 5)], [(3, 3)] * 6, [(0, 0), (0, 0), (5, 5)], []])
def test_an_outline_of_fewer_than_three_different_points_encloses_nothing(outline: list[tuple[float, float]]) -> None:
    for values in (outline, np.array(outline, float).reshape(-1, 2)):
        with pytest.raises(Rejected) as caught:
            ring(values)
        assert caught.value.code == "LABEL_GEOMETRY"
    assert len(ring([(0, 0), (5, 5), (0, 0), (0, 5), (0, 0)])) == 4


def test_a_deflated_bomb_is_refused_when_it_is_looked_at(tmp_path: Path) -> None:
    path = bombs.deflated(tmp_path / "a.dcm", "1.2.840.10008.5.1.4.1.1.66.4", 64 << 20)
    settings = Config(guard=Guard(max_file_bytes=1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(Rejected) as caught:
            labels_kind().scan(str(path), str(path), IDS, settings)
        assert caught.value.code == "TOO_LARGE" and rejected("seg", path, settings=settings) == "TOO_LARGE"
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_ann_real_file() -> None:
    import highdicom

    path = shared_data("highdicom/sm_annotations.dcm")
    items = read("ann", path)
    group = highdicom.ann.annread(path).get_annotation_group(number=1)
    truth = group.get_graphic_data("2D")
    assert [item.rings[0].tolist() for item in items] == [points.tolist() for points in truth]
    assert {(item.label, item.code, item.code_scheme, item.geometry) for item in items} == {("nuclei", "84640000", "SCT", "point")}
    assert [item.instance_key for item in items] == ["1:1", "1:2"] and items[0].properties["generation_type"] == "MANUAL"


def test_ann_all_graphic_types(tmp_path: Path) -> None:
    import highdicom
    import pydicom
    from pydicom.sr.codedict import codes

    source = pydicom.dcmread(shared_data("highdicom/sm_image.dcm"))
    square, ellipse = np.array(SQUARE, float), np.array([[0, 5], [20, 5], [10, 0], [10, 10]], float)
    drawn = {
        "POLYGON": [square, square[:3] + 0.5],
        "POLYLINE": [square[:2], square],
        "RECTANGLE": [square, np.array([[5, 0], [10, 5], [5, 10], [0, 5]], float)],
        "ELLIPSE": [ellipse],
        "POINT": [square[:1]],
    }
    groups = [
        highdicom.ann.AnnotationGroup(number, highdicom.UID(), kind, codes.SCT.Tissue, codes.SCT.ConnectiveTissue, kind, data, "MANUAL")
        for number, (kind, data) in enumerate(drawn.items(), start=1)
    ]
    ann = highdicom.ann.MicroscopyBulkSimpleAnnotations(
        [source], "2D", groups, highdicom.UID(), 1, highdicom.UID(), 1, "m", "m", "1", "1", content_creator_name="Doe^Jane"
    )
    ann.save_as(tmp_path / "ann.dcm")
    items = read("ann", tmp_path / "ann.dcm")
    assert shapes(items) == {
        **{("POLYGON", "polygon"): 2, ("POLYLINE", "line"): 2, ("RECTANGLE", "box"): 1, ("RECTANGLE", "polygon"): 1},
        **{("ELLIPSE", "polygon"): 1, ("POINT", "point"): 1},
    }
    assert items[1].rings[0].tolist() == (square[:3] + 0.5).tolist()
    outline = next(item for item in items if item.label == "ELLIPSE").rings[0]
    x, y = outline.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(np.pi * 10 * 5, rel=0.002)
    assert {item.annotator for item in items} == {IDS.annotator("Doe^Jane")}
    assert {item.ref_series_id for item in items} == {IDS.uid(source.SeriesInstanceUID)}


# --- masks -------------------------------------------------------------------------------------------------------------------------

MASK_FILES = {
    "wsi/annotations/CMU-1-Small-Region.mask.png": {"class_1": 869735, "class_2": 561525},
    "wsi/annotations/CMU-1-Small-Region.mask.tif": {"class_1": 869735, "class_2": 561525},
    "dermoscopy/image1_mask.png": {"class_255": 843153},
    "dermoscopy/image6_mask.png": {"class_255": 1399987},
    "cxr/jsrt_demo/1-mask.png": {"class_255": 74013},
    "retina/hrf/06_h_AVmanual.png": {"class_ff0000": 370018, "class_0000ff": 397678, "class_00ff00": 62174},
    "retina/hrf/07_dr_AVmanual.png": {"class_ff0000": 288060, "class_0000ff": 304383, "class_00ff00": 43918},
}


@pytest.mark.parametrize("relative", MASK_FILES)
def test_mask_real_files(relative: str) -> None:
    planes = read("mask", shared_data(relative))
    assert areas(planes) == MASK_FILES[relative]
    assert all((plane.row0, plane.col0) == (0, 0) and (plane.ref_rows, plane.ref_cols) == (plane.rows, plane.cols) for plane in planes)


def test_photos_are_no_masks() -> None:
    assert rejected("mask", shared_data("cxr/nih/00000001_000.png")) == "LABEL_FORMAT"
    assert rejected("mask", shared_data("histology_patches/nct_crc/TUM-AACHEHDV.tif")) == "LABEL_FORMAT"


def _painted(path: Path, **changes: Any) -> np.ndarray:
    """The label image put together again from all planes of ``class_<value>``."""
    planes = read("mask", path, **changes)
    whole = np.zeros((planes[0].ref_rows, planes[0].ref_cols), np.int64)
    for plane in planes:
        value = int(plane.label.removeprefix("class_"))
        whole[plane.row0 : plane.row0 + plane.rows, : plane.cols][mask_of(plane)] += value
    return whole


@pytest.mark.parametrize("band_pixels", [1 << 24, 1000])
@pytest.mark.parametrize("name", ["8", "16", "1", "4", "palette", "palette4", "interlaced", "la"])
def test_png_of_every_kind_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, band_pixels: int) -> None:
    import pyvips
    from PIL import Image

    monkeypatch.setattr(bands, "BAND_PIXELS", band_pixels)
    truth, path = label_image(), tmp_path / "m.png"
    if name == "1":
        truth = (truth > 0).astype(np.uint8)
        Image.fromarray(truth * 255).convert("1").save(path)
    elif name == "16":
        truth = truth.astype(np.uint16) * 300
        Image.fromarray(truth).save(path)
    elif name in ("4", "palette", "palette4"):
        picture = Image.fromarray(truth, mode=None).convert("P") if name == "4" else Image.fromarray(truth).convert("P")
        picture.putpalette([value % 256 for value in range(0, 768 * 7, 7)])
        picture.save(path, bits=4 if name in ("4", "palette4") else 8)
    elif name == "interlaced":
        pyvips.Image.new_from_array(truth).pngsave(str(path), interlace=True)
    elif name == "la":
        Image.fromarray(np.dstack([np.maximum(truth, 1), (truth > 0) * np.uint8(255)]), "LA").save(path)
    else:
        Image.fromarray(truth).save(path)
    np.testing.assert_array_equal(_painted(path), truth)


@pytest.mark.parametrize("band_pixels", [1 << 24, 3000])
@pytest.mark.parametrize(
    "options",
    [{"tile": (32, 16)}, {"rowsperstrip": 7}, {"tile": (16, 32), "compression": "zlib"}, {"compression": "lzw", "predictor": True}],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_tiff_of_every_kind_in_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], dtype: str, band_pixels: int
) -> None:
    import tifffile

    monkeypatch.setattr(bands, "BAND_PIXELS", band_pixels)
    truth = label_image(values=(1, 2, 200)).astype(dtype)
    tifffile.imwrite(tmp_path / "m.tif", truth, photometric="minisblack", **options)
    np.testing.assert_array_equal(_painted(tmp_path / "m.tif"), truth)


def test_bands_are_bounded_and_empty_ones_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyvips

    monkeypatch.setattr(bands, "BAND_PIXELS", 1 << 16)
    path = tmp_path / "big_mask.png"
    image = pyvips.Image.black(3000, 4000).draw_rect(7, 100, 1000, 50, 30, fill=True)
    image.pngsave(str(path))
    watched: list[str] = []
    planes = list(reader("mask")(str(path), context(path, watch=watched.append)))
    assert areas(planes) == {"class_7": 1500}
    assert all(plane.rows * plane.cols <= 1 << 16 for plane in planes) and len(planes) <= 3
    assert len(watched) == -(-4000 // ((1 << 16) // 3000)) + len(
        planes
    )  # every band of the first pass, of the second those that hold a class


def test_mask_classes_and_background(tmp_path: Path) -> None:
    from PIL import Image

    path, truth = tmp_path / "case_mask.png", label_image(values=(1, 2))
    Image.fromarray(truth).save(path)
    classes = Codebook((Entry(1, "tumour"), Entry(2, "doubt", "ignore")))
    planes = read("mask", path, classes=classes)
    assert {(plane.label, plane.role) for plane in planes} == {("tumour", "positive"), ("doubt", "ignore")}
    assert {plane.ref_image for plane in planes} == {f"name:{IDS.token('case')}"}
    Image.fromarray(truth + 5).save(path)  # 0 is absent: the lowest value is background
    assert set(areas(read("mask", path))) == {"class_6", "class_7"}
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)  # known to be absent
    assert [(plane.label, area_of(plane)) for plane in read("mask", path)] == [("foreground", 0)]
    assert [(plane.label, area_of(plane)) for plane in read("mask", path, classes=classes)] == [("tumour", 0), ("doubt", 0)]
    rgba = np.zeros((20, 30, 4), np.uint8)
    rgba[:10], rgba[2:4, 2:5] = (255, 0, 0, 0), (255, 0, 0, 255)
    Image.fromarray(rgba).save(path)
    assert areas(read("mask", path)) == {"class_ff0000": 6}
    assert areas(read("mask", path, classes=Codebook((Entry("ff0000", "artery"),)))) == {"artery": 6}
    picture = Image.fromarray(truth).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255] + [9] * 759)
    picture.save(path)
    by_colour = Codebook((Entry("ff0000", "artery"), Entry("0000ff", "vein")))
    wanted = {"artery": int((truth == 1).sum()), "vein": int((truth == 2).sum())}
    assert areas(read("mask", path, classes=by_colour)) == wanted
    tiff = tmp_path / "case_mask.tif"
    picture.save(tiff, compression="tiff_lzw")
    assert areas(read("mask", tiff, classes=by_colour)) == wanted and set(areas(read("mask", tiff))) == {"class_1", "class_2"}


def test_broken_masks(tmp_path: Path) -> None:
    import tifffile
    from PIL import Image

    path = tmp_path / "m.png"
    noise = np.random.default_rng(1).integers(0, 3, (300, 300)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert rejected("mask", path) == "DECODE_FAILED"
    path.write_bytes(whole[:20])
    assert rejected("mask", path) == "TRUNCATED"
    path.write_bytes(b"")
    assert rejected("mask", path) == "EMPTY_FILE"
    header = b"IHDR" + (1 << 30).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])  # a bomb: 2^60 pixels
    path.write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:])
    assert rejected("mask", path) == "TOO_LARGE"
    tifffile.imwrite(tmp_path / "f.tif", np.full((9, 9), 0.5, np.float32))
    assert rejected("mask", tmp_path / "f.tif") == "LABEL_FORMAT"
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((4000, 4000), np.uint8), rowsperstrip=4000, compression="zlib")
    assert rejected("mask", tmp_path / "s.tif", settings=Config(guard=Guard(max_pixels=1 << 20))) == "TOO_LARGE"
    tifffile.imwrite(tmp_path / "t.tif", noise, tile=(64, 64), compression="zlib")
    data = (tmp_path / "t.tif").read_bytes()
    (tmp_path / "t.tif").write_bytes(data[:-1500])
    assert rejected("mask", tmp_path / "t.tif") in ("DECODE_FAILED", "LABEL_FORMAT", "TRUNCATED")


# --- NIfTI -------------------------------------------------------------------------------------------------------------------------


def test_nifti_real_file_agrees_with_nibabel() -> None:
    import nibabel

    path = shared_data("nifti/BraTS2021_00006/BraTS2021_00006_seg.nii.gz")
    planes = read("nifti", path)
    assert areas(planes) == {"class_1": 25506, "class_2": 85957, "class_4": 26448}
    image = nibabel.load(path)
    truth, affine = np.asarray(image.dataobj), np.diag([-1, -1, 1, 1]) @ image.affine
    mine = np.zeros_like(truth)
    for plane in planes:
        own = np.array(plane.affine).reshape(4, 4)
        k = round(float((np.linalg.inv(affine) @ own[:, 3])[2]))
        np.testing.assert_allclose(own, affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, k], [0, 0, 0, 1.0]]))
        mine[..., k].T[mask_of(plane)] = int(plane.label.removeprefix("class_"))
    np.testing.assert_array_equal(mine, truth)


def test_nifti_units_scaling_and_faults(tmp_path: Path) -> None:
    import nibabel

    truth = np.stack([label_image(20, 30, (1, 2)).T, np.zeros((30, 20), np.uint8)], axis=-1)
    image = nibabel.Nifti2Image(truth.astype(np.float32), np.diag([0.002, 0.002, 0.005, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "v.nii")
    planes = read("nifti", tmp_path / "v.nii")
    assert areas(planes) == {"class_1": int((truth == 1).sum()), "class_2": int((truth == 2).sum())}
    assert (planes[0].rows, planes[0].cols) == (20, 30)
    assert np.array(planes[0].affine).reshape(4, 4)[:3, :3] == pytest.approx(np.diag([-2.0, -2.0, 5.0]))
    for name in ("flair", "t1ce"):
        assert rejected("nifti", shared_data(f"nifti/BraTS2021_00006/BraTS2021_00006_{name}.nii.gz")) == "LABEL_FORMAT"
    assert rejected("nifti", shared_data("nifti/nibabel_example4d.nii.gz")) == "LABEL_SIZE"
    whole = (tmp_path / "v.nii").read_bytes()
    (tmp_path / "v.nii").write_bytes(whole[:-100])
    assert rejected("nifti", tmp_path / "v.nii") == "TRUNCATED"
    packed = shared_data("nifti/BraTS2021_00006/BraTS2021_00006_seg.nii.gz").read_bytes()
    (tmp_path / "v.nii.gz").write_bytes(packed[: len(packed) // 2])
    assert rejected("nifti", tmp_path / "v.nii.gz") == "TRUNCATED"
    plain = nibabel.Nifti1Image(truth, None)
    nibabel.save(plain, tmp_path / "p.nii.gz")
    assert {plane.affine for plane in read("nifti", tmp_path / "p.nii.gz")} == {None}


# --- COCO --------------------------------------------------------------------------------------------------------------------------


def test_run_lengths_agree_with_pycocotools() -> None:
    from pycocotools import mask as coco_mask

    generator = np.random.default_rng(7)
    for rows, cols, density in [(1, 1, 0.5), (17, 9, 0.5), (64, 128, 0.01), (300, 200, 0.3), (5, 5, 0.0), (5, 5, 1.0)]:
        truth = generator.random((rows, cols)) < density
        packed = coco_mask.encode(np.asfortranarray(truth.astype(np.uint8)))
        np.testing.assert_array_equal(decode_runs(packed["counts"], rows, cols), truth)
        np.testing.assert_array_equal(decode_runs(packed["counts"].decode(), rows, cols), truth)
        flat = truth.T.ravel().astype(int)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
        plain = np.diff(np.concatenate([[0], edges, [len(flat)]])) if len(edges) and edges[-1] != len(flat) else np.diff([0, *edges])
        np.testing.assert_array_equal(decode_runs(plain.tolist(), rows, cols), truth)


def test_coco(tmp_path: Path) -> None:
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 4, "height": 3}, {"id": 2, "file_name": "sub/b.jpg"}],
        "categories": [{"id": 5, "name": "nucleus"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "segmentation": [[0, 0, 2, 0, 2, 2], [1, 1, 3, 1, 3, 3]], "bbox": [0, 0, 3, 3]},
            {"id": 2, "image_id": 1, "category_id": 5, "segmentation": {"size": [3, 4], "counts": [1, 2, 9]}, "iscrowd": 1},
            {"id": 3, "image_id": 2, "category_id": 5, "bbox": [1, 2, 3, 4]},
            {"id": 4, "image_id": 9, "category_id": 5, "bbox": [1, 2, 3, 4]},
            {"id": 5, "image_id": 1, "category_id": 5, "segmentation": {"size": [3, 4], "counts": [1, 2]}},
            {"id": 6, "image_id": 1, "category_id": 5, "segmentation": [[0, 0, 2, 0]]},
            {"id": 7, "image_id": 1, "category_id": 5, "segmentation": {"size": [9, 9], "counts": [81]}},
            {"id": 8, "image_id": [], "category_id": 5},
        ],
    }
    items = read("coco", write_json(tmp_path / "c.json", document))
    kept, faults = [item for item in items if not isinstance(item, Rejected)], [item.code for item in items if isinstance(item, Rejected)]
    assert faults == ["LABEL_FORMAT", "LABEL_SIZE", "LABEL_GEOMETRY", "LABEL_SIZE", "LABEL_FORMAT"]
    assert [(type(item).__name__, item.instance_key, item.role) for item in kept] == [
        *[("Region", "1", "positive"), ("Region", "1", "positive"), ("MaskPlane", "2", "ignore"), ("Region", "3", "positive")]
    ]
    assert np.argwhere(mask_of(kept[2])).tolist() == [[1, 0], [2, 0]]  # runs go down the columns
    assert kept[0].ref_image == image_ref(IDS, "a.png") and kept[3].ref_image == image_ref(IDS, "sub/b.jpg")
    assert labels_kind().scan(str(tmp_path / "c.json"), "c.json", IDS, Config()) == {"format": "coco"}


# --- CSV ---------------------------------------------------------------------------------------------------------------------------


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(
        "image,label,value,x,y,width,height,annotator,role\n"
        "a.png,Cardiomegaly,1,,,,,Dr Doe,\n"
        "a.png,nodule,,10,20,5,6,,ignore\n"
        "a.png,mark,,10,20,,,,\n"
        "a.png,bad,,10,,,,,\n"
        "a.png,bad,,nan,2,3,4,,\n"
        "a.png,bad,,1,2,0,4,,\n"
        ",bad,,,,,,,\n"
        "a.png,bad,,,,,,,perhaps\n"
    )
    items = read("csv", path)
    kept = [item for item in items if isinstance(item, Region)]
    assert [(item.label, item.geometry, len(item.rings), item.role) for item in kept] == [
        *[("Cardiomegaly", "box", 0, "positive"), ("nodule", "box", 1, "ignore"), ("mark", "point", 1, "positive")]
    ]
    assert [item.instance_key for item in kept] == [None, "2", "3"]
    assert kept[0].properties == {"class_value": "1"} and kept[0].annotator == IDS.annotator("Dr Doe")
    assert kept[1].rings[0].tolist() == [[10, 20], [15, 20], [15, 26], [10, 26]]
    codes = [item.code for item in items if isinstance(item, Rejected)]
    assert codes == ["LABEL_GEOMETRY"] * 3 + ["LABEL_FORMAT"] * 2
    path.write_bytes(b"\xef\xbb\xbfimage;label;x;y;width;height\r\na.png;nodule;10,5;20;5;6\r\n")  # a spreadsheet's, in Germany
    assert labels_kind().scan(str(path), str(path), IDS, Config()) == {"format": "csv"}
    (item,) = read("csv", path)
    assert item.label == "nodule" and item.rings[0][0].tolist() == [10.5, 20]
    path.write_text("image\tlabel\na.png\tnodule, solid\n")
    assert labels_kind().scan(str(path), str(path), IDS, Config()) == {"format": "csv"}
    assert [item.label for item in read("csv", path)] == ["nodule, solid"]
    path.write_text("picture,class\na,b\n")
    assert rejected("csv", path) == "LABEL_FORMAT"
    with pytest.raises(SkippedSource):
        labels_kind().scan(str(path), str(path), IDS, Config())


# --- the kind ----------------------------------------------------------------------------------------------------------------------


def explode(path: Path, **options: Any) -> tuple[dict[str, list[dict[str, Any]]], list[Rejection]]:
    kind = labels_kind(**options)
    header = kind.scan(str(path), str(path), IDS, Config())
    source = SourceFile(IDS.source("d", str(path), "0"), str(path), str(path), path.stat().st_size, "d", header)
    rows: dict[str, list[dict[str, Any]]] = {"regions": [], "planes": []}
    rejections: list[Rejection] = []
    watched: list[str] = []
    for unit in kind.plan([source], IDS, Config()).units:
        for item in kind.explode(unit, IDS, Config(), lambda source, what="": watched.append(what)):
            if isinstance(item, Rejection):
                rejections.append(item)
            else:
                rows[item.table] += item.to_arrow("run", "batch").to_pylist()
    assert watched
    return rows, rejections


def test_rows_fit_the_tables() -> None:
    rows, faults = explode(shared_data("wsi/annotations/CMU-1-Small-Region.qupath.geojson"), explicit_dataset=True)
    assert len(rows["regions"]) == 9 and not faults
    holed = next(row for row in rows["regions"] if len(row["rings"]) == 2)
    assert holed["rings"][1][0] == {"x": 250.0, "y": 250.0, "z": None} and holed["ref_dataset"] == "d"
    rows, faults = explode(shared_data("ct/ge_head_tilt_labels_derived/rtstruct_bone_xor.dcm"))
    assert len({row["region_id"] for row in rows["regions"]}) == 159 and not faults
    assert rows["regions"][0]["rings"][0][0]["z"] == pytest.approx(-18.2562) and rows["regions"][0]["ref_dataset"] is None
    rows, faults = explode(shared_data("highdicom/seg_image_ct_true_fractional.dcm"))
    assert {(row["mask_codec"], row["threshold"]) for row in rows["planes"]} == {("u8-zstd", 127.5)}
    rows, faults = explode(shared_data("highdicom/sm_annotations.dcm"))
    assert dict(rows["regions"][0]["properties"]) == {"shape": "POINT", "generation_type": "MANUAL"}


def test_a_bad_shape_is_a_row_in_rejected(tmp_path: Path) -> None:
    path = tmp_path / "s.xml"
    path.write_text(asap_xml([("Polygon", "a", SQUARE[:2])] * 150 + [("Polygon", "b", SQUARE)]))
    rows, faults = explode(path)
    assert len(rows["regions"]) == 1 and len(faults) == 101
    assert {fault.code for fault in faults} == {"LABEL_GEOMETRY"} and faults[-1].message.startswith("50 more")


def test_sniffing_real_files() -> None:
    def found(relative: str, **options: Any) -> str:
        path = str(shared_data(relative))
        try:
            return str(labels_kind(**options).scan(path, path, IDS, Config())["format"])
        except SkippedSource:
            return "skipped"
        except Rejected as error:
            return error.code

    assert found("ct/dcmqi_liver/liver.dcm") == "seg"
    assert found("ct/dcmqi_small/sparse-labelmap-ppv5.dcm") == "seg"
    assert found("broken/pydicom/rtstruct.dcm") == "rtstruct"
    assert found("highdicom/sm_annotations.dcm") == "ann"
    assert found("wsi/annotations/CMU-1-Small-Region.mask.tif") == "mask"
    assert found("nifti/BraTS2021_00006/BraTS2021_00006_seg.nii.gz") == "nifti"
    for image in (
        "highdicom/ct_image.dcm",
        "wsi/CMU-1-Small-Region.svs",
        "dermoscopy/image1.jpg",
        "medmnist/pneumoniamnist.npz",
        "MANIFEST.md",
    ):
        assert found(image) == "skipped", image
    assert found("lidc/lidc_annotations_sample.json") == "LABEL_FORMAT"
    assert found("ct/dcmqi_liver/liver.dcm", format="mask") == "skipped"
    assert set(FORMATS) == {"asap", "geojson", "seg", "rtstruct", "ann", "nifti", "mask", "coco", "csv"}
