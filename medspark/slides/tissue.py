"""Thumbnail and tissue mask of a slide: where it is worth looking.

Tissue absorbs light: a pixel is tissue when its optical density (OD) stands out of the background. The threshold is Otsu's where the slide
really holds two kinds of pixels, and lies between fixed bounds in any case, so that a slide full of tissue is not cut in half and a blank
slide stays blank. Pen marks and black borders absorb light too and are told by their colour. The mask is a measure, not a diagnosis:
tiles below ``tiling.min_tissue`` keep their row, and ``--tissue`` replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from medspark.errors import BadRequest, Rejected
from medspark.slides import eighth
from medspark.slides.frames import Pair
from medspark.slides.grid import best_level
from medspark.slides.resample import BLOCK_PX, WHITE, read_scaled
from medspark.tables.names import basename, image_stem

if TYPE_CHECKING:
    from medspark.slides.slide import Slide

THUMBNAIL_UM = 8.0  # µm per thumbnail pixel: a lymphocyte's size, fine enough for a core biopsy 0.5 mm wide
THUMBNAIL_SIDE_PX = 2000  # longest side without a pixel size
MAX_SIDE_PX = 4096  # longest side with one: 33 mm at 8 µm; larger slides get coarser pixels
DARKEST = 1.0  # added to intensities so that black has a finite OD
OD_NEVER = 0.06  # below: coverslip, shading, JPEG noise (15 % less light than the background)
OD_ALWAYS = 0.20  # above: absorbs more than a third of the light; pale adipose and mucus lie between the two
OD_SINGLE = 0.08  # threshold of a slide with one kind of pixels only: pale eosin has 0.09, uneven light 0.05
SEPARABLE = 0.75  # between-class / total variance at Otsu's threshold: a Gaussian cut in half has 0.64, a uniform one 0.75
BACKGROUND_MIN = 200  # darker pixels are no background ...
BACKGROUND_CHROMA = 20  # ... nor are coloured ones (largest minus smallest channel)
BACKGROUND_SHARE = 0.01  # fewer such pixels than this do not define the background's colour
BACKGROUND_DEFAULT = 245  # then this does: bright-field scanners put the empty slide at 240-250
INK_SATURATION = 0.35  # (largest - smallest) / largest channel of felt-pen ink
INK_HUE = 10  # green and blue ink have more green than red by this; haematoxylin and eosin have more red than green
BLUE_EXCESS = 60  # ink as blue as this has no red of its own; haematoxylin always has more red than green
BLACK_VALUE = 90  # all channels below, and ...
BLACK_CHROMA = 30  # ... grey: black ink or the slide's edge; nuclei are dark but violet
INK_MARGIN_PX = 2  # blurred rim of a pen stroke at 8 µm
SPECK_PX = 16  # smaller components are dust, smaller holes are lumina: 16 px of 8 µm are 0.001 mm²


@dataclass(frozen=True)
class Tissue:
    """thumbnail : (rows, cols, 3) uint8    mask : (rows, cols) bool, on the thumbnail's pixels, which cover the slide exactly"""

    thumbnail: np.ndarray
    mask: np.ndarray


def thumbnail_size(l0_width: int, l0_height: int, mpp_um: Pair | None) -> tuple[int, int]:
    """(cols, rows) of the thumbnail: `THUMBNAIL_UM` per pixel, never enlarged, at most `MAX_SIDE_PX`; `THUMBNAIL_SIDE_PX` without a pixel size."""
    longest = max(l0_width, l0_height)
    if mpp_um is None:
        factor = (max(1.0, longest / THUMBNAIL_SIDE_PX),) * 2
    else:
        least = max(1.0, longest / MAX_SIDE_PX)
        factor = max(least, THUMBNAIL_UM / mpp_um[0]), max(least, THUMBNAIL_UM / mpp_um[1])
    return max(1, round(l0_width / factor[0])), max(1, round(l0_height / factor[1]))


def read_thumbnail(slide: Slide, mpp_um: Pair | None, limit_px: int = BLOCK_PX) -> np.ndarray:
    """(rows, cols, 3) uint8 from the best level, read in strips and averaged; parts that cannot be decoded are white.

    Raises `Rejected` where nothing of the level can be decoded.
    """
    l0 = slide.levels[0]
    cols, rows = thumbnail_size(l0.width_px, l0.height_px, mpp_um)
    scales = [(l0.width_px / level.width_px, l0.height_px / level.height_px) for level in slide.levels]
    number = best_level((l0.width_px / cols, l0.height_px / rows), scales)
    level = slide.levels[number]
    failures: list[Rejected] = []
    factor = level.width_px / cols, level.height_px / rows
    if eighth.suits(level, factor):
        factor = factor[0] / eighth.EIGHTH, factor[1] / eighth.EIGHTH
        slide, number = cast("Slide", eighth.EighthSlide(slide, number)), 0
    thumbnail = read_scaled(slide, number, factor, 0, 0, cols, rows, min(limit_px, BLOCK_PX), failures.append)
    if failures and (thumbnail == WHITE).all():
        raise failures[0]
    return thumbnail


