"""Pictures of a lake, drawn from its tables alone: every pixel shown was stored, every outline is a mask that was stored.

This module holds what the pictures share (colours, scale bars, reading); `slide_pictures` and `series_pictures` draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from medspark.lake.files import admitted_paths
from medspark.lake.pixels import PixelReader
from medspark.lake.store import Lake
from medspark.pixels import masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#00d5ff", "#ffc400", "#7dff6b", "#ff5fb0", "#b69cff", "#ff8a3d")
"""Of labels, in the order of their names: bright, and told apart on pink, brown and grey, with colour-blind eyes too."""
INK, PALE, STORED, TISSUE, EMPTY = "#1d2733", "#6b7785", "#2b6cb0", "#1f9d55", "#8d99a6"
LINES = (INK, PALE, STORED, TISSUE, EMPTY, "#ffffff", "#000000")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "axes.edgecolor": "#c6ccd3",
    "figure.facecolor": "white",
}
DPI = 110
PALETTE = 160  # colours of a saved PNG beside those of labels and lines: a third of the bytes, and no eye tells


@dataclass(frozen=True)
class Store:
    """Rows and pixels of a lake, for drawing."""

    lake: Lake

    def rows(self, table: str, columns: Sequence[str], where: pc.Expression | None = None) -> list[dict[str, Any]]:
        return self.lake.read(table, columns, where).to_pylist() if self.lake.exists(table) else []

    def pixels(self, parent_id: str, image_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Stored arrays of images of one parent, from those files only whose statistics admit it."""
        files = admitted_paths(self.lake.actions("pixels"), "parent_id", [parent_id])
        return PixelReader(self.lake.filesystem, files, parent_id)(image_ids)

    def labels(self, where: pc.Expression) -> list[dict[str, Any]]:
        """Rows of ``labels`` with a mask, the mask as array in ``mask``."""
        columns = ["image_id", "label", "role", "mask", "mask_codec", "rows", "cols", "fraction", "area_px", "area_mm2", "value_mean"]
        found = self.rows("labels", columns, where & pc.field("mask").is_valid())
        for row in found:
            unpack = masks.unpack if row["mask_codec"] == "bits-zstd" else masks.unpack_u8
            row["mask"] = unpack(row["mask"], row["rows"], row["cols"]) > 0
        return found


def draw(lake: Lake, folder: Path) -> list[tuple[Path, str]]:
    """Writes the pictures that the lake's contents allow; returns (file, what it shows)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from medspark.demo import series_pictures, slide_pictures

    folder.mkdir(parents=True, exist_ok=True)
    store, written = Store(lake), []
    for name, picture, about in (
        ("slide", slide_pictures.tile_map, "tiles and tissue over the slide's thumbnail"),
        ("tiles", slide_pictures.contact_sheet, "stored tiles with the outlines of their labels"),
        ("series", series_pictures.labelled_series, "CT slices with their masks, and the label's area along the series"),
    ):
        with plt.rc_context(STYLE):
            figure = picture(store)
            if figure is None:
                continue
            save(figure, folder / f"{name}.png")
            plt.close(figure)
        written.append((folder / f"{name}.png", about))
    return written


def save(figure: Figure, path: Path) -> None:
    """A PNG with a palette: the picture's own colours, and those of labels and lines, which are too few pixels to be chosen by count."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    figure.canvas.draw()
    array = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    picture = Image.fromarray(array)
    fixed = np.array([[round(255 * part) for part in to_rgb(colour)] for colour in (*COLOURS, *LINES)], np.uint8)
    own = picture.quantize(PALETTE, method=Image.Quantize.MEDIANCUT, kmeans=1).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*fixed.ravel().tolist(), *own][: 3 * 256])
    places = np.asarray(picture.quantize(palette=palette, dither=Image.Dither.NONE)).copy()
    for place, colour in enumerate(fixed):  # Pillow's search is approximate: white must stay white
        places[(array == colour).all(axis=-1)] = place
    saved = Image.fromarray(places, "L")
    saved.putpalette(palette.getpalette() or [])
    saved.save(path, optimize=True)


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


def outline(axes: Axes, mask: np.ndarray, colour: str, width: float = 1.6, alpha: float = 0.0, inset: float = 0.0) -> None:
    """The mask's border in pixel coordinates of `imshow`, with a dark rim that shows on any ground, and a tint of strength alpha.

    inset : the line runs so many pixels inside the mask, so that two labels that touch show both their lines
    """
    from matplotlib import patheffects
    from matplotlib.colors import to_rgb
    from scipy.ndimage import distance_transform_edt

    if alpha:
        tint = np.zeros((*mask.shape, 4), np.float32)
        tint[mask] = (*to_rgb(colour), alpha)
        axes.imshow(tint, interpolation="nearest")
    if mask.any() and not mask.all():
        field = distance_transform_edt(mask) - 0.5 if inset else mask.astype(np.float32)
        drawn = axes.contour(field, [inset or 0.5], colors=[colour], linewidths=width)
        drawn.set_path_effects([patheffects.withStroke(linewidth=width + 1.4, foreground="#000000b0")])


def scale_bar(axes: Axes, length: float, text: str, dark: bool = False) -> None:
    """A bar of ``length`` data units in the lower left corner (0.04 of the axes from the border)."""
    from matplotlib import patheffects

    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, y = left + 0.04 * (right - left), low + 0.05 * (high - low)
    ink, rim = ("#111111", "#ffffff") if dark else ("#ffffff", "#000000")
    effects = [patheffects.withStroke(linewidth=3, foreground=rim, alpha=0.7)]
    axes.plot([x, x + length], [y, y], color=ink, linewidth=3, solid_capstyle="butt", path_effects=[patheffects.withStroke(linewidth=5, foreground=rim, alpha=0.7)])  # fmt: skip
    axes.text(x, y + 0.015 * (high - low), text, color=ink, fontsize=8, va="bottom", ha="left", path_effects=effects)


def round_length(extent: float) -> float:
    """A length of 1, 2 or 5 times a power of ten, about a fifth of an extent."""
    power = 10.0 ** np.floor(np.log10(extent / 5))
    return float(max(step * power for step in (1, 2, 5) if step * power <= extent / 4))
