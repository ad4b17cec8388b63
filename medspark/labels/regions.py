"""What every label format becomes: a `Region` (drawn) or a `MaskPlane` (painted), as the tables ``regions`` and ``planes`` hold them.

Coordinates: level-0 px for slides and px for photos, (0, 0) the corner of the first pixel; LPS mm for DICOM series (contract.md §4).
Nothing is repaired here: a shape that cannot be what it says is a `Rejected` with LABEL_GEOMETRY.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medspark.config import Config
from medspark.errors import Rejected
from medspark.keys import Ids
from medspark.labels.codebook import Codebook
from medspark.labels.pairs import Pairs
from medspark.pixels.masks import pack, pack_u8

Role = Literal["positive", "negative", "ignore", "extent"]
Geometry = Literal["polygon", "point", "line", "box", "contour"]

MAX_COORDINATE = 1e7
"""Larger coordinates are broken files: the largest slides have 4e5 px a side, the longest couches 2e3 mm."""

UNCLASSIFIED = "unclassified"
"""Label of a shape that its author gave no class."""

PROPERTIES = frozenset(
    {
        "class_value",  # value of a label without pixels (CSV)
        "exclude",  # "true": subtracted from all other labels of its source (ASAP exclusion groups)
        "contour_geometric_type",  # RTSTRUCT (3006,0042)
        "shape",  # the format's own word: Spline, Rectangle, MultiPolygon, ELLIPSE ...
        "object_type",  # QuPath: annotation, detection, cell, tile
        "generation_type",  # MANUAL, SEMIAUTOMATIC, AUTOMATIC
        "part",  # which of several polygons of one object
    }
)
"""Allow-list of ``regions.properties``: nothing that a person typed, so neither names nor addresses."""


@dataclass(frozen=True)
class Region:
    """Vector truth as it was drawn; fields as in table ``regions``.

    rings : arrays (n, 2) or (n, 3) float64, (x, y[, z]), not closed; the first is the outer ring, the rest holes.
        Empty for a label of the whole image.
    """

    ref_image: str
    label: str
    geometry: Geometry
    rings: tuple[np.ndarray, ...]
    role: Role = "positive"
    code: str | None = None
    code_scheme: str | None = None
    code_meaning: str | None = None
    instance_key: str | None = None
    annotator: str | None = None
    ref_series_id: str | None = None
    properties: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.properties) - PROPERTIES
        if unknown:
            raise ValueError(f"properties {sorted(unknown)} are not on the allow-list")

    @property
    def n_bytes(self) -> int:
        return sum(ring.nbytes for ring in self.rings) + 400  # 400: its strings, roughly


@dataclass(frozen=True)
class MaskPlane:
    """Raster truth as it was given; fields as in table ``planes``.

    affine : 16 floats, row-major, or None    (col, row, 0, 1) of this plane -> LPS mm; None where the plane has no place in a patient:
        then it covers, at (row0, col0), a part of an image of ref_rows x ref_cols that is the whole slide or photo at some scale
    threshold : lowest value that counts as inside, for ``u8-zstd``
    """

    ref_image: str
    label: str
    rows: int
    cols: int
    mask: bytes
    mask_codec: Literal["bits-zstd", "u8-zstd"] = "bits-zstd"
    role: Role = "positive"
    affine: tuple[float, ...] | None = None
    row0: int | None = None
    col0: int | None = None
    ref_rows: int | None = None
    ref_cols: int | None = None
    threshold: float | None = None
    code: str | None = None
    code_scheme: str | None = None
    code_meaning: str | None = None
    instance_key: str | None = None
    annotator: str | None = None
    ref_series_id: str | None = None

    @classmethod
    def of_bits(cls, mask: np.ndarray, ref_image: str, label: str, **rest: Any) -> MaskPlane:
        """From a (rows, cols) bool array."""
        return cls(ref_image, label, mask.shape[0], mask.shape[1], pack(mask), "bits-zstd", **rest)

    @classmethod
    def of_fractions(cls, mask: np.ndarray, ref_image: str, label: str, threshold: float, **rest: Any) -> MaskPlane:
        """From a (rows, cols) uint8 array of fractions of 255."""
        return cls(ref_image, label, mask.shape[0], mask.shape[1], pack_u8(mask), "u8-zstd", threshold=threshold, **rest)

    @property
    def n_bytes(self) -> int:
        return len(self.mask) + 600  # 600: its strings and affine, roughly


Item = Region | MaskPlane | Rejected
"""What a reader yields. A `Rejected` is one bad shape among good ones; a fault of the whole file is raised instead."""


def _quiet(what: str = "") -> None:
    return None


@dataclass(frozen=True)
class Context:
    """All that a reader needs besides the file.

    uri : str                  the file's address, from which the name rule and ``--pairs`` find its images
    explicit_dataset : bool    ``--dataset`` was given: only images of that data set match
    watch : called before each piece of foreign decoding
    """

    ids: Ids
    settings: Config
    uri: str
    dataset: str = ""
    explicit_dataset: bool = False
    classes: Codebook = Codebook()
    pairs: Pairs = Pairs()
    watch: Callable[[str], None] = _quiet

    def images(self) -> tuple[str, ...]:
        """``ref_image`` of the images that this file belongs to: as paired, else by its name."""
        return self.pairs.refs(self.ids, self.uri) or (self.pairs.by_name(self.ids, self.uri),)

    def paired(self) -> tuple[str, ...]:
        """``ref_image`` of the images that ``--pairs`` names for this file; empty where it names none."""
        return self.pairs.refs(self.ids, self.uri)

    def check_size(self, n_bytes: int) -> None:
        if n_bytes > self.settings.guard.max_file_bytes:
            raise Rejected("TOO_LARGE", f"the annotation's {n_bytes} bytes exceed guard.max_file_bytes")

    def check_pixels(self, rows: int, cols: int) -> None:
        """Before any allocation."""
        if rows < 1 or cols < 1:
            raise Rejected("LABEL_SIZE", "the mask has no pixels")
        if rows * cols > self.settings.guard.max_pixels:
            raise Rejected("TOO_LARGE", f"a mask of {rows} x {cols} exceeds guard.max_pixels")


def points(values: Iterable[Sequence[Any]] | np.ndarray, dims: int = 2) -> np.ndarray:
    """(n, dims) float64, finite and bounded; raises Rejected(LABEL_GEOMETRY)."""
    try:
        array = np.array(values if isinstance(values, (list, np.ndarray)) else list(values), np.float64)
    except (TypeError, ValueError, OverflowError):
        raise Rejected("LABEL_GEOMETRY", "a coordinate is not a number") from None
    if array.ndim == 2 and array.shape[1] > dims:  # GeoJSON may add an elevation
        array = array[:, :dims]
    if array.ndim != 2 or array.shape[1] != dims:
        raise Rejected(
            "LABEL_GEOMETRY", f"a shape's coordinates are not pairs of {dims} numbers" if array.size else "a shape has no points"
        )
    if not (np.abs(array) <= MAX_COORDINATE).all():  # also False for NaN
        raise Rejected("LABEL_GEOMETRY", "a coordinate is not finite or out of bounds")
    return array


def ring(values: Iterable[Sequence[Any]] | np.ndarray, dims: int = 2) -> np.ndarray:
    """`points` of a closed outline without a repeated first point; fewer than three different ones are Rejected(LABEL_GEOMETRY)."""
    array = points(values, dims)
    if len(array) > 1 and (array[0] == array[-1]).all():
        array = array[:-1]
    others = array[(array != array[:1]).any(axis=1)]
    if len(array) < 3 or not (others != others[:1]).any():  # nor do three of which two are the same
        raise Rejected("LABEL_GEOMETRY", f"an outline of {min(len(array), 2)} points encloses nothing")
    return array


def box(x: float, y: float, width: float, height: float) -> np.ndarray:
    """The four corners; a side that is not positive is Rejected(LABEL_GEOMETRY)."""
    if not (width > 0 and height > 0):
        raise Rejected("LABEL_GEOMETRY", "a box has no area")
    return points([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


def is_box(outline: np.ndarray) -> bool:
    """Whether four corners are an axis-parallel rectangle."""
    if outline.shape != (4, 2):
        return False
    corners = {(float(x), float(y)) for x, y in outline}
    wanted = {(float(x), float(y)) for x in outline[[0, 2], 0] for y in outline[[0, 2], 1]}
    return len(corners) == 4 and corners == wanted
