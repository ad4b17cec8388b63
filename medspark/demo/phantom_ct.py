"""A CT series of a chest that never was: body, lungs, spine and a nodule of known volume, with a DICOM SEG by highdicom.

Every UID, date and random number is fixed: the same bytes every time, and a second run of the demo finds nothing new.
"""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

import numpy as np

SLICES, SIDE = 24, 256
SPACING_MM, STEP_MM = 1.5, 5.0
ROOT = "1.2.826.0.1.3680043.8.498.4242."
AIR, LUNG, SOFT, BONE, NODULE = -1000, -820, 40, 620, 60  # HU
NOISE_HU = 14.0
NODULE_MM = (58.0, -18.0, 62.0)
"""Centre: to the patient's left, back and up from the first slice's middle, mm."""
NODULE_RADIUS_MM = 14.0
INTERCEPT = -1024


def write(folder: Path) -> tuple[Path, Path]:
    """(folder of 24 CT slices, DICOM SEG of lung and nodule); written once."""
    series, seg = folder / "chest", folder / "chest-seg.dcm"
    if seg.exists():
        return series, seg
    shutil.rmtree(series, ignore_errors=True)
    series.mkdir(parents=True)
    values, masks = volume()
    images = [_slice(values[k], k) for k in range(SLICES)]
    for k, image in enumerate(images):
        image.save_as(series / f"{k + 1:03d}.dcm", enforce_file_format=True)
    _segmentation(images, masks).save_as(seg)
    return series, seg


def volume(z_mm: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """((n, SIDE, SIDE) HU, masks by label of the same shape): ellipsoids, sampled at pixel centres.

    z_mm : (n,) places along the body, upwards; None for those of the CT's SLICES
    """
    z = (np.arange(SLICES) * STEP_MM if z_mm is None else z_mm)[:, None, None]
    y = ((np.arange(SIDE) - (SIDE - 1) / 2) * SPACING_MM)[None, :, None]
    x = ((np.arange(SIDE) - (SIDE - 1) / 2) * SPACING_MM)[None, None, :]

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        return ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 + ((z - centre[2]) / radii[2]) ** 2 <= 1

    tall = 1e6
    body = ellipsoid((0, 0, 0), (165, 118, tall))
    lungs = ellipsoid((-78, -5, 40), (55, 82, 92)) | ellipsoid((76, -5, 40), (53, 80, 92))
    heart = ellipsoid((22, -28, 10), (58, 46, 58))
    spine = ellipsoid((0, 78, 0), (21, 19, tall)) & ~ellipsoid((0, 86, 0), (7, 7, tall))
    ribs = body & ~ellipsoid((0, 0, 0), (150, 104, tall)) & ellipsoid((0, 0, 0), (156, 110, tall))
    ribs = ribs & (np.sin(np.arctan2(y, np.abs(x)) * 16 + z / 6) > 0.45)
    nodule = ellipsoid(NODULE_MM, (NODULE_RADIUS_MM,) * 3)
    lung = lungs & ~heart & ~nodule
    values = np.full((len(z), SIDE, SIDE), AIR, np.float32)
    for mask, hu in ((body, SOFT), (ribs, BONE), (lungs, LUNG), (heart, SOFT + 15), (spine, BONE), (nodule, NODULE)):
        values[np.broadcast_to(mask, values.shape)] = hu
    rng = np.random.default_rng(11)
    vessels = lung & (_smooth(rng.normal(size=values.shape)) > 2.4)
    values[vessels] = SOFT - 20
    values += rng.normal(0, NOISE_HU, values.shape)
    return values, {"Lung": lung, "Nodule": np.broadcast_to(nodule, values.shape)}


def _smooth(noise: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    soft = gaussian_filter(noise, (0.4, 1.6, 1.6))
    return soft / soft.std()


def set_patient(ds: Any) -> None:
    """Who the phantom is."""
    ds.PatientID, ds.PatientName, ds.PatientSex, ds.PatientAge, ds.PatientBirthDate = "PHANTOM-1", "Phantom^Chest", "O", "060Y", "19600101"


def _slice(values: np.ndarray, k: int) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID(f"{ROOT}1.{k + 1}")
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = f"{ROOT}2", f"{ROOT}3", f"{ROOT}4"
    set_patient(ds)
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "20210304", "101500", "1", "A1", ""
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName, ds.SeriesNumber = "CT", "medspark", "phantom", 1
    ds.SeriesDescription, ds.BodyPartExamined, ds.ConvolutionKernel, ds.KVP = "chest phantom", "CHEST", "STANDARD", 120
    ds.ImageType, ds.InstanceNumber, ds.BurnedInAnnotation = ["ORIGINAL", "PRIMARY", "AXIAL"], k + 1, "NO"
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    corner = -(SIDE - 1) / 2 * SPACING_MM
    ds.ImagePositionPatient = [corner, corner, k * STEP_MM]
    ds.PositionReferenceIndicator, ds.PatientPosition = "", "HFS"
    ds.PixelSpacing, ds.SliceThickness = [SPACING_MM, SPACING_MM], STEP_MM
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = SIDE, SIDE, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, INTERCEPT, "HU"
    ds.WindowCenter, ds.WindowWidth = -350, 1500
    ds.PixelData = (values - INTERCEPT).round().clip(0, 4095).astype("<u2").tobytes()
    return ds


def _segmentation(images: list[Any], masks: dict[str, np.ndarray]) -> Any:
    import highdicom
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    meaning = {"Lung": codes.SCT.Lung, "Nodule": codes.SCT.Nodule}
    segments = [
        SegmentDescription(number, label, codes.SCT.MorphologicallyAbnormalStructure if label == "Nodule" else codes.SCT.Organ, meaning[label],
                           SegmentAlgorithmTypeValues.MANUAL)
        for number, label in enumerate(masks, start=1)
    ]  # fmt: skip
    stack = np.stack(list(masks.values()), axis=-1).astype(np.uint8)
    seg = highdicom.seg.Segmentation(
        images, stack, SegmentationTypeValues.BINARY, segments, f"{ROOT}5", 2, f"{ROOT}5.1", 1, "medspark", "phantom", "1", "1"
    )
    fixed = datetime.datetime(2021, 3, 4, 12)
    for ds in (seg, *seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence, *seg.get("ContributingEquipmentSequence", ())):
        for element in ds:
            if element.VR == "DA" and element.keyword.startswith(("Content", "Series", "InstanceCreation")):
                element.value = fixed.strftime("%Y%m%d")
            elif element.VR == "TM" and element.keyword.startswith(("Content", "Series", "InstanceCreation")):
                element.value = fixed.strftime("%H%M%S")
            elif element.VR == "DT":
                element.value = fixed.strftime("%Y%m%d%H%M%S")
            elif element.keyword == "DimensionOrganizationUID":
                element.value = f"{ROOT}6"
    return seg
