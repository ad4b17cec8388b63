"""Laws of `header_json`: nothing planted comes back, what is kept is true, what is malformed goes alone."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from medspark.deid import actions, header_json
from medspark.deid.dates import parse_da
from medspark.deid.echo import HARMLESS
from medspark.deid.profile import TABLE, decide
from medspark.keys import Ids
from tests.phantoms.deid import DATE, FAMILY, NAME, PATIENT_ID, PLANTED, TEXT, UID, as_read, planted
from tests.real import shared_data

IDS = Ids(b"k" * 32)
SUBJECT = "5" * 32

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def clean(ds: Dataset, profile: str = "basic") -> str:
    return header_json(ds, IDS, SUBJECT, profile)


def strict(text: str) -> dict:
    """JSON without NaN, with unique and ascending tags."""

    def pairs(items: list[tuple[str, object]]) -> dict:
        tags = [key for key, _ in items if re.fullmatch("[0-9A-F]{8}", key)]
        assert tags == sorted(set(tags))
        return dict(items)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=pairs)


@pytest.mark.parametrize("how", ["explicit", "implicit", "built"])
def test_nothing_planted_comes_back(how: str) -> None:
    ds = planted() if how == "built" else as_read(planted(), implicit=how == "implicit")
    text = clean(ds)
    for secret in PLANTED:
        assert secret.lower() not in text.lower()
    assert '"0029' not in text and '"6000' not in text and '"5000' not in text
    strict(text)


def test_what_is_kept_is_kept() -> None:
    model = strict(clean(as_read(planted())))
    assert model["00080060"]["Value"] == ["CT"]
    assert model["00081030"]["Value"] == ["CT Chest"]
    assert model["0008103E"]["Value"] == ["5mm B30f"]  # the title takes the two tokens that follow
    assert model["00181030"]["Value"] == ["abdomen"]
    assert model["00101010"]["Value"] == ["090Y"]
    assert model["00100010"] == {"vr": "PN"}
    assert model["00080030"]["Value"] == ["121314"]
    assert model["00080016"]["Value"] == ["1.2.840.10008.5.1.4.1.1.2"]
    assert model["00080018"]["Value"] == [IDS.uid(UID)]
    assert model["00081140"]["Value"][0]["00081155"]["Value"] == [IDS.uid(UID)]
    public = model["00081032"]["Value"][1]
    assert public["00080104"]["Value"] == ["Lung"] and public["00080100"]["Value"] == ["39607008"]
    assert "00400275" not in model  # RequestAttributesSequence: X


def test_the_markers_are_written() -> None:
    ds = Dataset.from_json(clean(as_read(planted())))
    assert ds.PatientIdentityRemoved == "YES"
    assert ds.LongitudinalTemporalInformationModified == "MODIFIED"
    assert [item.CodeValue for item in ds.DeidentificationMethodCodeSequence] == ["113100", "113107", "113108", "113105"]
    assert ds.DeidentificationMethod


def test_dates_move_together() -> None:
    ds = Dataset()
    ds.StudyDate, ds.ContentDate, ds.AcquisitionDateTime = "20010911", "20010913", "20010912101112.25+0100"
    model = strict(clean(ds))
    study, content = (parse_da(model[tag]["Value"][0]) for tag in ("00080020", "00080023"))
    assert study is not None and content is not None
    assert (content - study).days == 2
    assert model["0008002A"]["Value"][0].endswith("101112.25+0100")
    assert strict(header_json(ds, Ids(None), SUBJECT, "none"))["00080020"]["Value"] == ["20010911"]


def test_raw_and_converted_agree() -> None:
    raw, converted = as_read(planted()), as_read(planted())
    for _ in converted.iterall():
        pass
    assert clean(raw) == clean(converted) == clean(raw)


def test_every_text_vr_of_the_table_goes() -> None:
    """Each attribute that the table names, filled with the plant: nothing returns."""
    ds = Dataset()
    for tag in TABLE:
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            vr = "LO"
        if vr in ("LO", "SH", "ST", "LT", "UT", "UC", "PN", "AE", "CS", "UR"):
            ds.add_new(tag, vr, FAMILY)
        elif vr == "SQ":
            item = Dataset()
            item.PatientName = NAME
            ds.add_new(tag, vr, Sequence([item]))
    assert len(ds) > 300
    assert FAMILY.lower() not in clean(ds).lower()


def test_a_file_cannot_talk_a_comment_into_a_code() -> None:
    ds = Dataset()
    ds.add_new(0x00204000, "CS", "DOE JANE")  # ImageComments
    ds.add_new(0x00180050, "LO", "DOE JANE")  # SliceThickness
    ds.add_new(0x00280010, "UT", "DOE JANE")  # Rows
    ds.add_new(0x00080070, "PN", "DOE JANE")  # Manufacturer
    assert "DOE" not in clean(ds)


def test_what_one_profile_remembers_the_other_does_not_tell() -> None:
    ds = Dataset()
    ds._dict[Tag(0x00180050)] = RawDataElement(Tag(0x00180050), "LO", 8, b"DOE JANE", 0, False, True)
    assert "DOE" in header_json(ds, Ids(None), SUBJECT, "none")
    assert "DOE" not in clean(ds)
    assert "DOE" in header_json(ds, Ids(None), SUBJECT, "none")


def test_public_attribute_hidden_in_un_is_judged_by_the_dictionary() -> None:
    ds = Dataset()
    for tag, value in ((0x00100010, NAME), (0x00204000, TEXT), (0x00080060, "MR")):
        raw = value.encode() + b" " * (len(value) % 2)
        ds._dict[Tag(tag)] = RawDataElement(Tag(tag), "UN", len(raw), raw, 0, False, True)
    text = clean(ds)
    assert FAMILY not in text and "MR" in text


def test_malformed_goes_alone() -> None:
    ds = as_read(planted(0))
    for tag, vr, value in (
        (0x00200013, "IS", b"1A"),
        (0x00180060, "DS", b"NaN "),
        (0x00180050, "DS", b"1e999 "),
        (0x00280010, "US", b"\x01"),
        (0x00189087, "FD", b"\xff" * 8),  # a NaN
        (0x00080008, "CS", b"\xff\xfe"),
        (0x00080022, "DA", b"00000000"),
    ):
        ds._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
    model = strict(clean(ds))
    for tag in ("00200013", "00180060", "00180050", "00280010", "00189087", "00080008", "00080022"):
        assert tag not in model
    assert model["00080060"]["Value"] == ["CT"]


def test_bad_vr_file_of_pydicom() -> None:
    ds = pydicom.dcmread(shared_data("broken/pydicom/badVR.dcm"), stop_before_pixels=True)
    model = strict(clean(ds))
    assert "00280008" not in model  # NumberOfFrames '1A'
    assert len(model) > 20


@pytest.mark.parametrize(
    ("charset", "name", "encoding"),
    [("ISO_IR 100", "Lunge für Übersicht", "latin1"), ("ISO_IR 192", "Grenzübersicht", "utf8"), ("GB18030", "肺部", "gb18030")],
)
def test_character_sets(charset: str, name: str, encoding: str) -> None:
    ds = Dataset()
    ds.SpecificCharacterSet = charset
    ds.PatientName = name
    ds.SeriesDescription = "Lunge " + name
    read = as_read(_with_ids(ds))
    assert read._dict[Tag(0x0008103E)].value.strip() == ("Lunge " + name).encode(encoding)
    kept = strict(header_json(read, Ids(None), SUBJECT, "none"))
    assert kept["0008103E"]["Value"] == ["Lunge " + name]
    assert kept["00100010"]["Value"] == [{"Alphabetic": name}]
    assert kept["00080005"]["Value"] == ["ISO_IR 192"]
    assert name not in clean(read)


def _with_ids(ds: Dataset) -> Dataset:
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", UID
    return ds


def test_profile_none_keeps_all_but_bulk() -> None:
    text = header_json(as_read(planted()), Ids(None), SUBJECT, "none")
    model = strict(text)
    assert model["00100020"]["Value"] == [PATIENT_ID]
    assert model["00080018"]["Value"] == [UID]
    assert model["00100030"]["Value"] == [DATE]
    assert model["00204000"]["Value"] == [TEXT]
    assert any(tag.startswith("0029") and entry["vr"] in ("LO", "ST") for tag, entry in model.items())
    assert not any(tag.startswith(("6000", "5000", "7FE0", "00880200")) for tag in model)
    assert "00120062" not in model


def test_actions_name_tags_never_values() -> None:
    log = actions(as_read(planted()), IDS, SUBJECT)
    done = dict(log)
    assert done["00100010"] == "empty" and done["00080018"] == "uid" and done["00080020"] == "shift"
    assert done["00081140[0].00081155"] == "uid"
    assert done["00180015"] == "remove"  # BodyPartExamined echoed the patient's name
    assert all(re.fullmatch(r"([0-9A-F]{8}\[\d+\]\.)*[0-9A-F]{8}", path) and action.isidentifier() for path, action in log)


def test_table_is_whole() -> None:
    assert len(TABLE) > 640
    assert decide(0x00100010, "basic") == "empty"
    for keyword in ("InstitutionName", "DeviceSerialNumber", "StationName", "OperatorsName", "PatientAddress", "RequestAttributesSequence"):
        assert decide(int(pydicom.datadict.tag_for_keyword(keyword) or 0), "basic") == "remove"
    assert decide(0x00091001, "basic") == "remove" and decide(0x00080FFF, "basic") == "remove"


def test_deterministic() -> None:
    assert len({clean(as_read(planted())) for _ in range(3)}) == 1


VRS = [
    "CS",
    "LO",
    "SH",
    "ST",
    "LT",
    "UT",
    "UC",
    "UR",
    "PN",
    "DA",
    "DT",
    "TM",
    "UI",
    "AS",
    "AE",
    "DS",
    "IS",
    "US",
    "SS",
    "UL",
    "FL",
    "FD",
    "AT",
]
VRS += ["SQ", "OB", "OW", "UN", "XX", None]
TAGS = sorted(TABLE)[::5] + [
    0x00080005,
    0x00080060,
    0x00080070,
    0x00180050,
    0x00280010,
    0x00280106,
    0x00081032,
    0x00091001,
    0x60003000,
    0x00080FFF,
]
RAW = st.tuples(
    st.sampled_from(TAGS), st.sampled_from(VRS), st.binary(max_size=24) | st.text("0123456789.\\-+eENa ", max_size=12).map(str.encode)
)


@settings(deadline=None, max_examples=150)
@given(st.lists(RAW, max_size=8), st.sampled_from(["basic", "none"]), st.booleans(), st.booleans())
def test_any_bytes_give_valid_json(elements: list[tuple[int, str | None, bytes]], profile: str, implicit: bool, little: bool) -> None:
    ds = Dataset()
    for tag, vr, value in elements:
        ds._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(value), value, 0, implicit, little)
    model = strict(header_json(ds, IDS, SUBJECT, profile))
    assert set(model) <= {f"{tag:08X}" for tag, _, _ in elements} | {"00120062", "00120063", "00120064", "00280303"}
    assert {entry["vr"] for entry in model.values()} <= {vr for vr in VRS if vr}


def test_an_echo_in_an_item_takes_the_text_along() -> None:
    item = Dataset()
    item.InstitutionName = "Saint Zaphodius"
    ds = Dataset()
    ds.ContributingEquipmentSequence = Sequence([item])
    ds.Manufacturer, ds.ManufacturerModelName = "Zaphodius Works", "Works 7"
    model = strict(clean(as_read(_with_ids(ds))))
    assert "00080070" not in model and model["00081090"]["Value"] == ["Works 7"]


def test_per_frame_groups_only_of_one_frame() -> None:
    item = Dataset()
    item.FrameContentSequence = Sequence([Dataset()])
    ds = Dataset()
    ds.PerFrameFunctionalGroupsSequence = Sequence([item])
    assert "52009230" in strict(clean(ds))
    ds.PerFrameFunctionalGroupsSequence = Sequence([item, item])
    assert "52009230" not in strict(clean(ds))


def test_byte_order_and_vr_encoding_make_no_difference() -> None:
    folder = shared_data("ct/one_slice_all_syntaxes")
    names = ("BigEndianExplicit", "LittleEndianImplicit", "LittleEndianExplicit", "DeflatedExplicitVRLittleEndian", "RLELossless")
    found = set()
    for name in names:
        (path,) = folder.glob(f"*_{name}TransferSyntax_*")
        model = strict(clean(pydicom.dcmread(path, stop_before_pixels=True)))
        found.add(json.dumps([entry for tag, entry in model.items() if tag != "00080018"]))
    assert len(found) == 1


@pytest.mark.parametrize(
    "name", ["ct/ge_head_tilt/01.dcm", "broken/pydicom/CT_small.dcm", "highdicom/dx_image.dcm", "cxr/CR-MONO1-10-chest.dcm"]
)
def test_values_are_pydicoms_values(name: str) -> None:
    """pydicom's own DICOM JSON as the oracle: every kept element of ``none`` has the same value."""
    path = shared_data(name)
    mine = strict(header_json(pydicom.dcmread(path, stop_before_pixels=True), Ids(None), SUBJECT, "none"))
    theirs = pydicom.dcmread(path, stop_before_pixels=True).to_json_dict(suppress_invalid_tags=True)
    assert len(mine) > 30
    for tag, entry in mine.items():
        if tag == "00080005":
            continue
        assert entry["vr"] == theirs[tag]["vr"]
        if entry["vr"] == "FL":
            assert entry.get("Value", []) == pytest.approx(theirs[tag].get("Value", []), rel=1e-7)
        elif entry["vr"] not in ("SQ", "UI", "DS"):
            assert entry.get("Value", []) == [None if value == "" else value for value in theirs[tag].get("Value", [])], tag  # F.2.5: null
        elif entry["vr"] == "DS":
            assert entry.get("Value", []) == [float(value) for value in theirs[tag].get("Value", [])]


