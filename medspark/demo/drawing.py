"""What the demo's pictures share: colours, rows with their masks, outlines, scale bars, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medspark.pixels.picture import COLOURS
from medspark.scores.pictures import INK, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medspark.lake.open import OpenLake

STORED, TISSUE, EMPTY = "#2b6cb0", "#1f9d55", "#8d99a6"
LINES = (INK, PALE, STORED, TISSUE, EMPTY, "#ffffff", "#000000")
DPI = 110
PALETTE = 160  # colours of a saved PNG beside those of labels and lines: a third of the bytes, and no eye tells
PALETTE_STEP = 3  # every third pixel of every third row is enough to choose them
LABEL = ("label_row_id", "image_id", "label", "role", "fraction", "area_px", "area_mm2", "value_mean")
"""Columns of ``labels`` that the pictures read beside the mask."""


def masked(lake: OpenLake, **equal: Any) -> list[dict[str, Any]]:
    """Rows of ``labels`` with a mask and with these values, the mask as array in ``mask``."""
    masks = lake.masks(**equal)
    rows = lake.rows("labels", LABEL, **equal).to_pylist()
    return [{**row, "mask": masks[row["label_row_id"]]} for row in rows if row["label_row_id"] in masks]


def save(figure: Figure, path: Path) -> None:
    """A PNG with a palette: the picture's own colours, and those of labels and lines, which are too few pixels to be chosen by count."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    figure.canvas.draw()
    array = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    fixed = np.array([[round(255 * part) for part in to_rgb(colour)] for colour in (*COLOURS, *LINES)], np.uint8)
    part = Image.fromarray(np.ascontiguousarray(array[::PALETTE_STEP, ::PALETTE_STEP]))
    own = part.quantize(PALETTE, method=Image.Quantize.MEDIANCUT, kmeans=1).getpalette() or []
    palette = np.concatenate([fixed, np.array(own, np.uint8).reshape(-1, 3)])[:256]
    places = _nearest(array, palette)
    for place, colour in enumerate(fixed):  # the search is by cells: white must stay white
        places[(array == colour).all(axis=-1)] = place
    saved = Image.fromarray(places, "L")
    saved.putpalette(palette.ravel().tolist())
    saved.save(path, optimize=True)


def _nearest(array: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """(rows, cols) uint8: for each pixel the place of the palette's nearest colour, to cells of 4 levels (Pillow's own takes 2 to 7 s)."""
    cells = array.astype(np.uint32) >> 2
    found, inverse = np.unique(cells[..., 0] << 12 | cells[..., 1] << 6 | cells[..., 2], return_inverse=True)
    centres = np.stack([found >> 12, found >> 6 & 63, found & 63], axis=-1).astype(np.float32) * 4 + 1.5
    colours = palette.astype(np.float32)
    nearest = ((colours**2).sum(axis=1) - 2 * centres @ colours.T).argmin(axis=1)
    return nearest[inverse].reshape(array.shape[:2]).astype(np.uint8)


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label."""
    return {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(sorted(set(labels)))}


def merged(labels: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each image and label: objects of one label on one image become one mask with their areas' sum."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in labels:
        key = row["image_id"], row["label"]
        if key not in found:
            found[key] = dict(row)
            continue
        one = found[key]
        whole = one["fraction"] / one["area_px"] if one["area_px"] else 0.0  # 1 / pixels on the slide
        one["mask"] = one["mask"] | row["mask"]
        area = int(one["mask"].sum())
        if one["area_mm2"] is not None and one["area_px"]:
            one["area_mm2"] *= area / one["area_px"]
        if one["value_mean"] is not None and row["value_mean"] is not None:
            one["value_mean"] = np.average([one["value_mean"], row["value_mean"]], weights=[one["area_px"], row["area_px"]])
        one["fraction"], one["area_px"] = area * whole, area
    return sorted(found.values(), key=lambda row: (row["image_id"], row["label"]))


def rim(width: float, colour: str = "#000000") -> list[Any]:
    """Path effects: a border around lines and letters, so that they show on any ground."""
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=width, foreground=colour)]


def tint(axes: Axes, mask: np.ndarray, colour: str, alpha: float, times: int = 1) -> None:
    """Colours the mask's pixels.

    mask : bool, or float 0..1 for pixels that are in it in part
    times : pixels of the image along a side of a pixel of the mask
    """
    from matplotlib.colors import to_rgb

    layer = np.empty((*mask.shape, 4), np.float32)
    layer[..., :3], layer[..., 3] = to_rgb(colour), alpha * mask
    rows, cols = mask.shape
    extent = (-0.5, cols * times - 0.5, rows * times - 0.5, -0.5)
    axes.imshow(layer, extent=extent, aspect=axes.get_aspect(), interpolation="antialiased")


def outline(axes: Axes, mask: np.ndarray, colour: str, width: float = 1.6, inset: float = 0.0, times: int = 1) -> None:
    """The mask's border in pixel coordinates of `imshow`, with a dark rim that shows on any ground.

    inset : the line runs so many pixels inside the mask, so that two labels that touch show both their lines
    times : pixels of the image along a side of a pixel of the mask
    """
    from scipy.ndimage import distance_transform_edt

    if mask.any() and not mask.all():
        y, x = (times * (np.arange(count) + 0.5) - 0.5 for count in mask.shape)
        field = distance_transform_edt(mask) - 0.5 if inset else mask.astype(np.float32)
        drawn = axes.contour(x, y, field, [inset or 0.5], colors=[colour], linewidths=width)
        drawn.set_path_effects(rim(width + 1.4, "#000000b0"))


def scale_bar(axes: Axes, length: float, text: str, dark: bool = False) -> None:
    """A bar of ``length`` data units in the lower left corner (0.04 of the axes from the border)."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, y = left + 0.04 * (right - left), low + 0.05 * (high - low)
    ink, ground = ("#111111", "#ffffffb0") if dark else ("#ffffff", "#000000b0")
    axes.plot([x, x + length], [y, y], color=ink, linewidth=3, solid_capstyle="butt", path_effects=rim(5, ground))
    axes.text(x, y + 0.015 * (high - low), text, color=ink, fontsize=8, va="bottom", ha="left", path_effects=rim(3, ground))


def round_length(extent: float) -> float:
    """A length of 1, 2 or 5 times a power of ten, about a fifth of an extent."""
    power = 10.0 ** np.floor(np.log10(extent / 5))
    return float(max(step * power for step in (1, 2, 5) if step * power <= extent / 4))
