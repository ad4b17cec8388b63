"""A stored image as people look at it: window, true proportions, outlines of its masks with their names. numpy and Pillow."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

COLOURS = ("#00d5ff", "#ffc400", "#7dff6b", "#ff5fb0", "#b69cff", "#ff8a3d", "#ff4040", "#00e6b4")
"""Of labels, in the order of their names: bright, and told apart on grey, pink and brown, with colour-blind eyes too."""
LEAST_SIDE_PX = 512  # small images are enlarged (nearest) by a whole number to about this, so that outlines and names fit
OUTLINE_PX = 2
TEXT_PX = 15


@dataclass(frozen=True)
class Picture:
    """array : (rows, cols, 3) uint8, as drawn. A notebook shows it; `save` writes it (format by the name's ending)."""

    array: np.ndarray = field(repr=False)

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self._image().save(stream, "PNG")
        return stream.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        self._image().save(path)

    def _image(self):  # type: ignore[no-untyped-def]
        from PIL import Image

        return Image.fromarray(self.array)


def drawn(grey_or_rgb: np.ndarray, labels: Sequence[tuple[str, np.ndarray]] = (), aspect: float = 1.0) -> Picture:
    """The image with each label's outline, and the labels' names in their colours.

    grey_or_rgb : (rows, cols) or (rows, cols, 3) uint8
    labels : (name, (rows, cols) bool)      equal names share a colour
    aspect : a pixel's height / its width
    """
    from PIL import Image

    base = grey_or_rgb if grey_or_rgb.ndim == 3 else np.repeat(grey_or_rgb[..., None], 3, axis=2)
    rows, cols = base.shape[:2]
    times = max(1, LEAST_SIDE_PX // max(rows, cols))
    size = (max(1, round(cols * times * max(1.0, 1 / aspect))), max(1, round(rows * times * max(1.0, aspect))))  # Pillow: width, height
    picture = np.asarray(Image.fromarray(np.ascontiguousarray(base)).resize(size, Image.Resampling.NEAREST)).copy()
    names = sorted({name for name, _ in labels})
    for name, mask in labels:
        large = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)).astype(bool)
        picture[border(large, OUTLINE_PX)] = rgb(COLOURS[names.index(name) % len(COLOURS)])
    return Picture(_named(picture, names) if names else picture)


def border(mask: np.ndarray, width_px: int = 1) -> np.ndarray:
    """Pixels of a mask that lie at most so many steps (of 4-neighbours) from outside; what is beyond the image is outside."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask, iterations=width_px)


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _named(picture: np.ndarray, names: Sequence[str]) -> np.ndarray:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    # Pillow's own font has Latin letters only; matplotlib brings one with most alphabets.
    font = ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), TEXT_PX)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for place, name in enumerate(names):
        colour = rgb(COLOURS[place % len(COLOURS)])
        draw.text((6, 4 + place * (TEXT_PX + 4)), name, fill=colour, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
    return np.asarray(image).copy()
