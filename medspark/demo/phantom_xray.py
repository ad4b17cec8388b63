"""A chest X-ray of the phantom in `phantom_ct`, front to back, with the shadows of its lungs and its nodule as a mask.

A CR image as old plates give it: MONOCHROME1 (small values are white), the detector's pixel size alone, no place in space.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medspark.demo import phantom_ct

NAME = "phantom-xray"
ROOT = phantom_ct.ROOT + "7."
TOP_MM, ROWS = 170.0, 200
"""Height of the first row above the first CT slice, and rows: lungs from top to bottom, with something around them."""
WATER_PER_MM = 0.02  # attenuation of water at the 60 keV or so of a chest X-ray
FULL = 1023  # 10 bits
DARKEST, BRIGHTEST = 0.3, 5.8  # attenuation (natural logarithm) that the stored range shows: a little soft tissue, the spine
LUNG, NODULE = 1, 2  # values of the mask
MIN_LUNG_MM = 25.0  # of lung in the beam: less makes no shadow with an edge


def write(folder: Path) -> tuple[Path, Path]:
    """(``phantom-xray.dcm``, ``phantom-xray_mask.png``) in ``folder``; written once."""
    from PIL import Image

    image, mask = folder / f"{NAME}.dcm", folder / f"{NAME}_mask.png"
    if not (image.exists() and mask.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        stored, values = projected()
        _dicom(stored).save_as(image, enforce_file_format=True)
        Image.fromarray(values).save(mask)
    return image, mask


def projected() -> tuple[np.ndarray, np.ndarray]:
    """((ROWS, SIDE) uint16 as stored, (ROWS, SIDE) uint8 mask), parallel beams from back to front; the patient's left is on the right."""
    z_mm = TOP_MM - np.arange(ROWS) * phantom_ct.SPACING_MM
    values, masks = phantom_ct.volume(z_mm)
    along = 1  # (z, y, x): the beam runs along y
    attenuation = WATER_PER_MM * phantom_ct.SPACING_MM * (1 + values.clip(phantom_ct.AIR) / 1000).sum(axis=along)
    stored = FULL * (BRIGHTEST - attenuation) / (BRIGHTEST - DARKEST)
    mask = np.zeros(stored.shape, np.uint8)
    mask[masks["Lung"].sum(axis=along) * phantom_ct.SPACING_MM >= MIN_LUNG_MM] = LUNG
    mask[masks["Nodule"].any(axis=along)] = NODULE
    return stored.round().clip(0, FULL).astype(np.uint16), mask


def _dicom(stored: np.ndarray) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID(f"{ROOT}1")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}2", f"{ROOT}3"
    phantom_ct.set_patient(ds)
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "20210304", "113000", "2", "A2", ""
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName, ds.SeriesNumber, ds.InstanceNumber = "CR", "medspark", "phantom", 1, 1
    ds.SeriesDescription, ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "chest phantom", "CHEST", "PA", ["L", "F"]
    ds.ImageType, ds.BurnedInAnnotation = ["ORIGINAL", "PRIMARY"], "NO"
    ds.ImagerPixelSpacing = [phantom_ct.SPACING_MM, phantom_ct.SPACING_MM]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *stored.shape, 1, "MONOCHROME1"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 10, 9, 0
    ds.WindowCenter, ds.WindowWidth = (FULL + 1) / 2, FULL + 1
    ds.PixelData = stored.astype("<u2").tobytes()
    return ds
