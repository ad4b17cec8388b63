"""The seam between readers and the rest: what an open slide is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medspark.errors import Rejected

WHITE = 255  # what lies outside a slide, or was never scanned


@dataclass(frozen=True)
class Level:
    """One pyramid level.

    tile_width_px, tile_height_px : int or None     the file's own tiles; None where it has none (or OpenSlide does not say)
    downsample : float                              mean of the two side ratios to level 0, as OpenSlide defines it
    compression : str                               "jpeg" | "jp2-ycbcr" (TIFF 33003) | "jp2-rgb" (33005) | "jp2" | "other"
    """

    width_px: int
    height_px: int
    tile_width_px: int | None
    tile_height_px: int | None
    downsample: float
    compression: str


class Slide(Protocol):
    """An open slide. Not shared between threads; opened once per task.

    mpp_um : (x, y) or None       of level 0, as the file says it (the caller judges doubt)
    bounds_l0 : (x, y, width, height) or None
    properties : Mapping          RAW vendor properties under OpenSlide's names: names, dates and barcodes among them, the caller filters
    verdict : tuple[str, ...]     COLOUR_DOUBT where tag and stream disagree, BURNED_IN where the header says that its pixels name somebody
    facts : Mapping               scanner_model, specimen_id, container_id, patient_id, issuer, study_uid, series_uid, focal_plane, optical_path
    """

    vendor: str
    levels: tuple[Level, ...]
    mpp_um: tuple[float, float] | None
    objective_power: float | None
    bounds_l0: tuple[int, int, int, int] | None
    icc_profile: bytes | None
    properties: Mapping[str, str]
    verdict: tuple[str, ...]
    facts: Mapping[str, Any]

    def stored_jpeg(self, level: int, tile_row: int, tile_col: int) -> bytes | None:
        """The file's own tile as a stand-alone JPEG; None where it has none (sparse, another compression, an odd stream: `read` it)."""
        ...

    def stored_jpegs(self, level: int, tile_row: int, col0: int, col1: int) -> list[bytes | None]:
        """The same for columns col0 .. col1 - 1 of one tile row, with neighbouring tiles read in one go."""
        ...

    def stored_jp2(self, level: int, tile_row: int, tile_col: int) -> bytes | None:
        """The file's own JPEG 2000 tile as received; None where it has none. Its components are Y, Cb, Cr where the level says jp2-ycbcr."""
        ...

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8 RGB of a region in that level's own pixels; white outside the level.

        Raises Rejected: SLIDE_UNREADABLE when a tile does not decode, TOO_LARGE when the region is beyond ``guard.max_pixels``.
        """
        ...

    def close(self) -> None: ...


class NotOurs(Exception):
    """Our own reader has no part in this file; OpenSlide may have.

    reason : str          for the case that it has not either
    known : bool          the format is one of OpenSlide's (or unknown to us): if OpenSlide fails on it, the file is broken, not unsupported
    """

    def __init__(self, reason: str, known: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.known = known


def checked_region(slide: Slide, level: int, width: int, height: int, max_pixels: int) -> Level:
    """The level; raises Rejected TOO_LARGE or, for a caller's slip, IndexError and ValueError."""
    if not 0 <= level < len(slide.levels):
        raise IndexError(f"level {level} of {len(slide.levels)}")
    if width < 0 or height < 0:
        raise ValueError(f"region of {width} x {height} pixels")
    if width * height > max_pixels:
        raise Rejected("TOO_LARGE", f"a region of {width} x {height} pixels is above guard.max_pixels")
    return slide.levels[level]


def downsamples(sizes: list[tuple[int, int]]) -> list[float]:
    """Mean of the side ratios to the first size, (width, height) each: OpenSlide's definition."""
    width, height = sizes[0]
    return [(width / w + height / h) / 2 for w, h in sizes]
