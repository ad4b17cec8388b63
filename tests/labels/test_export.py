"""The writers against other programs: highdicom, pycocotools, nibabel and Pillow read what they wrote."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pycocotools.coco import COCO

from medspark.config import Config
from medspark.errors import BadRequest, Rejected
from medspark.keys import Ids
from medspark.labels.export import coco, geojson, nifti, png, seg, values
from medspark.labels.export.rows import Mask, Reader, by_reader, suffix
from medspark.labels.export.stitch import Canvas
from medspark.labels.formats import reader
from medspark.labels.regions import Context
from medspark.pixels.masks import pack, pack_u8, unpack
from tests.labels.test_export_trace import tile_masks
from tests.phantoms import labels as phantoms

HAND = Reader("annotation", "file", "somebody", 0)
MODEL = Reader("model", "", "net", 2)
ROWS, COLS = 5, 7
STUDY, SERIES, FRAME = ("2.25." + str(number) for number in (11, 12, 13))


def series(**rest: Any) -> dict[str, Any]:
    affine = np.array([[0.5, 0, 0, -10.0], [0, 0.75, 0, 4.0], [0, 0, 2.5, 30.0], [0, 0, 0, 1]])
    return {
        **{"series_id": "5" * 32, "subject_key": "a" * 32, "study_id": STUDY, "series_instance_id": SERIES, "frame_of_reference_id": FRAME},
        **{"n_slices": 3, "n_volumes": 1, "rows": ROWS, "cols": COLS, "slice_spacing_mm": 2.5, "affine_lps_mm": affine.ravel().tolist()},
        **{"verdict": [], **rest},
    }


def slice_row(k: int, **rest: Any) -> dict[str, Any]:
    return {
        **{"series_id": "5" * 32, "dataset": "d", "k": k, "t": 0, "sop_instance_id": f"2.25.{100 + k}", "frame_number": 1},
        **{"position_mm": 30.0 + 2.5 * k, "modality": "CT", "rows": ROWS, "cols": COLS, "image_position_mm": [-10.0, 4.0, 30.0 + 2.5 * k]},
        **{"image_orientation": [1.0, 0, 0, 0, 1.0, 0], "pixel_spacing_mm": [0.75, 0.5], "slice_thickness_mm": 2.5},
        **{"sop_class": "1.2.840.10008.5.1.4.1.1.2", **rest},
    }


def mask(label: str, k: int, pixels: Any, key: str | None = None, whose: Reader = HAND, **rest: Any) -> Mask:
    """A row of labels on slice k. ``pixels``: bool, or uint8 fractions."""
    codec, packed = ("bits-zstd", pack(pixels)) if pixels.dtype == bool else ("u8-zstd", pack_u8(pixels))
    said = {"code": None, "code_scheme": None, "role": "positive", "threshold": None, "confidence": None, "image": slice_row(k), **rest}
    named = {"label_row_id": f"{label}-{k}-{key}-{whose.name}", "image_id": f"{k:032x}", "label": label, "instance_key": key}
    return Mask(**named, **said, reader=whose, rows=pixels.shape[0], cols=pixels.shape[1], codec=codec, packed=packed)


def random_masks(seed: int, labels: tuple[str, ...] = ("liver", "tumour"), overlap: bool = True) -> list[Mask]:
    generator = np.random.default_rng(seed)
    found = []
    for k in (0, 2):
        which = generator.integers(0, 1 + len(labels), (ROWS, COLS))
        for number, label in enumerate(labels):
            pixels = generator.random((ROWS, COLS)) < 0.5 if overlap else which == number + 1
            found.append(mask(label, k, pixels, key=f"{label} 1" if number else None))
    return found


def planes_of(path: Path, name: str) -> list[Any]:
    context = Context(Ids(None), Config(), str(path))
    return list(reader(name)(str(path), context))


def as_painted(masks: list[Mask]) -> dict[tuple[str, int], np.ndarray]:
    return {(one.label, one.image["k"]): one.inside() for one in masks if one.inside().any()}


# ---- DICOM SEG


def test_seg_opens_with_highdicom_and_reads_back_the_same(tmp_path: Path) -> None:
    masks = random_masks(1)
    masks.append(mask("lesion", 1, np.eye(ROWS, COLS, dtype=bool), code="52988006", code_scheme="SCT"))
    written = list(seg.write(series(), masks, Ids(None)))
    assert [(one.label_rows, one.fractional) for one in written] == [(5, False)]
    (tmp_path / "a.dcm").write_bytes(written[0].data())
    opened = highdicom.seg.segread(tmp_path / "a.dcm")
    assert {opened.get_segment_description(number).SegmentLabel for number in opened.segment_numbers} == {"liver", "tumour", "lesion"}
    assert (opened.StudyInstanceUID, opened.FrameOfReferenceUID, opened.PatientID) == (STUDY, FRAME, "a" * 32)
    items = planes_of(tmp_path / "a.dcm", "seg")
    again = {(item.label, int(item.ref_image.split("#")[0].rsplit(".", 1)[1]) - 100): unpack(item.mask, ROWS, COLS) for item in items}
    wanted = as_painted(masks)
    assert again.keys() == wanted.keys()
    assert all((again[key] == wanted[key]).all() for key in wanted)
    assert {(item.label, item.code, item.code_scheme) for item in items} == {
        ("liver", None, None),
        ("tumour", None, None),
        ("lesion", "52988006", "SCT"),
    }
    assert {item.ref_series_id for item in items} == {SERIES}
    assert written[0].data() != b"" and seg_uid(masks) == seg_uid(list(reversed(masks)))


def seg_uid(masks: list[Mask]) -> str:
    return str(next(seg.write(series(), masks, Ids(None))).dataset.SOPInstanceUID)


def test_seg_of_fractions_keeps_every_value(tmp_path: Path) -> None:
    fractions = np.arange(ROWS * COLS, dtype=np.uint8).reshape(ROWS, COLS) * 7
    both = [mask("heat", 1, fractions, whose=MODEL, threshold=0.5), mask("heat", 0, fractions > 100, whose=MODEL)]
    written = list(seg.write(series(), both, Ids(None)))
    assert [one.fractional for one in written] == [False, True]
    (tmp_path / "f.dcm").write_bytes(written[1].data())
    (item,) = planes_of(tmp_path / "f.dcm", "seg")
    from medspark.pixels.masks import unpack_u8

    assert (unpack_u8(item.mask, ROWS, COLS) == fractions).all()
    assert written[1].dataset.SegmentationFractionalType == "PROBABILITY"
    assert written[1].dataset.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"


def test_seg_of_a_multi_frame_instance_names_frames(tmp_path: Path) -> None:
    rows = [slice_row(k, sop_instance_id="2.25.500", frame_number=k + 1, sop_class="1.2.840.10008.5.1.4.1.1.4.1") for k in range(3)]
    masks = [mask("a", k, np.eye(ROWS, COLS, k, dtype=bool), image=rows[k]) for k in range(3)]
    (tmp_path / "m.dcm").write_bytes(next(seg.write(series(), masks, Ids(None))).data())
    found = {item.ref_image: unpack(item.mask, ROWS, COLS) for item in planes_of(tmp_path / "m.dcm", "seg")}
    assert sorted(found) == [f"sop:2.25.500#{frame}" for frame in (1, 2, 3)]
    assert all((found[f"sop:2.25.500#{k + 1}"] == masks[k].inside()).all() for k in range(3))
    ds = pydicom.dcmread(tmp_path / "m.dcm")
    assert [item.ReferencedSOPInstanceUID for item in ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence] == ["2.25.500"]


def test_seg_without_a_frame_of_reference_and_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flat = slice_row(0, image_position_mm=None, image_orientation=None, sop_class="1.2.840.10008.5.1.4.1.1.1.1", modality="DX")
    one = mask("lung", 0, np.eye(ROWS, COLS, dtype=bool), image=flat)
    (tmp_path / "x.dcm").write_bytes(next(seg.write(series(frame_of_reference_id=None), [one], Ids(None))).data())
    (item,) = planes_of(tmp_path / "x.dcm", "seg")
    assert (unpack(item.mask, ROWS, COLS) == one.inside()).all()
    monkeypatch.setattr(seg, "ARRAY_BYTES", 2 * ROWS * COLS)
    masks = random_masks(3, ("a", "b", "c"))
    parts = list(seg.write(series(), masks, Ids(None)))
    assert [part.label_rows for part in parts] == [2, 2, 2]
    assert len({part.dataset.SOPInstanceUID for part in parts}) == 3
    assert len({part.dataset.SeriesInstanceUID for part in parts}) == 1


def test_seg_refuses_what_has_no_instances() -> None:
    one = mask("a", 0, np.ones((ROWS, COLS), bool), image=slice_row(0, sop_instance_id=None))
    with pytest.raises(Rejected, match="no DICOM instances"):
        list(seg.write(series(), [one], Ids(None)))


# ---- COCO


def test_coco_is_read_by_pycocotools_and_by_us(tmp_path: Path) -> None:
    masks = sorted([*random_masks(5), mask("liver", 2, np.ones((ROWS, COLS), bool), role="ignore")], key=lambda one: one.image_id)
    numbered = values.numbers(["liver", "tumour"], True)
    lines = [line.encode() for line in coco.entries(masks, numbered)]
    assert len(lines) == 2
    with open(tmp_path / "labels.json", "wb") as stream, open(tmp_path / "spill", "w+b") as spill:
        counted = coco.join(stream, spill, lines, coco.category_list([("liver", None, None), ("tumour", "1", "SCT")]))
    assert counted == (2, 5)
    opened = COCO(str(tmp_path / "labels.json"))
    for said, one in zip(opened.loadAnns(opened.getAnnIds()), masks, strict=True):
        assert (opened.annToMask(said).astype(bool) == one.inside()).all()
        assert said["area"] == one.inside().sum()
        assert opened.loadCats(said["category_id"])[0]["name"] == one.label
    items = planes_of(tmp_path / "labels.json", "coco")
    assert [(item.label, item.role, item.ref_image) for item in items] == [(one.label, one.role, f"image:{one.image_id}") for one in masks]
    assert all((unpack(item.mask, ROWS, COLS) == one.inside()).all() for item, one in zip(items, masks, strict=True))


def test_coco_without_labels_is_a_document(tmp_path: Path) -> None:
    with open(tmp_path / "labels.json", "wb") as stream, open(tmp_path / "spill", "w+b") as spill:
        assert coco.join(stream, spill, [], []) == (0, 0)
    assert json.loads((tmp_path / "labels.json").read_text())["annotations"] == []


# ---- NIfTI


@pytest.mark.parametrize("overlap", [False, True])
def test_nifti_lies_where_the_series_lies(tmp_path: Path, overlap: bool) -> None:
    masks, numbered = random_masks(7, overlap=overlap), values.numbers(["liver", "tumour"], True)
    written = list(nifti.write(series(), masks, numbered))
    assert [volume.label for volume in written] == (["liver", "tumour"] if overlap else [None])
    wanted = as_painted(masks)
    for number, volume in enumerate(written):
        path = tmp_path / f"{number}.nii.gz"
        path.write_bytes(volume.data)
        opened: Any = nibabel.load(path)
        assert opened.shape == (COLS, ROWS, 3)
        assert nibabel.aff2axcodes(opened.affine) == ("L", "P", "S")
        assert opened.affine @ [1, 2, 1, 1] == pytest.approx([9.5, -5.5, 32.5, 1])
        assert (opened.header["sform_code"], opened.header["qform_code"]) == (1, 1)
        stored = np.asarray(opened.dataobj)
        for (label, k), pixels in wanted.items():
            if volume.label in (None, label):
                assert ((numbered[label] == stored[:, :, k].T) == pixels).all()
        for item in planes_of(path, "nifti"):
            assert item.affine is not None
            assert np.array(item.affine).reshape(4, 4)[:3, 0] == pytest.approx([0.5, 0, 0])


def test_nifti_of_a_tilted_series_has_no_qform(tmp_path: Path) -> None:
    sheared = np.array([[0.5, 0, 0, 0], [0, 0.75, 0.8, 0], [0, 0, 2.5, 0], [0, 0, 0, 1]])
    (volume,) = nifti.write(series(affine_lps_mm=sheared.ravel().tolist()), random_masks(2, ("a",)), {"a": 1})
    (tmp_path / "t.nii.gz").write_bytes(volume.data)
    opened: Any = nibabel.load(tmp_path / "t.nii.gz")
    assert int(opened.header["qform_code"]) == 0
    assert opened.affine == pytest.approx(nifti.LPS_TO_RAS @ sheared)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ({"affine_lps_mm": None, "verdict": ["IRREGULAR_SPACING"]}, r"unevenly spaced \(IRREGULAR_SPACING\), the median gap is 2.50 mm"),
        ({"affine_lps_mm": None, "n_slices": 1, "slice_spacing_mm": None}, "no step between slices"),
        ({"n_slices": 5, "n_volumes": 2}, "not complete"),
    ],
)
def test_nifti_refuses_what_has_no_single_step(rest: dict[str, Any], said: str) -> None:
    with pytest.raises(Rejected, match=said):
        list(nifti.write(series(**rest), random_masks(1), {"liver": 1, "tumour": 2}))


# ---- PNG


def test_png_is_read_by_pillow_and_split_where_labels_overlap(tmp_path: Path) -> None:
    numbered = values.numbers(["liver", "tumour"], True)
    for overlap in (False, True):
        of = [one for one in random_masks(11, overlap=overlap) if one.image["k"] == 0]
        made = list(png.images(of, numbered))
        assert [label for label, _ in made] == (["liver", "tumour"] if overlap else [None])
        for _, array in made:
            with open(tmp_path / "a.png", "wb") as stream:
                png.write(stream, ROWS, COLS, iter([array[:2], array[2:]]), 8)
            assert (np.asarray(Image.open(tmp_path / "a.png")) == array).all()


def test_png_of_many_labels_has_16_bits() -> None:
    numbered = values.numbers([f"{number:03}" for number in range(300)], True)
    ((_, array),) = png.images([mask("299", 0, np.eye(ROWS, COLS, dtype=bool))], numbered)
    out = io.BytesIO()
    png.write(out, ROWS, COLS, iter([array]), 16)
    assert (np.asarray(Image.open(io.BytesIO(out.getvalue()))) == np.eye(ROWS, COLS) * 300).all()
    with pytest.raises(BadRequest, match="65535"):
        values.numbers(["x"] * 70_000, True)


# ---- GeoJSON


def test_geojson_is_as_drawn_where_that_gives_the_masks_and_traced_elsewhere(tmp_path: Path) -> None:
    slide = phantoms.slide(300, 200)
    ring = [(10.3, 20.1), (150.2, 25.0), (140.0, 170.9), (30.0, 160.0)]
    drawn = phantoms.regions(phantoms.region("tumour", ring), phantoms.region("stroma", [(200.0, 20.0), (260.0, 20.0), (260.0, 90.0)]))
    from medspark.labels.raster import polygon_mask

    found = {}
    for label, points in (("tumour", ring), ("stroma", [(200.0, 20.0), (260.0, 20.0), (260.0, 90.0)])):
        found[label] = polygon_mask([np.array(points) - 0.5], 200, 300)
    found["stroma"][30, 250] ^= True  # somebody has corrected one pixel
    masks = [
        Mask(
            **{
                **one.__dict__,
                "reader": Reader("annotation", phantoms.SOURCE.source_id, "", 0),
                "image": {**phantom_tile(slide), **one.image},
            }
        )
        for label, whole in found.items()
        for one in tile_masks(whole, 64, 0, 1.0, label)
    ]
    made = list(geojson.features(Canvas.of_grid(slide, masks[0].image), masks, drawn))
    assert [feature.drawn for feature in made] == [False, True]
    document = b"".join(geojson.document(iter(made)))
    (tmp_path / "s.geojson").write_bytes(document)
    shapes = json.loads(document)["features"]
    assert shapes[1]["geometry"]["coordinates"][0] == [list(point) for point in (*ring, ring[0])]
    items = planes_of(tmp_path / "s.geojson", "geojson")
    for label, whole in found.items():
        again = np.zeros((200, 300), bool)
        for item in items:
            if item.label == label:
                again |= polygon_mask([ring - 0.5 for ring in item.rings], 200, 300)
        assert (again == whole).all()


def phantom_tile(slide: dict[str, Any]) -> dict[str, Any]:
    return {"dataset": slide["dataset"], "subject_key": slide["subject_key"], "mpp_um": 0.5, "pixel_source": "passthrough"}


def test_readers_have_names_only_where_there_are_several() -> None:
    ours = [mask("a", 0, np.ones((ROWS, COLS), bool)), mask("a", 0, np.ones((ROWS, COLS), bool), whose=MODEL)]
    readers = list(by_reader(ours))
    assert len(readers) == 2
    assert suffix(HAND, [HAND]) == ""
    assert suffix(HAND, readers) != suffix(MODEL, readers)
