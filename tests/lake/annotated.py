"""A small CT series with a DICOM SEG, a foreign tool's (highdicom's) work, for tests of labels that wait."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from pydicom.sr.codedict import codes

from tests.phantoms import series as phantoms

POSITIONS_MM = (0.0, 2.0, 4.0)


def annotated_series(where: Path) -> tuple[Path, Path]:
    """(folder of three slices of 4 x 5 pixels, its SEG with 1, 2 and 3 pixels of liver)."""
    folder = phantoms.write_series(
        where / "ct",
        POSITIONS_MM,
        AccessionNumber="",
        StudyID="1",
        StudyTime="100000",
        PatientBirthDate="19600101",
        ReferringPhysicianName="",
        Manufacturer="ACME",
    )
    images = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    mask = np.zeros((3, 4, 5), np.uint8)
    for place in range(3):
        mask[place, 1, 1 : 2 + place] = 1
    segment = SegmentDescription(
        1, "liver", codes.SCT.Organ, codes.SCT.Liver, SegmentAlgorithmTypeValues.MANUAL, tracking_uid=None, tracking_id=None
    )
    seg = highdicom.seg.Segmentation(
        images, mask, SegmentationTypeValues.BINARY, [segment], phantoms.ROOT + "77", 9, phantoms.ROOT + "77.1", 1, "ACME", "m", "1", "1"
    )
    path = where / "seg.dcm"
    seg.save_as(path)
    return folder, path
