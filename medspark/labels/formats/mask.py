"""Label images: PNG and TIFF whose values or colours are classes, read in bands of rows whatever their size.

Without ``--classes`` 0 (black, transparent) is background, or the lowest value where 0 is absent; other values become ``class_<value>``,
colours ``class_<rrggbb>``. An empty mask says that its classes are absent: one plane of area 0 for each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from medspark.errors import Rejected
from medspark.labels.codebook import Codebook, Entry
from medspark.labels.formats.bands import Raster, open_raster
from medspark.labels.regions import Context, Item, MaskPlane

MAX_CLASSES = 256
"""A picture with more distinct values is a photo or a smoothed mask, not a label image."""
FEW_CLASSES = 32
NOISY = 0.2
"""With more than 32 values a label image still consists of areas: in real ones up to 1.3 % of the pixels differ from their left neighbour, in
chest X-rays and stained tissue 47 to 100 %."""


def read(path: str, context: Context) -> Iterator[Item]:
    """`MaskPlane` per band and class that occurs in it; two passes over a file of several bands (the first finds its values)."""
    if os.path.getsize(path) == 0:
        raise Rejected("EMPTY_FILE", "the mask is an empty file")
    with open_raster(path, context) as raster:
        first: tuple[int, np.ndarray] | None = None
        values: set[int] = set()
        held: dict[int, set[int]] = {}  # first row of a band -> its values
        changes = 0
        for row0, band in raster.bands():
            if raster.n_bands == 1:
                first = (row0, band)
            heads = run_heads(band)
            changes += len(heads)
            held[row0] = distinct(heads)
            values |= held[row0]
            if len(values) > MAX_CLASSES:
                raise Rejected("LABEL_FORMAT", f"more than {MAX_CLASSES} distinct values: not a label image")
        if len(values) > FEW_CLASSES and changes > NOISY * raster.rows * raster.cols:
            raise Rejected("LABEL_FORMAT", "a picture with many values that change from pixel to pixel: not a label image")
        classes = name_classes(values, context.classes, raster.colour)
        if not classes:
            yield from _absent(raster, context)
            return
        wanted = {row0 for row0, found in held.items() if found & classes.keys()}
        for row0, band in [first] if first is not None else raster.bands(wanted):
            for value in sorted(held[row0] & classes.keys()):
                yield from _planes(band == value, row0, classes[value], raster, context)


def run_heads(band: np.ndarray) -> np.ndarray:
    """The values of the first pixels of all runs, in scan order: all values that occur, and how often they change."""
    flat = band.ravel()
    return np.concatenate([flat[:1], flat[1:][np.flatnonzero(flat[1:] != flat[:-1])]])


def distinct(values: np.ndarray) -> set[int]:
    return {int(value) for value in np.unique(values)}


def name_classes(values: set[int], classes: Codebook, colour: bool) -> dict[int, Entry]:
    """Value -> class of all values that are not background. With ``--classes`` only 0 is: a lowest value is then never a guess."""
    background = 0 if 0 in values or classes.entries else min(values)
    named: dict[int, Entry] = {}
    for value in sorted(values):
        entry = classes.colour(value) if colour else classes.number(value)
        if entry is not None:
            named[value] = entry
        elif value != background:
            named[value] = Entry(value, f"class_{value:06x}" if colour else f"class_{value}")
    return named


def _absent(raster: Raster, context: Context) -> Iterator[MaskPlane]:
    """An empty mask, once per class. Of a mask in bands the first stands for all: its size is in ref_rows x ref_cols."""
    empty = np.zeros((min(raster.rows, raster.band_rows), raster.cols), bool)
    for entry in context.classes.foreground():
        yield from _planes(empty, 0, entry, raster, context)


def _planes(mask: np.ndarray, row0: int, entry: Entry, raster: Raster, context: Context) -> Iterator[MaskPlane]:
    plane = MaskPlane.of_bits(mask, "", entry.label, role=entry.role, row0=row0, col0=0, ref_rows=raster.rows, ref_cols=raster.cols)
    for image in context.images():
        yield MaskPlane(**{**plane.__dict__, "ref_image": image})
