"""From stored pixels to feed values, and crops of them. The one implementation that build_feed and predict share. Pure numpy and Pillow.

A `Recipe` says what is done to whole images; it is plain JSON, so it travels in the card and with the model, and a prediction sees what the
training saw. Cropping and padding are separate functions, because prediction crops otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from medspark.errors import BadRequest
from medspark.pixels.window import windowed
from medspark.series import display, rescale

Mode = Literal["stored", "values", "window", "display"]
DTYPES = ("uint8", "int16", "float32")
HALF = 0.5  # a resampled pixel belongs to a mask if at least half of what it is made from does


@dataclass(frozen=True)
class Recipe:
    """What turns stored planes into feed values.

    kind : image (one plane), context (2 n + 1 neighbouring slices as channels), volume (``depth`` slices)
    mode : stored     as they are (8-bit photos and tiles)
           values     after rescale or modality LUT: HU, SUV, ... in ``dtype`` (int16: rounded)
           window     ``window`` = (centre, width) in those units, to 0..255
           display    each file's own window (else its range of values), to 0..255; MONOCHROME1 inverted
    size : (rows, cols) that whole planes are resampled to;  spacing_mm : (row, col) that they are resampled to;  at most one of them
    context : slices on either side;  depth : of a volume;  channels : of one plane, 1 or 3
    """

    kind: Literal["image", "context", "volume"] = "image"
    mode: Mode = "stored"
    dtype: str = "uint8"
    window: tuple[float, float] | None = None
    size: tuple[int, int] | None = None
    spacing_mm: tuple[float, float] | None = None
    context: int = 0
    depth: int = 0
    channels: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `Recipe.parse` is the way back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Recipe:
        """Raises `BadRequest` for a recipe that this release does not know."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(said) - known)
        if unknown:
            raise BadRequest(f"recipe: unknown {', '.join(unknown)}; it was made by a newer medspark")
        typed: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
        return cls(**typed)

    @property
    def planes(self) -> int:
        """Stored planes that one sample is made from."""
        return self.depth if self.kind == "volume" else 2 * self.context + 1

    @property
    def channel_names(self) -> tuple[str, ...]:
        if self.kind == "context":
            return tuple(f"k{offset:+d}" if offset else "k" for offset in range(-self.context, self.context + 1))
        return ("R", "G", "B") if self.channels == 3 else ("value",)

    def sized(self, rows: int, cols: int, pixel_spacing_mm: Sequence[float] | None) -> tuple[int, int]:
        """(rows, cols) of a plane after resampling. By spacing: rounded to whole pixels, the plane's outer edges stay where they are.

        Raises `BadRequest` for a plane without spacing where the recipe asks for one.
        """
        if self.size is not None:
            return self.size
        if self.spacing_mm is None:
            return rows, cols
        if not pixel_spacing_mm:
            raise BadRequest("--spacing-mm: an image of the cohort has no pixel spacing; use --size, or leave it out by the query")
        by_row, by_col = (have / want for have, want in zip(pixel_spacing_mm, self.spacing_mm, strict=True))
        return max(1, round(rows * by_row)), max(1, round(cols * by_col))

    def values(self, planes: Sequence[np.ndarray], rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Feed values of one whole sample.

        planes : `planes` stored arrays (rows, cols) or (rows, cols, 3), as `medspark.pixels.decode` gives them; slices in the order of k
        rows : their rows of ``slices`` (what `plane` reads; {} for photos and tiles)
        Returns (rows, cols, C), or (slices, rows, cols, C) for volumes, in ``dtype``.
        """
        made = [self.plane(stored, row) for stored, row in zip(planes, rows, strict=True)]
        if self.kind == "volume":
            return np.stack([plane.reshape(*plane.shape[:2], self.channels) for plane in made])
        if self.kind == "context":
            return np.stack(made, axis=-1)
        return made[0].reshape(*made[0].shape[:2], self.channels)

    def plane(self, stored: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
        """(rows, cols) or (rows, cols, 3) of ``dtype``: one plane, resampled.

        row : rescale_slope, rescale_intercept, modality_lut, window_center, window_width, voi_lut_function, photometric, value_min,
            value_max, pixel_spacing_mm are read where they are needed
        """
        values = self._valued(stored, row)
        size = self.sized(stored.shape[0], stored.shape[1], row.get("pixel_spacing_mm"))
        if size != values.shape[:2]:
            values = resized(values, size)
        if self.dtype == "float32":
            return np.ascontiguousarray(values, np.float32)
        if values.dtype != np.dtype(self.dtype):
            info = np.iinfo(self.dtype)
            values = np.rint(values).clip(info.min, info.max).astype(self.dtype)
        return np.ascontiguousarray(values)

    def _valued(self, stored: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
        if self.mode == "stored":
            return stored
        if self.mode == "display":
            if stored.ndim == 2 and row.get("value_min") is None and not row.get("window_center"):  # a photo: its type's whole range
                return (stored / float(np.iinfo(stored.dtype).max) * 255.0).astype(np.float32)
            return (display.picture(stored, row) * 255.0).astype(np.float32)
        lut, first = rescale.unpack_lut(row["modality_lut"]) if row.get("modality_lut") else (None, 0)
        values = rescale.to_values(stored, row.get("rescale_slope"), row.get("rescale_intercept"), lut, first)
        if self.mode == "window":
            assert self.window is not None
            grey = windowed(values, *self.window)
            return 255 - grey if row.get("photometric") == "MONOCHROME1" else grey
        return values.astype(np.float32)


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(rows, cols[, 3]) at another size, outer edges in place: linear where it grows, the mean under a triangle where it shrinks (no aliasing).

    uint8 stays uint8; everything else is float32.
    """
    from PIL import Image

    wanted = (size[1], size[0])
    if values.dtype == np.uint8:
        return np.asarray(Image.fromarray(values).resize(wanted, Image.Resampling.BILINEAR))
    if values.ndim == 3:
        return np.stack([resized(np.asarray(values[..., place], np.float32), size) for place in range(values.shape[2])], axis=-1)
    return np.asarray(Image.fromarray(np.asarray(values, np.float32)).resize(wanted, Image.Resampling.BILINEAR))


def resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(rows, cols) bool at another size: inside where at least half of what a pixel is made from is."""
    return mask if mask.shape == size else resized(mask.astype(np.float32), size) >= HALF


def grid(size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Upper left corners (row0, col0) of crops that cover an image of (rows, cols) px, row by row.

    A last crop that would reach beyond the image is moved back to end with it; an image smaller than the crop gets one crop from (0, 0), padded.
    """

    def starts(side: int, wide: int, step: int) -> list[int]:
        last = max(side - wide, 0)
        found = list(range(0, last + 1, step))
        return found if found[-1] == last else [*found, last]

    return [(row0, col0) for row0 in starts(size[0], crop[0], stride[0]) for col0 in starts(size[1], crop[1], stride[1])]


def cut(array: np.ndarray, row0: int, col0: int, crop: tuple[int, int], axis: int = 0) -> np.ndarray:
    """The crop of an image whose rows and columns are axes ``axis`` and ``axis + 1``; outside the image its edge pixels are repeated."""
    rows = np.clip(np.arange(row0, row0 + crop[0]), 0, array.shape[axis] - 1)
    cols = np.clip(np.arange(col0, col0 + crop[1]), 0, array.shape[axis + 1] - 1)
    if row0 >= 0 and row0 + crop[0] <= array.shape[axis] and col0 >= 0 and col0 + crop[1] <= array.shape[axis + 1]:
        inside: tuple[slice, ...] = (slice(None),) * axis + (slice(row0, row0 + crop[0]), slice(col0, col0 + crop[1]))
        return np.ascontiguousarray(array[inside])
    return np.ascontiguousarray(array.take(rows, axis).take(cols, axis + 1))


def covered(size: tuple[int, int], row0: int, col0: int, crop: tuple[int, int]) -> np.ndarray:
    """(rows, cols) bool of a crop: where it lies on the image of ``size``; False is padding."""
    rows, cols = np.arange(row0, row0 + crop[0]), np.arange(col0, col0 + crop[1])
    return ((rows >= 0) & (rows < size[0]))[:, None] & ((cols >= 0) & (cols < size[1]))


def neighbours(place: int, context: int, ks: Sequence[int]) -> list[int]:
    """Which slices are the channels of slice ``place``: 2 * context + 1 indices into ``ks``.

    ks : the places along the normal of one volume's slices, ascending
    A slice that is not there (the volume ends, or one of it is missing) is stood in for by the next nearer one: the edge is repeated, and nothing
    is taken from beyond a gap.
    """
    found = [place]
    for direction in (-1, 1):
        at = place
        side = []
        for step in range(1, context + 1):
            there = at + direction
            if at == place + direction * (step - 1) and 0 <= there < len(ks) and ks[there] == ks[place] + direction * step:
                at = there
            side.append(at)
        found = side[::-1] + found if direction < 0 else found + side
    return found


def depths(count: int, depth: int) -> list[int]:
    """Which of ``count`` slices are the ``depth`` planes of a volume; -1 is padding (the last slice repeated, its truth unknown).

    Fewer slices than planes are padded at the end; of more, evenly spaced ones are taken.
    """
    if count <= depth:
        return [*range(count), *[-1] * (depth - count)]
    return [int((place + HALF) * count / depth) for place in range(depth)]
