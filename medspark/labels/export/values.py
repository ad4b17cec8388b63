"""Value images: one number per label, shared by all files of an export (``classes.csv``, as ``import_labels --classes`` reads it)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medspark.errors import BadRequest
from medspark.labels.export.rows import Mask

MOST_VALUES = 65_535  # of 16 bits; 0 is background
ROLES = ("positive",)


def numbers(labels: Sequence[str], pixels: bool) -> dict[str, int]:
    """label -> number, from 1 in the order given. ``pixels``: for values of pixels; `BadRequest` where 16 bits do not hold them."""
    if pixels and len(labels) > MOST_VALUES:
        raise BadRequest(f"--query: {len(labels)} labels do not fit the {MOST_VALUES} values of a 16-bit image; choose fewer labels")
    return {label: number for number, label in enumerate(labels, start=1)}


def value_type(values: Mapping[str, int]) -> type[np.unsignedinteger]:
    """uint8 where it holds all values of the export, else uint16: one type for all files."""
    return np.uint8 if max(values.values(), default=0) <= np.iinfo(np.uint8).max else np.uint16


def by_label(masks: Iterable[Mask]) -> dict[str, list[Mask]]:
    found: dict[str, list[Mask]] = {}
    for mask in masks:
        found.setdefault(mask.label, []).append(mask)
    return dict(sorted(found.items()))


def overlaps(masks: Sequence[Mask]) -> bool:
    """Whether two labels claim a pixel of one image; objects of one label may. ``masks``: of one image and one reader."""
    labels = by_label(masks)
    if len(labels) < 2:
        return False
    taken = np.zeros((masks[0].rows, masks[0].cols), bool)
    for of in labels.values():
        mine = united(of)
        if (taken & mine).any():
            return True
        taken |= mine
    return False


def united(masks: Sequence[Mask]) -> np.ndarray:
    """(rows, cols) bool: the union of masks of one image."""
    whole = masks[0].inside()
    for mask in masks[1:]:
        whole = whole | mask.inside()
    return whole


def classes_csv(values: Mapping[str, int]) -> str:
    """``value,label,role`` of all values."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("value", "label", "role"))
    writer.writerows((value, label, ROLES[0]) for label, value in values.items())
    return out.getvalue()
