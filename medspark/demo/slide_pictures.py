"""The slide with its tissue and tiles, and the contact sheet of labelled tiles."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from medspark.scores.pictures import INK, PALE
from medspark.demo.drawing import DPI, EMPTY, STORED, TISSUE, colours, masked, merged, outline, rim, round_length, scale_bar
from medspark.pixels import decode, masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medspark.lake.open import OpenLake

SHEET = (3, 6)
"""Rows and columns of the contact sheet."""
MAX_DRAWN_TILES = 600
"""A slide with more tiles shows its thumbnail alone: at that size nobody sees the difference."""
REDUCED_PX = 96
SLIDE = [
    *("slide_id", "dataset", "width_l0_px", "height_l0_px", "mpp_x_um", "mpp_y_um", "tissue_fraction"),
    *("tissue_mask", "tissue_rows", "tissue_cols", "thumbnail"),
]
TILE = [
    *("image_id", "grid_id", "tile_row", "tile_col", "x_l0", "y_l0", "width_l0", "height_l0"),
    *("valid_width_px", "valid_height_px", "width_px", "height_px", "tissue_fraction", "pixel_source", "mpp_um"),
]


def _slide(lake: OpenLake) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]] | None:
    """(slide, tiles of its first grid, labels of those tiles) of the slide with most labels."""
    best = None
    for slide in lake.rows("slides", SLIDE).to_pylist():
        tiles = lake.rows("tiles", TILE, slide_id=slide["slide_id"]).to_pylist()
        grid = min((tile["grid_id"] for tile in tiles), default=None)
        tiles = [tile for tile in tiles if tile["grid_id"] == grid]
        here = {tile["image_id"] for tile in tiles}
        drawn = merged(row for row in masked(lake, parent_id=slide["slide_id"]) if row["image_id"] in here)
        if best is None or (len(drawn), slide["slide_id"]) > (len(best[2]), best[0]["slide_id"]):
            best = (slide, tiles, drawn)
    return best


def tile_map(lake: OpenLake) -> Figure | None:
    """Left: thumbnail, tissue outline, grid, tiles with and without stored pixels. Right: how much of each tile is labelled."""
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch, Rectangle

    found = _slide(lake)
    if found is None:
        return None
    slide, tiles, drawn = found
    thumbnail = _thumbnail(slide)
    width, height = slide["width_l0_px"], slide["height_l0_px"]
    wide = max(width, *(tile["x_l0"] + tile["width_l0"] for tile in tiles))  # the last tiles reach over the slide's edge
    high = max(height, *(tile["y_l0"] + tile["height_l0"] for tile in tiles))
    panel, top, bottom = 4.6, 0.36, 0.36
    size = 2 * panel + 0.4, panel * high / wide + top + bottom
    figure = plt.figure(figsize=size, dpi=DPI)
    left, right = (figure.add_axes(((0.1 + place * (panel + 0.2)) / size[0], bottom / size[1], panel / size[0], 1 - (top + bottom) / size[1])) for place in (0, 1))  # fmt: skip
    pale = 255 - (255 - thumbnail.mean(axis=-1, keepdims=True).repeat(3, axis=-1)) * 0.45
    _ground(left, thumbnail, slide)
    _ground(right, pale, slide)
    _stored_tiles(left, lake, slide, tiles)
    stored = 0
    for tile in tiles:
        kept = tile["pixel_source"] != "none"
        stored += kept
        box = (tile["x_l0"], tile["y_l0"]), tile["width_l0"], tile["height_l0"]
        if not kept:
            left.add_patch(Rectangle(*box, facecolor=EMPTY, alpha=0.30, linewidth=0))
        left.add_patch(
            Rectangle(*box, facecolor="none", edgecolor=STORED if kept else "#ffffff", linewidth=0.9 if kept else 0.6, zorder=2 + kept)
        )
        right.add_patch(Rectangle(*box, facecolor="none", edgecolor="#d5dae0", linewidth=0.5))
    _tissue(left, slide)
    hue = colours([row["label"] for row in drawn])
    _heat(right, tiles, drawn, hue)
    extent = width * (slide["mpp_x_um"] or 1.0)
    length = round_length(extent)
    text = (f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm") if slide["mpp_x_um"] else f"{length:g} px"
    for axes in (left, right):
        axes.set_xlim(0, wide)
        axes.set_ylim(high, 0)
        scale_bar(axes, length / (slide["mpp_x_um"] or 1.0), text, dark=True)
    left.set_title(f"{slide['dataset']}: {len(tiles)} tiles of {int(tiles[0]['width_px'])} px, {stored} with pixels")
    right.set_title("labelled share of each tile, %")
    left.legend(
        handles=[
            Patch(facecolor="none", edgecolor=STORED, label="tile, pixels stored"),
            Patch(facecolor=EMPTY, alpha=0.4, label="tile without tissue, row only"),
            Patch(facecolor="none", edgecolor=TISSUE, linewidth=1.6, label=f"tissue found ({100 * slide['tissue_fraction']:.0f} %)"),
        ],
        **_below(3),
    )
    right.legend(
        handles=[Patch(facecolor=colour, edgecolor=PALE, linewidth=0.5, label=label) for label, colour in hue.items()], **_below(3)
    )
    figure.subplots_adjust(
        left=0.015, right=0.985, top=1 - 0.42 / figure.get_figheight(), bottom=0.55 / figure.get_figheight(), wspace=0.04
    )
    return figure


def contact_sheet(lake: OpenLake) -> Figure | None:
    """Tiles as stored, with the outlines of all labels on them."""
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    found = _slide(lake)
    if found is None or not found[2]:
        return None
    slide, tiles, drawn = found
    on: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in drawn:
        on[row["image_id"]].append(row)
    chosen = _choose([tile for tile in tiles if tile["pixel_source"] != "none" and tile["image_id"] in on], on, SHEET[0] * SHEET[1])
    pixels = lake.images([tile["image_id"] for tile in chosen])
    hue = colours([row["label"] for row in drawn])
    n_rows = -(-len(chosen) // SHEET[1])
    side = 1.52
    top, bottom, caption = 0.42, 0.5, 0.2
    figure = plt.figure(figsize=(SHEET[1] * (side + 0.08) + 0.16, n_rows * (side + caption + 0.06) + top + bottom), dpi=DPI)
    wide, high = figure.get_size_inches()
    for place, tile in enumerate(chosen):
        down, across = divmod(place, SHEET[1])
        x, y = 0.1 + across * (side + 0.08), high - top - (down + 1) * (side + caption + 0.06) + caption
        axes = figure.add_axes((x / wide, y / high, side / wide, side / high))
        axes.imshow(pixels[tile["image_id"]][: tile["valid_height_px"], : tile["valid_width_px"]], interpolation="antialiased")
        axes.set_facecolor("#e9edf1")  # shows where an edge tile reaches over the slide
        share = {one["label"]: one["fraction"] for one in on[tile["image_id"]]}
        for one in on[tile["image_id"]]:
            outline(axes, one["mask"], hue[one["label"]], inset=2.0)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_edgecolor("#dfe3e8")
        axes.set_xlim(-0.5, tile["width_px"] - 0.5)
        axes.set_ylim(tile["height_px"] - 0.5, -0.5)
        if place == (n_rows - 1) * SHEET[1] and tile["mpp_um"]:
            scale_bar(axes, 50 / tile["mpp_um"], "50 µm", dark=True)
        axes.text(0, -0.03, f"row {tile['tile_row']}, col {tile['tile_col']}", transform=axes.transAxes, fontsize=7, color=PALE, va="top")
        axes.text(1, -0.03, _percent(share), transform=axes.transAxes, fontsize=7, color=INK, va="top", ha="right")
    figure.text(
        0.1 / wide,
        1 - 0.24 / high,
        f"{slide['dataset']}: {len(chosen)} of {len(on)} labelled tiles; below each the share that its labels cover",
        fontsize=10,
        weight="bold",
        va="center",
    )
    lines = [Line2D([], [], color=colour, linewidth=3, path_effects=rim(4.6, "#000000b0"), label=label) for label, colour in hue.items()]
    figure.legend(handles=lines, loc="lower center", ncol=6, frameon=False, fontsize=9, bbox_to_anchor=(0.5, 0.08 / high))
    return figure


def _percent(share: dict[str, float]) -> str:
    """Of each label, in the order of their names (that of the legend)."""
    parts = [f"{100 * share[label]:.0f}" for label in sorted(share) if share[label] >= 0.005]
    return " + ".join(parts) + " %"


def _choose(tiles: list[dict[str, Any]], on: dict[str, list[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """Tiles where something can be seen (a border, tissue), a fair share for each label, in reading order."""

    def worth(tile: dict[str, Any], label: str) -> float:
        share = sum(row["fraction"] for row in on[tile["image_id"]] if row["label"] == label)
        border = 1 - abs(2 * share - 1)  # 1 where half is labelled, 0 where all or nothing is
        return border + 0.8 * tile["tissue_fraction"] + 0.3 * len({row["label"] for row in on[tile["image_id"]]})

    queues = {
        label: sorted(
            (tile for tile in tiles if any(row["label"] == label for row in on[tile["image_id"]])), key=lambda tile: -worth(tile, label)
        )
        for label in sorted({row["label"] for tile in tiles for row in on[tile["image_id"]]})
    }
    taken: dict[str, dict[str, Any]] = {}
    while len(taken) < min(count, len(tiles)):
        for queue in queues.values():
            while queue and queue[0]["image_id"] in taken:
                queue.pop(0)
            if queue and len(taken) < count:
                best = queue.pop(0)
                taken[best["image_id"]] = best
    return sorted(taken.values(), key=lambda tile: (tile["tile_row"], tile["tile_col"]))


def _thumbnail(slide: dict[str, Any]) -> np.ndarray:
    """(rows, cols, 3) uint8 as stored."""
    return decode(slide["thumbnail"], "jpeg", "uint8", (slide["tissue_rows"], slide["tissue_cols"], 3))


def _ground(axes: Axes, picture: np.ndarray, slide: dict[str, Any]) -> None:
    axes.imshow(picture.astype(np.uint8), extent=(0, slide["width_l0_px"], slide["height_l0_px"], 0), interpolation="bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _stored_tiles(axes: Axes, lake: OpenLake, slide: dict[str, Any], tiles: list[dict[str, Any]]) -> None:
    """The stored tiles over the thumbnail, reduced: what has pixels in the lake is sharp."""
    from PIL import Image

    kept = [tile for tile in tiles if tile["pixel_source"] != "none"]
    if len(kept) > MAX_DRAWN_TILES:
        return
    pixels = lake.images([tile["image_id"] for tile in kept])
    for tile in kept:
        small = Image.fromarray(pixels[tile["image_id"]]).resize((REDUCED_PX, REDUCED_PX), Image.Resampling.BOX)
        x, y = tile["x_l0"], tile["y_l0"]
        axes.imshow(np.asarray(small), extent=(x, x + tile["width_l0"], y + tile["height_l0"], y), interpolation="antialiased", zorder=1)


def _tissue(axes: Axes, slide: dict[str, Any]) -> None:
    if slide["tissue_mask"] is None:
        return
    rows, cols = slide["tissue_rows"], slide["tissue_cols"]
    mask = masks.unpack(slide["tissue_mask"], rows, cols)
    x = (np.arange(cols) + 0.5) * slide["width_l0_px"] / cols
    y = (np.arange(rows) + 0.5) * slide["height_l0_px"] / rows
    axes.contour(x, y, mask.astype(np.float32), [0.5], colors=[TISSUE], linewidths=1.3, zorder=4)


def _heat(axes: Axes, tiles: list[dict[str, Any]], drawn: list[dict[str, Any]], hue: dict[str, str]) -> None:
    """Each tile's labels side by side in the tile, as strong as their share; the share in per cent where it is not tiny."""
    from matplotlib.patches import Rectangle

    share: dict[tuple[str, str], float] = defaultdict(float)
    for row in drawn:
        share[row["image_id"], row["label"]] += row["fraction"]
    for tile in tiles:
        here = [(label, min(1.0, share[tile["image_id"], label])) for label in hue if (tile["image_id"], label) in share]
        for place, (label, part) in enumerate(here):
            wide = tile["width_l0"] / len(here)
            x = tile["x_l0"] + place * wide
            axes.add_patch(
                Rectangle((x, tile["y_l0"]), wide, tile["height_l0"], facecolor=hue[label], alpha=0.15 + 0.75 * part, linewidth=0, zorder=2)
            )
            if part >= 0.01:
                axes.text(
                    x + wide / 2,
                    tile["y_l0"] + tile["height_l0"] / 2,
                    f"{100 * part:.0f}",
                    fontsize=6.5,
                    ha="center",
                    va="center",
                    zorder=3,
                )


def _below(columns: int) -> dict[str, Any]:
    return {
        "loc": "upper center",
        "bbox_to_anchor": (0.5, -0.012),
        "ncol": columns,
        "frameon": False,
        "fontsize": 7.5,
        "handlelength": 1.3,
        "columnspacing": 1.1,
        "handletextpad": 0.5,
    }
