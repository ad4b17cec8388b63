"""Files made to mislead: cut short, numbers that lie, names in every alphabet. Each test says which file taught it."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medspark.config import Config
from medspark.series.kind import SERIES
from tests.phantoms.series import IDS, explode_units, files_of, ingest, rows_of, slice_dataset, write, write_enhanced

CUTS = 20


def named(name: str) -> Path:
    path = get_testdata_file(name)
    assert isinstance(path, str)
    return Path(path)


# --- cut short ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "JPEG2000.dcm",  # cut in a sequence it was NOT_DICOM, cut in an element's tag NO_IMAGE
        "693_J2KI.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "image_dfl.dcm",
        "rtdose.dcm",
        "examples_palette.dcm",
    ],
)
def test_a_file_cut_anywhere_gives_no_row_and_says_that_it_was_cut(tmp_path: Path, name: str) -> None:
    data = named(name).read_bytes()
    at_boundaries = 0
    for part in range(1, CUTS):
        cut = tmp_path / "cut.dcm"
        cut.write_bytes(data[: len(data) * part // CUTS])
        slices, _, rejections, others = ingest(cut)
        assert slices == []
        (code,) = [rejection.code for rejection in rejections] + [other[1] for other in others]
        assert code in ("TRUNCATED", "NO_IMAGE"), (name, part)
        at_boundaries += code == "NO_IMAGE"
    assert at_boundaries <= 2  # only where a cut falls between two elements does a shorter file look like a whole one


def test_padding_behind_the_last_element_is_no_cut(tmp_path: Path) -> None:
    plan = tmp_path / "plan.dcm"
    plan.write_bytes(named("rtplan.dcm").read_bytes() + b"\0\0")
    _, others = files_of(plan)
    assert others == [("plan.dcm", "NO_IMAGE")]


# --- numbers that lie ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["MR_small.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"])
@pytest.mark.parametrize("frames", [2_000_000_000, 3_000])
def test_a_number_of_frames_that_lies_takes_neither_memory_nor_count(tmp_path: Path, source: str, frames: int) -> None:
    """2,000,000,000 frames in MR_small.dcm made as many rows in memory before a byte of pixels was looked at."""
    ds = pydicom.dcmread(named(source))
    ds.NumberOfFrames = frames
    pydicom.dcmwrite(tmp_path / "liar.dcm", ds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slices, _, rejections, others = ingest(tmp_path / "liar.dcm")
    assert slices == []
    assert [rejection.code for rejection in rejections] + [other[1] for other in others] == ["PIXEL_LENGTH"]
    assert [rejection.images for rejection in rejections] in ([], [1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KB


def test_a_slope_of_zero_is_none(tmp_path: Path) -> None:
    write(tmp_path, "a.dcm", slice_dataset(RescaleSlope=0))
    ((row,), _, _, _) = ingest(tmp_path)
    assert (row["rescale_slope"], row["is_hu"], row["value_min"] < row["value_max"]) == (None, False, True)
    assert "NO_RESCALE" in row["verdict"]


# --- names ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("charset", "family", "given"),
    [
        ("ISO_IR 100", "Müller", "Jürgen"),
        ("ISO_IR 192", "Żółkowski", "Łukasz"),
        ("ISO_IR 144", "Дударев", "Ярослав"),
        ("GB18030", "欧阳修远", "小东"),
        ("GB18030", "王", "小东"),  # one letter is a whole name
        (["", "ISO 2022 IR 87"], "山田", "太郎"),  # ASCII bytes behind an escape
        (["", "ISO 2022 IR 149"], "홍", "길동"),
        ("ISO_IR 100", "Li", "An"),  # two letters, too
        ("ISO_IR 100", "Ng", "Wu"),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_name_in_any_alphabet_comes_back_in_no_text(
    tmp_path: Path, charset: str | list[str], family: str, given: str, syntax: str
) -> None:
    ds = slice_dataset(
        SpecificCharacterSet=charset,
        PatientName=f"{family}^{given}",
        SeriesDescription=f"CT Thorax {family} {given}",
        StudyDescription=f"{given}{family} chest",
        ProtocolName=f"{family}_thorax",
        ContrastBolusAgent=f"Omnipaque {family}",
        ConvolutionKernel="B30f",
        ManufacturerModelName=f"Scanner {family}",
        SoftwareVersions=[family, "v1"],
        PatientComments=f"called {given}",
        StationName=f"{family}-ct",
    )
    meaning = pydicom.Dataset()
    meaning.CodeValue, meaning.CodingSchemeDesignator, meaning.CodeMeaning = "T-D3000", "SRT", f"Chest of {family}"
    request = pydicom.Dataset()
    request.RequestedProcedureDescription, request.PatientName = f"CT {family}", f"{family}^{given}"
    ds.AnatomicRegionSequence, ds.RequestAttributesSequence = pydicom.Sequence([meaning]), pydicom.Sequence([request])
    block = ds.private_block(0x0029, f"TOOLS {family}", create=True)
    block.add_new(0x11, "LO", f"{family}^{given}")
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    write(tmp_path, "a.dcm", ds)
    files, _ = files_of(tmp_path)
    plan = SERIES.plan(files, IDS, Config())
    slices, _, rejections = explode_units(plan.units)
    assert rejections == []
    told = _plain(slices) + _plain([rows_of(rows) for rows in plan.rows])
    said = json.loads(slices[0]["series_attributes"])
    assert (said["description"], said["kernel"]) == ("CT Thorax", "B30f")
    for name in (family, given):
        assert name not in told, name


def _plain(rows: object) -> str:
    """JSON without escapes, so that a name is found however deep it lies."""
    return json.dumps(rows, default=str, ensure_ascii=False).replace("\\", "")


# --- elements that are not what they seem --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        (0x52009230, "SQ", b"abc "),  # pydicom's OSError while the rows were made
        (0x52009230, "FL", b"\0\0"),
        (0x52009230, "UI", b"-1"),
        (0x00289145, "OB", b"\xfe\xff\x00\xe0\xff\xff\xff\xff"),  # a sequence's tag with the VR of bytes, deep in an item
        (0x00280101, "SQ", b"abc "),
        (0x00282110, "SQ", b"abc "),
    ],
)
def test_an_element_that_is_none_of_its_kind_has_a_code_of_its_own(tmp_path: Path, tag: int, vr: str, value: bytes) -> None:
    ds = pydicom.dcmread(write_enhanced(tmp_path / "good.dcm", [1, 2, 3]))
    element = RawDataElement(pydicom.tag.Tag(tag), vr, len(value), value, 0, False, True)
    (ds.SharedFunctionalGroupsSequence[0] if tag == 0x00289145 else ds)._dict[element.tag] = element
    pydicom.dcmwrite(tmp_path / "bad.dcm", ds)
    slices, _, rejections, others = ingest(tmp_path / "bad.dcm")
    assert others == []
    assert (len(slices), [rejection.code for rejection in rejections]) in ((3, []), (0, ["MISSING_ATTRIBUTE"]))
    assert all("unexpected" not in rejection.message for rejection in rejections)