def find_tissue(thumbnail: np.ndarray) -> np.ndarray:
    """(rows, cols) bool: tissue on an RGB thumbnail (rows, cols, 3) uint8 of about `THUMBNAIL_UM`."""
    left_out = ink(thumbnail)
    density = optical_density(thumbnail)
    mask = (density > threshold(density[~left_out])) & ~left_out
    return clean(mask) & ~left_out


def optical_density(thumbnail: np.ndarray) -> np.ndarray:
    """(rows, cols) float32 >= 0: mean over the channels of -log10(intensity / background)."""
    low, high = _extremes(thumbnail)
    empty = (low >= BACKGROUND_MIN) & (high - low <= BACKGROUND_CHROMA)
    known = np.count_nonzero(empty) >= BACKGROUND_SHARE * empty.size
    density = np.zeros(empty.shape, np.float32)
    for channel in range(3):
        values = thumbnail[..., channel]
        background = _median(values[empty]) if known else BACKGROUND_DEFAULT
        table = np.log10(background + DARKEST) - np.log10(np.arange(256) + DARKEST)
        density += np.take((np.maximum(table, 0) / 3).astype(np.float32), values)
    return density


def _extremes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest channel, (rows, cols) uint8 each; twenty times as fast as reducing along an axis of three."""
    red, green, blue = (image[..., channel] for channel in range(3))
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def _median(values: np.ndarray) -> int:
    """Median of uint8 values, by their histogram."""
    return int(np.searchsorted(np.cumsum(np.bincount(values, minlength=256)), (values.size + 1) // 2))


def threshold(density: np.ndarray) -> float:
    """OD above which a pixel is tissue, within OD_NEVER..OD_ALWAYS.

    Otsu's where the histogram has two humps of which the lower one is background (its mean is below OD_NEVER), else `OD_SINGLE`.
    """
    counts, edges = np.histogram(density, bins=256, range=(0.0, 1.5))
    if density.size == 0 or np.count_nonzero(counts) < 2:
        return OD_SINGLE
    centres = (edges[:-1] + edges[1:]) / 2
    share = counts / counts.sum()
    below, mean_below, mean = np.cumsum(share), np.cumsum(share * centres), float((share * centres).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.nan_to_num((mean * below - mean_below) ** 2 / (below * (1 - below)), posinf=0.0)
    total = float((share * (centres - mean) ** 2).sum())
    best = int(np.argmax(between))
    if total <= 0 or between[best] / total < SEPARABLE or mean_below[best] / below[best] > OD_NEVER:
        return OD_SINGLE
    return float(np.clip(edges[best + 1], OD_NEVER, OD_ALWAYS))


def ink(thumbnail: np.ndarray) -> np.ndarray:
    """(rows, cols) bool: green, blue or black pen with its rim, and black borders."""
    from scipy import ndimage

    low, high = _extremes(thumbnail)
    chroma = high - low  # uint8: never negative
    red, green, blue = (thumbnail[..., channel].astype(np.int16) for channel in range(3))
    greener = green - red
    coloured = (greener >= INK_HUE) & (chroma >= np.take(np.ceil(INK_SATURATION * np.arange(256)).astype(np.uint8), high))
    coloured |= (greener >= -INK_HUE) & (blue - green >= BLUE_EXCESS) & (blue - red >= BLUE_EXCESS)
    black = (high < BLACK_VALUE) & (chroma < BLACK_CHROMA)
    if not (coloured.any() or black.any()):
        return coloured
    marks = ndimage.binary_opening(coloured | black, np.ones((3, 3), bool))  # single such pixels are pigment or noise
    if not marks.any():
        return marks
    return ndimage.binary_dilation(marks, np.ones((3, 3), bool), INK_MARGIN_PX)


def clean(mask: np.ndarray) -> np.ndarray:
    """Without specks and holes smaller than `SPECK_PX`."""
    mask = _without_small(mask)
    return ~_without_small(~mask)


def _without_small(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    keep = sizes >= min(SPECK_PX, mask.size // 4)  # a thumbnail of a few pixels keeps what it has
    keep[0] = False
    return keep[labels]


@dataclass(frozen=True)
class Area:
    """The integral image of a mask that covers a slide exactly: tissue in any rectangle at the cost of four look-ups.

    integral : (rows + 1, cols + 1) int32    set mask pixels above and to the left
    l0_size : (width, height) level-0 px
    """

    integral: np.ndarray
    l0_size: tuple[int, int]

    @classmethod
    def of(cls, mask: np.ndarray, l0_size: tuple[int, int]) -> Area:
        integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)  # at most MAX_SIDE_PX squared: fits
        np.cumsum(mask, axis=1, dtype=np.int32, out=integral[1:, 1:])
        for row in range(1, len(integral)):
            integral[row] += integral[row - 1]  # along rows: twice as fast as cumsum along axis 0
        return cls(integral, l0_size)

    def fractions(self, x0_l0: np.ndarray, y0_l0: np.ndarray, x1_l0: np.ndarray, y1_l0: np.ndarray) -> np.ndarray:
        """(n,) float64 0..1: exact share of tissue in level-0 rectangles, over the part that lies on the slide; no loop over tiles."""
        rows, cols = self.integral.shape[0] - 1, self.integral.shape[1] - 1
        left, right = (np.clip(x * (cols / self.l0_size[0]), 0, cols) for x in (x0_l0, x1_l0))
        top, bottom = (np.clip(y * (rows / self.l0_size[1]), 0, rows) for y in (y0_l0, y1_l0))
        area = (right - left) * (bottom - top)
        inside = self._at(bottom, right) - self._at(top, right) - self._at(bottom, left) + self._at(top, left)
        return np.clip(np.divide(inside, area, out=np.zeros_like(inside), where=area > 0), 0.0, 1.0)

    def _at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Bilinear interpolation: exact for an integral image of constant pixels."""
        integral = self.integral
        row = np.minimum(y.astype(np.int64), integral.shape[0] - 2)
        col = np.minimum(x.astype(np.int64), integral.shape[1] - 2)
        dy, dx = y - row, x - col
        upper = integral[row, col] * (1 - dx) + integral[row, col + 1] * dx
        lower = integral[row + 1, col] * (1 - dx) + integral[row + 1, col + 1] * dx
        return upper * (1 - dy) + lower * dy


