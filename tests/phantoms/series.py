"""Small DICOM series with known truth, written by the tests: every slice is a dictionary of attributes over a plain CT or MR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian

from medspark.config import Config
from medspark.errors import Rejected, SkippedSource
from medspark.keys import Ids
from medspark.series.kind import SERIES
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import SourceFile, Unit

CT, MR, US, PT = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "4", "6.1", "128"))
ENHANCED_MR, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.2.1"
ROOT = "1.2.826.0.1.3680043.8.498."
IDS = Ids(b"k" * 32)
AXIAL = [1, 0, 0, 0, 1, 0]


def tilted(degrees: float) -> list[float]:
    """Orientation of a gantry tilted about the patient's left-right axis."""
    angle = math.radians(degrees)
    return [1, 0, 0, 0, math.cos(angle), math.sin(angle)]


def slice_dataset(**attributes: Any) -> Dataset:
    """A plain CT slice of 4 x 5 pixels; keywords replace, None deletes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CT
    ds.Modality = "CT"
    ds.SOPInstanceUID = ROOT + "1.1"
    ds.SeriesInstanceUID = ROOT + "2"
    ds.StudyInstanceUID = ROOT + "3"
    ds.FrameOfReferenceUID = ROOT + "4"
    ds.PatientID = "P1"
    ds.PatientName = "Doe^Jane"
    ds.PatientSex = "F"
    ds.PatientAge = "061Y"
    ds.StudyDate = "20200229"
    ds.SeriesTime = "100000"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImageOrientationPatient = AXIAL
    ds.ImagePositionPatient = [0, 0, 0]
    ds.PixelSpacing = [0.5, 0.75]
    ds.SliceThickness = 2
    ds.Rows, ds.Columns = 4, 5
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    pixels = attributes.pop("pixels", None)
    for keyword, value in attributes.items():
        if value is None:
            if keyword in ds:
                delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", CT)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "") or ROOT + "9"
    frames = int(ds.get("NumberOfFrames", 1))
    if pixels is None:
        seed = int.from_bytes(str(ds.get("SOPInstanceUID", "")).encode()[-4:], "big")
        pixels = np.random.default_rng(seed).integers(0, 2000, (frames, ds.Rows, ds.Columns))
    ds.PixelData = np.asarray(pixels).astype("<i2" if ds.PixelRepresentation else "<u2").tobytes()
    return ds


def write(folder: Path, name: str, ds: Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


FOR_HIGHDICOM = {
    "AccessionNumber": "",
    "StudyID": "1",
    "StudyTime": "100000",
    "PatientBirthDate": "19600101",
    "ReferringPhysicianName": "",
    "Manufacturer": "ACME",
}
"""Attributes of an image that a SEG by highdicom takes over, and refuses to do without."""


def write_series(folder: Path, positions_mm: Sequence[float], tilt_deg: float = 0.0, **attributes: Any) -> Path:
    """A series at these table positions (along z), one file each; attributes that are lists of the same length go by slice.

    With a tilt the distance along the normal is the table's times cos(tilt).
    """
    count = len(positions_mm)
    for index, z in enumerate(positions_mm):
        own = {name: value[index] if isinstance(value, tuple) and len(value) == count else value for name, value in attributes.items()}
        given = {
            "SOPInstanceUID": f"{ROOT}1.{index + 1}",
            "InstanceNumber": index + 1,
            "ImagePositionPatient": [-10.0, -20.0, round(z, 6)],
            "ImageOrientationPatient": [round(value, 9) for value in tilted(tilt_deg)],
            **own,
        }
        write(folder, f"IM{index:04d}.dcm", slice_dataset(**given))
    return folder


def write_enhanced(path: Path, positions_mm: Sequence[float], volumes: int = 1) -> Path:
    """An enhanced MR: one frame per (volume, position), geometry and echo per frame, orientation and spacing shared."""
    frames = [(t, z) for t in range(volumes) for z in positions_mm]
    ds = slice_dataset(
        SOPClassUID=ENHANCED_MR,
        Modality="MR",
        NumberOfFrames=len(frames),
        ImageOrientationPatient=None,
        ImagePositionPatient=None,
        PixelSpacing=None,
        SliceThickness=None,
        RescaleSlope=None,
        RescaleIntercept=None,
    )
    shared = Dataset()
    shared.PlaneOrientationSequence = Items([_of(ImageOrientationPatient=AXIAL)])
    shared.PixelMeasuresSequence = Items([_of(PixelSpacing=[0.9, 0.8], SliceThickness=3)])
    shared.PixelValueTransformationSequence = Items([_of(RescaleSlope=2, RescaleIntercept=1, RescaleType="US")])
    ds.SharedFunctionalGroupsSequence = Items([shared])
    groups = []
    for t, z in frames:
        group = Dataset()
        group.PlanePositionSequence = Items([_of(ImagePositionPatient=[1, 2, z])])
        group.FrameContentSequence = Items([_of(TemporalPositionIndex=t + 1, FrameAcquisitionNumber=1)])
        group.MREchoSequence = Items([_of(EffectiveEchoTime=10.0 + t)])
        group.MRDiffusionSequence = Items([_of(DiffusionBValue=1000.0 * t)])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Items(groups)
    return write(path.parent, path.name, ds)


def _of(**attributes: Any) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def files_of(
    folder: Path, settings: Config | None = None, dataset: str = "phantom", ids: Ids = IDS
) -> tuple[list[SourceFile], list[tuple[str, str]]]:
    """(scanned files, (name, code or "SKIPPED") of the others)."""
    settings, files, others = settings or Config(), [], []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if path.is_dir():
            continue
        uri = str(path)
        try:
            header = SERIES.scan(str(path), uri, ids, settings)
        except Rejected as error:
            others.append((path.name, error.code))
        except SkippedSource:
            others.append((path.name, "SKIPPED"))
        else:
            files.append(SourceFile(ids.source(dataset, uri, "-"), uri, uri, path.stat().st_size, dataset, header, None, dataset))
    return files, others


def explode_units(
    units: Sequence[Unit], settings: Config | None = None, ids: Ids = IDS
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Rejection]]:
    """(rows of slices, rows of pixels, rejections) of these units."""
    slices: list[dict[str, Any]] = []
    payload: list[dict[str, Any]] = []
    rejections: list[Rejection] = []
    for unit in units:
        for item in SERIES.explode(unit, ids, settings or Config(), lambda source, what="": None):
            if isinstance(item, Rejection):
                rejections.append(item)
            elif item.table == "slices":
                slices += item.to_arrow("run", "batch").to_pylist()
            else:
                assert item.table == "pixels"
                names = list(item.columns)
                payload += [dict(zip(names, values, strict=True)) for values in zip(*item.columns.values(), strict=True)]
    return slices, payload, rejections


def ingest(
    folder: Path, settings: Config | None = None, ids: Ids = IDS
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Rejection], list[tuple[str, str]]]:
    """scan -> plan -> explode of a folder: (slices, pixels, rejections, others)."""
    files, others = files_of(folder, settings, ids=ids)
    plan = SERIES.plan(files, ids, settings or Config())
    assert sum(len(unit.sources) for unit in plan.units) == len(files)
    return *explode_units(plan.units, settings, ids), others


def rows_of(rows: Rows) -> list[dict[str, Any]]:
    return rows.to_arrow("run", "batch").to_pylist()
