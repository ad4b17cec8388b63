"""What the plan needs to know of one file: its format, how many images and pixels it holds, the parts of an array."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Any

from medspark.config import Config
from medspark.errors import Rejected, SkippedSource
from medspark.photos import arrays, read
from medspark.tables.names import basename

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".npz")
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".ome.tif", ".ome.tiff")


def scan(path: str, uri: str, settings: Config, exclude: str) -> dict[str, Any]:
    """{"kind", "format", "images", "pixels"[, "parts"]}; raises `Rejected`, or `SkippedSource` for what is no photo.

    exclude : file names that it matches are left out
    """
    name, size = basename(uri), os.path.getsize(path)
    if size == 0:
        raise Rejected("EMPTY_FILE", "the file has no bytes")
    if exclude and re.search(exclude, name):
        raise SkippedSource("left out by its name (--exclude): import_labels reads masks")
    if name.lower().endswith(SLIDE_SUFFIXES):
        raise SkippedSource("a slide: use tile_slides")
    with open(path, "rb") as stream:
        head = stream.read(read.HEAD_BYTES)
        preamble = stream.read(132 - read.HEAD_BYTES)
    form = read.sniff(head)
    if form == "npz" and not name.lower().endswith(".npz"):
        form = None  # any zip: archives are opened before they come here
    if form is None:
        _other(name, preamble)
    assert form is not None
    if form == "npz":
        found = arrays.parts(path, settings.guard)
        images = sum(part.count for part in found)
        pixels = sum(part.count * part.rows * part.cols for part in found)
        return {"kind": "photo", "format": form, "images": images, "pixels": pixels, "parts": found}
    if size > settings.guard.max_file_bytes and form != "tiff":  # a TIFF is read page by page, the others whole
        raise Rejected("TOO_LARGE", "the file exceeds guard.max_file_bytes")
    sizes = read.sizes(path, form, settings.guard)
    return {"kind": "photo", "format": form, "images": len(sizes), "pixels": sum(one.pixels for one in sizes)}


def _other(name: str, preamble: bytes) -> None:
    suffix = PurePosixPath(name.lower()).suffix
    if preamble.endswith(b"DICM"):
        raise SkippedSource("a DICOM object: use explode_series")
    if name.lower().endswith((".nii", ".nii.gz")):
        raise SkippedSource("a volume: use explode_series")
    if suffix in PHOTO_SUFFIXES:
        raise Rejected("PHOTO_UNREADABLE", "its name says that it is a photo, its first bytes do not")
    raise SkippedSource("no photo that medspark reads (PNG, JPEG, TIFF, BMP, .npz)")
