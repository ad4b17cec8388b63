"""A data set with a name, an id, dates and UIDs planted in every VR, in nested sequences and in private tags."""

from __future__ import annotations

import io

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

NAME = "Zaphodius^Beeblebrox"
FAMILY = "Zaphodius"
GIVEN = "Beeblebrox"
PATIENT_ID = "MRN77413380"
DATE = "19431017"
DATES = ("19431017", "20010911", "1943.10.17", "1943-10-17")
UID = "1.3.6.1.4.1.99999.4242.77413380.1"
PHONE = "0307741338"
PLANTED = (FAMILY, GIVEN, PATIENT_ID, "77413380", *DATES, "1.3.6.1.4.1.99999", PHONE)
"""None of these may be found in a cleaned header, in any letter case."""

TEXT = f"{FAMILY} {PATIENT_ID} {DATE} {PHONE}"


def planted(depth: int = 2) -> Dataset:
    """Every VR that can carry the plant, ``depth`` levels of sequences, two private blocks."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = UID
    ds.StudyInstanceUID = UID + ".2"
    ds.SeriesInstanceUID = UID + ".3"
    ds.FrameOfReferenceUID = UID + ".4"
    ds.PatientName = NAME
    ds.OtherPatientNames = NAME
    ds.PatientID = PATIENT_ID
    ds.AccessionNumber = PATIENT_ID
    ds.PatientBirthDate = DATE
    ds.PatientAge = "093Y"
    ds.PatientSex = "F"
    ds.StudyDate = "20010911"
    ds.SeriesDate = DATE
    ds.AcquisitionDateTime = "20010911121314.5+0200"
    ds.StudyTime = "121314"
    ds.Modality = "CT"
    ds.BodyPartExamined = FAMILY.upper()  # CS
    ds.StationAETitle = FAMILY  # AE
    ds.RetrieveURL = f"http://pacs/{PATIENT_ID}"  # UR
    ds.ImageComments = TEXT  # LT
    ds.InstitutionAddress = TEXT  # ST
    ds.StudyDescription = f"CT Chest {TEXT}"  # LO
    ds.SeriesDescription = f"Dr. {GIVEN} thorax 5mm B30f {DATES[3]}"
    ds.ProtocolName = f"{GIVEN} abdomen"
    ds.ConvolutionKernel = [FAMILY, "B30f"]  # SH
    ds.Manufacturer = f"ACME for {GIVEN}"
    ds.SoftwareVersions = f"v1 {DATES[2]}"
    ds.TextValue = TEXT  # UT
    ds.LongCodeValue = TEXT  # UC
    ds.ScheduledStudyStartDate = DATE
    ds.SliceThickness = "5"
    ds.Rows = 4
    ds.add_new(0x60000022, "LO", TEXT)  # overlay description
    ds.add_new(0x60003000, "OW", TEXT.encode() * 2)
    ds.add_new(0x50000022, "LO", TEXT)  # curve
    ds.add_new(0x0009FFFE, "UN", b"")
    _private(ds)
    item = Dataset()
    item.ReferencedSOPInstanceUID = UID
    item.ReferencedSOPClassUID = CTImageStorage
    ds.ReferencedImageSequence = Sequence([item])
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = PATIENT_ID, "99" + FAMILY[:6], TEXT
    public = Dataset()
    public.CodeValue, public.CodingSchemeDesignator, public.CodeMeaning = "39607008", "SCT", "Lung"
    ds.ProcedureCodeSequence = Sequence([code, public])
    ds.RequestAttributesSequence = Sequence([code])
    ds.IconImageSequence = Sequence([Dataset()])
    if depth:
        ds.SharedFunctionalGroupsSequence = Sequence([planted(depth - 1)])
    return ds


def _private(ds: Dataset) -> None:
    block = ds.private_block(0x0029, f"{FAMILY} HEADER", create=True)
    for offset, (vr, value) in enumerate(
        {
            "PN": NAME,
            "LO": PATIENT_ID,
            "SH": FAMILY,
            "ST": TEXT,
            "LT": TEXT,
            "UT": TEXT,
            "UC": TEXT,
            "CS": FAMILY.upper(),
            "DA": DATE,
            "DT": DATE,
            "UI": UID,
            "AE": FAMILY,
            "UN": TEXT.encode(),
            "OB": TEXT.encode(),
        }.items()
    ):
        block.add_new(offset, vr, value)
    item = Dataset()
    item.PatientName = NAME
    block.add_new(0x40, "SQ", Sequence([item]))


def as_read(ds: Dataset, implicit: bool = False) -> Dataset:
    """The data set written and read again: raw elements, as jobs meet them."""
    stream = io.BytesIO()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = UID
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    stream.seek(0)
    return pydicom.dcmread(stream)
