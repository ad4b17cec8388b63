"""Small DICOM slides with known truth: one level per file, tiled full or sparse, in every frame layout that the reader claims to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.phantoms.tiff_slides import tiles

WSM = "1.2.840.10008.5.1.4.1.1.77.1.6"
SERIES = "1.2.826.0.1.3680043.8.498.1"
JPEG, J2K, NATIVE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.1"


def level(
    path: Path,
    base: np.ndarray,
    encode: Any = None,
    syntax: str = NATIVE,
    side: int = 32,
    photometric: str = "RGB",
    table: str = "basic",
    order: list[int] | None = None,
    fragments: int = 1,
    **tags: Any,
) -> Path:
    """One level.

    table : "basic" | "none" | "extended"      offset table of compressed frames
    order : tile index of each frame           given: TILED_SPARSE, each frame saying its place; tiles left out are never scanned
    tags : keyword=value, None to leave it out
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate, encapsulate_extended
    from pydicom.sequence import Sequence
    from pydicom.uid import UID

    frames = list(tiles(base, side, encode or (lambda tile: tile.tobytes())))
    grid_cols = -(-base.shape[1] // side)
    header = Dataset()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID = UID(WSM)
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = UID(f"{SERIES}.2.{base.shape[1]}")
    meta.TransferSyntaxUID = UID(syntax)
    header.SeriesInstanceUID, header.StudyInstanceUID, header.Modality = SERIES, f"{SERIES}.0", "SM"
    header.PatientID, header.ManufacturerModelName, header.ImageType = "P1", "Phantom 1", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows = base.shape[1], base.shape[0]
    header.Rows = header.Columns = side
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, photometric, 0
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.DimensionOrganizationType = "TILED_FULL"
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [0.0005, 0.00025]  # mm between rows, between columns
    shared.PixelMeasuresSequence = Sequence([measures])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    if order is not None:
        header.DimensionOrganizationType = "TILED_SPARSE"
        groups = []
        for tile in order:
            place, group = Dataset(), Dataset()
            place.RowPositionInTotalImagePixelMatrix = tile // grid_cols * side + 1
            place.ColumnPositionInTotalImagePixelMatrix = tile % grid_cols * side + 1
            group.PlanePositionSlideSequence = Sequence([place])
            groups.append(group)
        header.PerFrameFunctionalGroupsSequence = Sequence(groups)
        frames = [frames[tile] for tile in order]
    header.NumberOfFrames = len(frames)
    if syntax == NATIVE:
        header.PixelData = b"".join(frames)
    elif table == "extended":
        header.PixelData, header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        header.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=table == "basic")
    header["PixelData"].VR = "OB"
    for keyword, value in tags.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    header.file_meta = meta
    pydicom.dcmwrite(path, header, enforce_file_format=True)
    return path
