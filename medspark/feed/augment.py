"""Changes of training samples that leave their truth true: image, masks and known pixels move together, in one resampling.

Every number is drawn from the generator that the reader names ``rng(seed, "augment", epoch, row_id)``: the same sample of the same epoch changes in
the same way on any machine, in any order. Volumes are changed in plane, all slices alike.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from medspark.errors import BadRequest
from medspark.feed.card import Card

# Optical density of haematoxylin, eosin and a residual in R, G, B (Ruifrok & Johnston 2001, as scikit-image's rgb_from_hed); rows have length 1.
HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
HED /= np.linalg.norm(HED, axis=1, keepdims=True)
UNMIX = np.linalg.inv(HED).astype(np.float32)
DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # of a stored level; + 1, so that black has a finite one
GRID = 5  # control points a side of the elastic field: bends of a quarter of the image


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a sample; 0 everywhere changes nothing.

    flip_rows, flip_cols : probability of turning upside down, of mirroring
    turn : probability of turning by 90, 180 or 270 degrees (square images)
    rotate_deg : largest angle, either way
    scale : largest enlargement or reduction, as a fraction: 0.1 is a factor between 1 / 1.1 and 1.1
    translate : largest shift along each axis, as a fraction of the side (a random crop of the frame)
    elastic_px : standard deviation of a smooth displacement
    gain : largest relative change of contrast about the image's mean; offset: largest shift of all values, in feed values
    stain : largest relative change of each stain's density, R G B only (Tellez et al. 2018, doi 10.1109/TMI.2018.2820199)
    noise : largest standard deviation of added normal noise, in feed values (HU for CT)
    """

    flip_rows: float = 0.0
    flip_cols: float = 0.0
    turn: float = 0.0
    rotate_deg: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    elastic_px: float = 0.0
    gain: float = 0.0
    offset: float = 0.0
    stain: float = 0.0
    noise: float = 0.0

    def check(self, card: Card) -> None:
        """Raises `BadRequest` for what cannot be done to the feed's images."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < np.inf or (field.name in ("flip_rows", "flip_cols", "turn") and value > 1):
                raise BadRequest(f"augmentation {field.name} = {value}: expected a number of at least 0 (a probability is at most 1)")
        rows, cols = card.image.space[-2:]
        if self.turn and rows != cols:
            raise BadRequest(f"augmentation turn = {self.turn}: quarter turns need square images, feed {card.name} has {rows} x {cols}")
        if self.stain and (card.image.channels != ("R", "G", "B") or card.image.dtype != "uint8"):
            raise BadRequest(f"augmentation stain = {self.stain}: needs 8-bit R G B, feed {card.name} has {', '.join(card.image.channels)}")

    def apply(self, image: np.ndarray, masks: np.ndarray | None, known: np.ndarray | None, random: np.random.Generator) -> None:
        """Changes a sample in place.

        image : (*space, C); masks : (*space, L) uint8; known : (*space, 1) uint8, 0 where the sample has left its frame
        """
        # All draws in one fixed order, so that switching one kind on does not change the others.
        chance = random.random(3)
        quarter = int(random.integers(1, 4))
        angle, zoom, down, right, gain, offset = random.uniform(-1, 1, 6)
        stain = random.uniform(-1, 1, (2, 3)).astype(np.float32)
        level = random.random()
        bend = random.standard_normal((2, GRID, GRID)).astype(np.float32)

        planes = [plane for plane in (image, masks, known) if plane is not None]
        if chance[0] < self.flip_rows:
            for plane in planes:
                plane[...] = plane[..., ::-1, :, :].copy()
        if chance[1] < self.flip_cols:
            for plane in planes:
                plane[...] = plane[..., ::-1, :].copy()
        if chance[2] < self.turn:
            for plane in planes:
                plane[...] = np.rot90(plane, quarter, axes=(-3, -2)).copy()
        if self.rotate_deg or self.scale or self.translate or self.elastic_px:
            rows, cols = image.shape[-3:-1]
            factor = (1 + self.scale) ** zoom
            shift = (down * self.translate * rows, right * self.translate * cols)
            row, col = _sources(rows, cols, np.deg2rad(angle * self.rotate_deg), factor, shift, bend * self.elastic_px)
            _resample(image, masks, known, row, col)
        if self.stain:
            image[...] = _restained(image, 1 + self.stain * stain[0], self.stain * stain[1])
        if self.gain or self.offset or self.noise:
            values = image.astype(np.float32)
            mean = values.mean()
            values = (values - mean) * (1 + self.gain * gain) + (mean + self.offset * offset)
            if self.noise:
                values += random.standard_normal(image.shape, np.float32) * (self.noise * level)
            image[...] = _stored(values, image.dtype)


def _sources(
    rows: int, cols: int, angle: float, factor: float, shift: tuple[float, float], bend: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the new sample comes from: (rows, cols) float32 each, px, about the image's centre.

    angle : radians, anticlockwise as seen; factor : enlargement; bend : (2, GRID, GRID) px, control points
    """
    row, col = np.ogrid[:rows, :cols]
    row, col = (row - (rows - 1) / 2).astype(np.float32), (col - (cols - 1) / 2).astype(np.float32)
    cos, sin = np.float32(np.cos(angle) / factor), np.float32(np.sin(angle) / factor)
    from_row = cos * row + sin * col + np.float32((rows - 1) / 2 - shift[0])
    from_col = -sin * row + cos * col + np.float32((cols - 1) / 2 - shift[1])
    if bend.any():
        down, right = _spline(rows), _spline(cols).T
        from_row += down @ bend[0] @ right
        from_col += down @ bend[1] @ right
    return from_row, from_col


