"""What of a file's name may stand in a table that holds no addresses: keyed tokens of its stem and of its folder.

Images and annotations find each other by these tokens (``regions.ref_image = "name:<token>"``), so both sides must cut a name the same way.
"""

from __future__ import annotations

import re

from medspark.keys import Ids

DOUBLE_EXTENSIONS = (".nii.gz", ".ome.tiff", ".ome.tif")
"""Extensions of two parts that are cut as one."""

MASK_NAMES = r"(?i)[-_.](mask|seg|segmentation|labels?)(\.[A-Za-z]+)+$"
"""File names that say that a picture or volume is a mask: ``lesion1_mask.png``, ``case7_seg.nii.gz``."""


def basename(uri: str) -> str:
    """Last part of a path, URI or archive member (``archive.zip!folder/file``); a trailing slash is left out."""
    return re.split(r"[/\\!]", uri.rstrip("/\\"))[-1]


def folder(uri: str) -> str:
    """Name of the folder that holds the file (of the archive, for a member at its top); empty where there is none."""
    parts = [part for part in re.split(r"[/\\!]", uri.rstrip("/\\")) if part]
    return parts[-2] if len(parts) > 1 else ""


def image_stem(name: str) -> str:
    """File name without its last extension: ``slide.svs`` -> ``slide``; ``.nii.gz`` and ``.ome.tif(f)`` are cut whole.

    A name that is all extension (``.hidden``) and one without any stay as they are.
    """
    lower = name.lower()
    for extension in DOUBLE_EXTENSIONS:
        if lower.endswith(extension) and len(name) > len(extension):
            return name[: -len(extension)]
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name


def file_token(ids: Ids, uri: str) -> str:
    """Token of the file's stem."""
    return ids.token(image_stem(basename(uri)))


def folder_token(ids: Ids, uri: str) -> str:
    """Token of the name of the file's folder."""
    return ids.token(folder(uri))


_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def plain_name(text: str | None) -> bool:
    """Whether a name that people give (of a split, a part, a feed) is safe in paths, SQL and tables."""
    return text is not None and _PLAIN.fullmatch(text) is not None
