"""Annotation formats. Each module reads one: ``read(path, context) -> Iterator[Region | MaskPlane | Rejected]``.

A fault of the file is raised, one bad shape among good ones is yielded as a `Rejected`. ``sniff.py`` tells the formats apart by content;
``bands.py`` (big masks), ``json_items.py`` (big JSON) and ``dicom.py`` are shared. No module knows another's format, an image, or a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

from medspark.labels.regions import Context, Item

FORMATS = ("asap", "geojson", "seg", "rtstruct", "ann", "nifti", "mask", "coco", "csv")
"""As ``--format`` names them, besides ``auto``."""


def reader(name: str) -> Callable[[str, Context], Iterator[Item]]:
    """``read`` of a format; its libraries are imported here and not before."""
    if name not in FORMATS:
        raise ValueError(f"unknown label format {name!r}")
    read: Callable[[str, Context], Iterator[Item]] = import_module(f"medspark.labels.formats.{name}").read
    return read