@lru_cache(maxsize=16)
def _spline(side: int) -> np.ndarray:
    """(side, GRID) weights of a uniform cubic B-spline with its control points spread over the side."""
    distance = np.abs(np.linspace(0, GRID - 1, side)[:, None] - np.arange(GRID))
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def _resample(image: np.ndarray, masks: np.ndarray | None, known: np.ndarray | None, row: np.ndarray, col: np.ndarray) -> None:
    """Image: bilinear, its edge repeated outside; masks and known: nearest, unknown outside."""
    rows, cols = row.shape
    inside = (row > -0.5) & (row < rows - 0.5) & (col > -0.5) & (col < cols - 0.5)
    row, col = row.clip(0, rows - 1), col.clip(0, cols - 1)
    nearest = np.rint(row).astype(np.intp) * cols + np.rint(col).astype(np.intp)
    for plane in (masks, known):
        if plane is not None:
            flat = plane.reshape(-1, rows * cols, plane.shape[-1])
            for at in range(len(flat)):
                flat[at] = flat[at].take(nearest.reshape(-1), 0)
    if known is not None:
        known *= inside[..., None]
    top, left = np.floor(row).clip(0, max(rows - 2, 0)), np.floor(col).clip(0, max(cols - 2, 0))
    down, right = (row - top).reshape(-1, 1), (col - left).reshape(-1, 1)
    corner = (top.astype(np.intp) * cols + left.astype(np.intp)).reshape(-1)
    below, beside = (cols if rows > 1 else 0), (1 if cols > 1 else 0)
    flat = image.reshape(-1, rows * cols, image.shape[-1])
    for at in range(len(flat)):
        values = flat[at].astype(np.float32)
        upper, lower = values.take(corner, 0), values.take(corner + below, 0)
        upper += right * (values.take(corner + beside, 0) - upper)
        lower += right * (values.take(corner + below + beside, 0) - lower)
        lower -= upper
        lower *= down
        upper += lower
        flat[at] = _stored(upper, image.dtype)


def _restained(image: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Every stain's density times ``alpha`` plus ``beta``; (..., 3) uint8 in and out."""
    stains = DENSITY[image] @ UNMIX
    return _stored(256 * np.exp(-(stains * alpha + beta) @ HED) - 1, image.dtype)


def _stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded and clipped to what the dtype holds."""
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.rint(values).clip(limits.min, limits.max).astype(dtype)