def fit(mask: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """A (r, c) bool mask that covers the slide, brought to (rows, cols): a pixel is set where at least half of it was."""
    if mask.shape == (rows, cols):
        return mask
    x, y = np.meshgrid(np.arange(cols) * (mask.shape[1] / cols), np.arange(rows) * (mask.shape[0] / rows))
    step_x, step_y = mask.shape[1] / cols, mask.shape[0] / rows
    share = Area.of(mask, (mask.shape[1], mask.shape[0])).fractions(x.ravel(), y.ravel(), x.ravel() + step_x, y.ravel() + step_y)
    return (share >= 0.5).reshape(rows, cols)


ASPECT_TOLERANCE = 0.02  # rounding of a small mask's sides; more is a mask of another slide


def given_mask(where: str | Path, uri: str, l0_size: tuple[int, int], max_pixels: int) -> np.ndarray | None:
    """The mask that ``--tissue`` gives for the slide at ``uri``: the file itself, or the file of the folder with the slide's stem.

    Returns (rows, cols) bool (non-zero is tissue), None where the folder holds none for this slide.
    Raises `BadRequest` for a path that does not exist, `Rejected` LABEL_SIZE / LABEL_FORMAT for a mask that does not fit or cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(where)
    if not path.exists():
        raise BadRequest(f"--tissue {where}: no such file or folder")
    if path.is_dir():
        stem = image_stem(basename(uri))
        found = sorted(
            item for item in path.iterdir() if image_stem(item.name) in (stem, stem + ".mask", stem + "_mask") and item.is_file()
        )
        if not found:
            return None
        path = found[0]
    try:
        with Image.open(path) as image:
            if image.width * image.height > max_pixels:
                raise Rejected("TOO_LARGE", "the tissue mask has more pixels than guard.max_pixels")
            off_px = abs(image.width / image.height * l0_size[1] - l0_size[0])
            if off_px > max(1.0, ASPECT_TOLERANCE * l0_size[0]):  # 1 px: the small levels of a DICOM slide
                raise Rejected("LABEL_SIZE", "the tissue mask has another aspect ratio than the slide")
            array = np.asarray(image.convert("RGB") if image.mode == "RGBA" else image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError):
        raise Rejected("LABEL_FORMAT", "the tissue mask is not a readable PNG or TIFF") from None
    return (array != 0).any(axis=-1) if array.ndim == 3 else array != 0
