"""Pictures of a lake, drawn from its tables alone: every pixel shown was stored, every outline is a mask that was stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medspark.demo import kind_pictures, series_pictures, slide_pictures
from medspark.demo.drawing import save
from medspark.scores.pictures import PLAIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medspark.lake.open import OpenLake

PICTURES: tuple[tuple[str, Callable[[OpenLake], Figure | None], str], ...] = (
    ("kinds", kind_pictures.one_of_each, "one image of each kind with its labels"),
    ("slide", slide_pictures.tile_map, "tiles and tissue over the slide's thumbnail"),
    ("tiles", slide_pictures.contact_sheet, "stored tiles with the outlines of their labels"),
    ("series", series_pictures.labelled_series, "CT slices with their masks, and the label's area along the series"),
)
"""Name, how it is drawn (None where the lake holds nothing for it), what it shows."""


def draw(lake: OpenLake, folder: Path) -> list[tuple[Path, str]]:
    """Writes the pictures that the lake's contents allow; returns (file, what it shows)."""
    written = []
    for name, picture, about in PICTURES:
        path = folder / f"{name}.png"
        if write(lambda picture=picture: picture(lake), path):
            written.append((path, about))
    return written


def write(figure_of: Callable[[], Figure | None], path: Path) -> bool:
    """Draws a figure in the pictures' style and saves it; False where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(PLAIN):
        figure = figure_of()
        if figure is None:
            return False
        save(figure, path)
        plt.close(figure)
    return True
