"""Which image an annotation file belongs to: ``--pairs FILE`` (CSV ``image,annotation``), else by its name.

``regions.ref_image`` and ``planes.ref_image`` then read
``name:<token of the image's stem>``, ``path:<token of its folder>/<token of its stem>``, ``folder:<token of the folder's name>`` or
``image:<slide_id, series_id or image_id>``; the tables of images carry the same tokens (`medspark.tables.names`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from medspark.errors import BadRequest
from medspark.keys import ID_DIGITS, Ids
from medspark.tables.names import basename, folder, image_stem
from medspark.tables.options import read_csv

ANNOTATION_EXTENSIONS = (".nii.gz", ".xml", ".json", ".geojson", ".png", ".tiff", ".tif", ".nii", ".csv", ".dcm", ".txt")
IMAGE_EXTENSIONS = (
    *(".ome.tiff", ".ome.tif", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi"),
    *(".jpg", ".jpeg", ".bmp", ".dicom", ".npz"),
)
"""Cut as well, so that ``slide.svs.geojson`` belongs to ``slide.svs``."""
DIALECT_SUFFIXES = (
    *(".asap", ".qupath", ".mask", ".labels", ".seg"),
    *("_mask", "-mask", "_seg", "-seg", "_labels", "_label", "_segmentation"),
)
_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}$")
_LOOKS_LIKE_FILE = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}$")
"""A short extension that begins with a letter: folder names such as ``1.2.840.113`` end in digits."""


def annotation_stem(name: str) -> str:
    """The image's stem in an annotation's file name: ``slide.qupath.geojson``, ``slide_mask.png``, ``slide.svs.xml`` -> ``slide``."""
    while True:
        lower = name.lower()
        for suffix in (*ANNOTATION_EXTENSIONS, *IMAGE_EXTENSIONS, *DIALECT_SUFFIXES):
            if lower.endswith(suffix) and len(name) > len(suffix):
                name = name[: -len(suffix)]
                break
        else:
            return name


def image_ref(ids: Ids, text: str) -> str:
    """``ref_image`` of an image given as an id, a file name, a path, or a folder (trailing slash, or a name without extension)."""
    text = text.strip()
    if _ID.match(text):
        return f"image:{text}"
    name, parent = basename(text), folder(text)
    if text.endswith(("/", "\\")) or not _LOOKS_LIKE_FILE.search(name):
        return f"folder:{ids.token(name)}"
    if parent and parent not in (".", ".."):
        return f"path:{ids.token(parent)}/{ids.token(image_stem(name))}"
    return f"name:{ids.token(image_stem(name))}"


@dataclass(frozen=True)
class Pairs:
    """The pairs of ``--pairs``; empty when it was not given.

    images : annotation as written (file name, or path whose last parts match) -> images as written
    """

    images: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def refs(self, ids: Ids, uri: str) -> tuple[str, ...]:
        """``ref_image`` of each image that the annotation at ``uri`` is paired with; the longest path that fits wins."""
        parts = [part for part in re.split(r"[/\\!]", uri) if part and part != "."]
        for start in range(len(parts)):
            found = self.images.get("/".join(parts[start:]))
            if found:
                return tuple(dict.fromkeys(image_ref(ids, image) for image in found))
        return ()

    @staticmethod
    def by_name(ids: Ids, uri: str) -> str:
        return f"name:{ids.token(annotation_stem(basename(uri)))}"


def read_pairs(path: str | Path) -> Pairs:
    """The pairs in a CSV file with the header ``image,annotation``; raises `BadRequest`."""
    _, rows = read_csv("--pairs", path)
    if not rows or not {"image", "annotation"} <= set(rows[0]):
        raise BadRequest(f"--pairs {path}: expected the header image,annotation and at least one row")
    images: dict[str, tuple[str, ...]] = {}
    for place, row in enumerate(rows, start=2):
        image, annotation = (row["image"] or "").strip(), (row["annotation"] or "").strip()
        if not image or not annotation:
            raise BadRequest(f"--pairs {path} line {place}: image and annotation must both be given")
        key = "/".join(part for part in re.split(r"[/\\!]", annotation) if part and part != ".")
        images[key] = (*images.get(key, ()), image)
    return Pairs(images)
