"""No string by which any real file identifies anybody comes back in any row that is made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from medspark.config import Config, Deid
from medspark.errors import Rejected, SkippedSource
from medspark.series.kind import SERIES
from medspark.tables.work import SourceFile
from tests.phantoms.series import IDS, explode_units, rows_of
from tests.real import shared_data

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom on its own broken files

SETTINGS = Config(deid=Deid(burned_in="keep"))
URI = "/archive/x"
IDENTIFYING = frozenset(
    "AccessionNumber AdditionalPatientHistory AdmissionID CassetteID CountryOfResidence CurrentPatientLocation DetectorID DeviceSerialNumber "
    "FillerOrderNumberImagingServiceRequest GantryID ImageComments InstitutionAddress InstitutionName InstitutionalDepartmentName "
    "IssuerOfPatientID MedicalRecordLocator Occupation OtherPatientIDs PatientAddress PatientComments PatientID "
    "PatientInstitutionResidence PatientTelephoneNumbers PerformedProcedureStepID PerformedStationAETitle PlacerOrderNumberImagingServiceRequest "
    "PlateID RegionOfResidence RequestedProcedureID RequestingService RetrieveAETitle ScheduledProcedureStepID StationName StudyComments "
    "StudyID".split()
)
TEXTS = ("LO", "SH", "ST", "LT", "UT", "AE")
SHORTEST = 3  # characters: "CT" as a station's name is no secret


def secrets(ds: pydicom.Dataset) -> Iterator[str]:
    """Names and their parts, UIDs, dates, numbers, addresses, comments, private texts: of the data set and every item in it."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield from secrets(item)
            continue
        values = element.value if element.VM > 1 else [element.value]
        for text in [str(value).strip() for value in values if value is not None and not isinstance(value, bytes)]:
            if element.VR == "PN":
                yield from re.split(r"[\^=\s,.]+", text)
                yield text
            elif element.VR == "UI" and not text.startswith("1.2.840.10008."):
                yield text
            elif element.VR == "DA" and len(text) == 8:
                yield from (text, f"{text[:4]}-{text[4:6]}-{text[6:]}")
            elif element.VR == "DT":
                yield text[:8]
            elif element.keyword in IDENTIFYING or element.VR in ("ST", "LT", "UT") or (element.tag.is_private and element.VR in TEXTS):
                yield text


def told_and_known(path: Path) -> tuple[str, set[str]] | None:
    """(everything in the rows of a file, its secrets), None for a file without rows."""
    try:
        header = SERIES.scan(str(path), URI, IDS, SETTINGS)
    except (Rejected, SkippedSource):
        return None
    source = SourceFile(IDS.source("set", URI, "-"), str(path), URI, path.stat().st_size, "set", header, None, "set")
    plan = SERIES.plan([source], IDS, SETTINGS)
    slices, payload, rejections = explode_units(plan.units, SETTINGS)
    rows = [
        slices,
        [{**row, "bytes": ""} for row in payload],
        [rows_of(found) for found in plan.rows],
        [item.message for item in rejections],
    ]
    told = json.dumps(rows, default=str, ensure_ascii=False).replace("\\", "")
    known = {text for text in secrets(pydicom.dcmread(path, force=True)) if len(text) >= SHORTEST}
    return told, {text.replace("\\", "") for text in known}


def check(paths: list[Path]) -> int:
    files = 0
    for path in paths:
        found = told_and_known(path)
        if found is None:
            continue
        files += 1
        told, known = found
        for text in known:
            assert not re.search(rf"(?<![^\W_]){re.escape(text)}(?![^\W_])", told), path.name
    return files


def test_pydicoms_own_files() -> None:
    base = Path(pydicom.__file__).parent / "data"
    assert check(sorted(path for path in base.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".json", ".md"))) > 90


@pytest.mark.parametrize(
    ("folder", "at_least"),
    [
        ("us", 2),
        ("cxr", 1),
        ("enhanced", 2),
        ("highdicom", 2),
        ("mr", 36),
        ("dicomdir", 30),
        ("ct/dcmqi_liver", 3),
        ("ct/ge_head_tilt", 28),
    ],
)
def test_the_real_collection(folder: str, at_least: int) -> None:
    paths = [path for path in sorted(shared_data(folder).rglob("*")) if path.is_file() and path.suffix not in (".png", ".json", ".nii")]
    assert check(paths) >= at_least


def test_the_check_finds_what_is_there() -> None:
    """The same search over a header that was not cleaned."""
    path = shared_data("us/US1_J2KR.dcm")
    told = json.dumps(pydicom.dcmread(path, stop_before_pixels=True).to_json_dict(), ensure_ascii=False)
    assert any(
        re.search(rf"(?<![^\W_]){re.escape(text)}(?![^\W_])", told) for text in secrets(pydicom.dcmread(path)) if len(text) >= SHORTEST
    )
