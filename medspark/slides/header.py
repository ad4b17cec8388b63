"""A slide file's header: everything that planning needs, with the tissue mask and the thumbnail, in a few hundred kilobytes at most.

`scan` opens one file. The levels of a DICOM slide are files of their own and are scanned one by one; `medspark.slides.plan` puts them
together. Under ``private`` stand the identifiers of which planning makes keyed ids; no row and no unit of work ever holds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medspark.config import Config
from medspark.errors import Rejected, SkippedSource
from medspark.keys import Ids
from medspark.pixels import encode, masks
from medspark.slides import tissue
from medspark.slides.frames import Pair
from medspark.tables.names import basename

if TYPE_CHECKING:
    from medspark.slides.slide import Slide

MPP_RANGE_UM = (0.05, 10.0)  # contract.md §5: outside, the value is a mistake (a screen's dots per inch, metres for millimetres)
SQUARE = 0.01  # axes that differ by less have square pixels; scanners calibrate each axis on its own
THUMBNAIL_QUALITY = 80

_OTHERS = {
    "import_labels reads annotations": (".xml", ".json", ".geojson", ".csv", ".tsv", ".xlsx"),
    "ingest_photos reads photos": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".npz", ".npy"),
    "explode_series reads volumes": (".nii", ".nii.gz", ".mha", ".nrrd"),
    "a part of a slide that is read through its index": (".opt", ".ngr"),  # Hamamatsu VMS and VMU
    "an archive, and slides are read at any place: unpack it": (".zip",),
    "no image": (".txt", ".md", ".html", ".pdf", ".log", ".ini", ".dat", ".yaml", ".yml", ".toml", ".py", ".sha256", ".md5", ".license"),
}
_PRIVATE = {  # fact -> OpenSlide's property, where OpenSlide read the file
    "patient_id": "dicom.PatientID",
    "patient_sex": "dicom.PatientSex",
    "issuer": "dicom.IssuerOfPatientID",
    "study_uid": "dicom.StudyInstanceUID",
    "series_uid": "dicom.SeriesInstanceUID",
    "sop_uid": "dicom.SOPInstanceUID",
    "specimen_id": "",
    "container_id": "dicom.ContainerIdentifier",
}


def skip_hint(uri: str) -> str | None:
    """Why a file is not meant for this job, by its name; None for one that may be a slide (.dat beside .mrxs is read through it)."""
    name = basename(uri).lower()
    for hint, suffixes in _OTHERS.items():
        if name.endswith(suffixes):
            return hint
    return None


def scan(path: str, uri: str, ids: Ids, settings: Config, given_tissue: str | Path | None = None) -> dict[str, Any]:
    """Header of the slide (or level of a DICOM slide) at ``path``; raises `Rejected`, or `SkippedSource` for what is no slide."""
    from medspark.slides.reader import open_slide

    hint = skip_hint(uri)
    if hint is not None:
        raise SkippedSource(f"not a slide: {hint}")
    slide = open_slide([path], settings.guard)
    try:
        return describe(slide, uri, settings, given_tissue)
    finally:
        slide.close()


def describe(slide: Slide, uri: str, settings: Config, given_tissue: str | Path | None = None) -> dict[str, Any]:
    """The header of an open slide (see `scan`)."""
    from medspark.deid.properties import keep_slide_properties

    if "BURNED_IN" in slide.verdict and settings.deid.burned_in == "quarantine":
        raise Rejected("BURNED_IN", "the header says that identifying text is burned into the pixels")
    mpp_um, _ = pixel_size(slide.mpp_um, settings.tiling.assume_mpp_um)
    thumbnail = tissue.read_thumbnail(slide, mpp_um, settings.guard.max_pixels)
    rows, cols = thumbnail.shape[:2]
    mask, l0 = None, slide.levels[0]
    if given_tissue is not None:
        mask = tissue.given_mask(given_tissue, uri, (l0.width_px, l0.height_px), settings.guard.max_pixels)
    if mask is None:
        mask = tissue.find_tissue(thumbnail)
    return {
        "levels": [dataclasses.asdict(level) for level in slide.levels],
        "vendor": slide.vendor,
        "mpp_um": slide.mpp_um,
        "objective_power": slide.objective_power,
        "bounds_l0": slide.bounds_l0,
        "icc_profile": slide.icc_profile,
        "properties": keep_slide_properties(slide.properties),
        "verdict": list(slide.verdict),
        "scanner_model": slide.facts.get("scanner_model"),
        "stain": slide.facts.get("stain"),
        "focal_plane": slide.facts.get("focal_plane"),
        "optical_path": slide.facts.get("optical_path"),
        "thumbnail": encode(thumbnail, "jpeg", {"quality": str(THUMBNAIL_QUALITY)}),
        "tissue_rows": rows,
        "tissue_cols": cols,
        "tissue_mask": masks.pack(tissue.fit(mask, rows, cols)),
        "private": _private(slide),
    }


def _private(slide: Slide) -> dict[str, str]:
    said = {fact: slide.facts.get(fact) or slide.properties.get(name) for fact, name in _PRIVATE.items()}
    return {fact: str(value) for fact, value in said.items() if value}


def pixel_size(mpp_um: Pair | None, assume_mpp_um: float | None) -> tuple[Pair | None, list[str]]:
    """(x, y) µm per level-0 px to work with, and what is odd about it: NO_MPP, MPP_DOUBT (treated as none), NON_SQUARE_PIXELS."""
    verdict = []
    if mpp_um is None or not np.isfinite(mpp_um).all() or min(mpp_um) <= 0:
        mpp_um, verdict = None, ["NO_MPP"]
    elif min(mpp_um) < MPP_RANGE_UM[0] or max(mpp_um) > MPP_RANGE_UM[1]:
        mpp_um, verdict = None, ["MPP_DOUBT"]
    if mpp_um is None:
        return (None if assume_mpp_um is None else (assume_mpp_um, assume_mpp_um)), verdict
    if abs(mpp_um[0] / mpp_um[1] - 1) > SQUARE:
        verdict = ["NON_SQUARE_PIXELS"]
    return (float(mpp_um[0]), float(mpp_um[1])), verdict


def mask_of(header: Mapping[str, Any]) -> np.ndarray:
    """(rows, cols) bool tissue mask of a header."""
    return masks.unpack(header["tissue_mask"], header["tissue_rows"], header["tissue_cols"])