def real_files() -> list[Path]:
    return sorted(path for path in shared_data().rglob("*.dcm"))


IDENTIFYING = (0x00100010, 0x00100020, 0x00080050, 0x00100030, 0x00080090, 0x00081070, 0x00080080, 0x00081010, 0x00181000)


def identifying(ds: Dataset) -> Iterator[str]:
    """Names, ids, dates and instance UIDs of a data set and its items, from four characters on."""
    for element in ds.iterall():
        if element.VR == "SQ" or not element.value:
            continue
        values = element.value if element.VM > 1 else [element.value]
        for value in values:
            text = str(value).strip()
            if len(text) < 4 or text.lower() in HARMLESS:  # a station called TOSHIBA
                continue
            if (
                element.VR in ("PN", "DA", "DT")
                or element.tag in IDENTIFYING
                or (element.VR == "UI" and not text.startswith("1.2.840.10008."))
            ):
                yield text


def strings(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key != "vr":
                yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def test_real_files_give_nothing_away() -> None:
    """Every real DICOM file; dates and long ids are looked for in whole string values of the model too."""
    files = real_files()
    n_secrets = 0
    for path in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            text = clean(ds)
            model = strict(text)
            found = list(strings({tag: node for tag, node in model.items() if tag not in ("00120063", "00120064")}))
            words = "\n".join(item for item in found if not item.startswith("2.25."))
            for secret in set(identifying(ds)):
                n_secrets += 1
                assert secret.lower() not in words.lower(), f"{path.name}: an identifying value came back"
            again = Dataset.from_json(text)
            assert len(again) == len(model)
    assert len(files) > 100 and n_secrets > 1000
    print(f"{len(files)} files, {n_secrets} identifying values, none came back")


def test_cost_on_a_real_ct_series() -> None:
    """< 0.6 ms a header on the series of the issue; the bound is for the median, a busy machine may be slower once."""
    folder = shared_data("ct/ge_head_tilt")
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.glob("*.dcm"))]
    spent = []
    for ds in headers:
        start = time.perf_counter()
        clean(ds)
        spent.append(time.perf_counter() - start)
    median_ms = 1e3 * sorted(spent)[len(spent) // 2]
    print(f"{median_ms:.3f} ms a header of {len(headers[0])} elements")
    assert median_ms < 0.6
