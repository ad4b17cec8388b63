"""One image of each kind and data set in the lake, as it is meant to be looked at, with its labels and what they measure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medspark.scores.pictures import PALE
from medspark.demo.drawing import DPI, colours, masked, merged, outline, rim, round_length, scale_bar, tint
from medspark.labels.link_slices import BODY_SPACING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medspark.lake.open import OpenLake

MAX_IMAGES = 6
IN_A_ROW = 3
WIDTH_IN = 9.6
LINE_IN = 0.17  # a line of a caption
DETAIL = 0.7  # masks are reduced by a whole number to at most so many pixels of the picture a pixel before they are drawn
THIN_PX = 5.0  # of the picture: what is thinner (vessels) is filled, its two outlines would meet
MIN_SHARE = 0.002  # of the image: less of a label is a splinter, and not what the image is chosen for
CHOICE = f"""
WITH images AS (
  SELECT image_id, dataset, 'tile' AS kind, 0 AS place, height_px AS rows, width_px AS cols, mpp_um / 1000 AS col_mm FROM tiles
  WHERE pixel_source <> 'none' AND valid_width_px = width_px AND valid_height_px = height_px
  UNION ALL
  SELECT image_id, dataset, CASE WHEN modality IN ('CR', 'DX', 'MG') THEN 'X-ray' ELSE modality || ' slice' END,
         CASE WHEN modality IN ('CR', 'DX', 'MG') THEN 2 ELSE 1 END, rows, cols,
         CASE WHEN pixel_spacing_source IN ({", ".join(f"'{name}'" for name in sorted(BODY_SPACING))}) THEN pixel_spacing_mm[2] END
  FROM slices
  UNION ALL
  SELECT image_id, dataset, 'photo', 3, rows, cols, NULL FROM photos),
shares AS (
  SELECT image_id, label, least(1, sum(fraction)) AS share FROM labels WHERE mask_codec IS NOT NULL AND area_px > 0 GROUP BY image_id, label),
seen AS (SELECT image_id, count_if(share >= {MIN_SHARE}) AS n_labels, sum(1 - abs(2 * share - 1)) AS border FROM shares GROUP BY image_id),
best AS (
  SELECT *, coalesce(n_labels, 0) AS n FROM images LEFT JOIN seen USING (image_id)
  QUALIFY row_number() OVER (PARTITION BY kind, dataset ORDER BY coalesce(n_labels, 0) DESC, border DESC NULLS LAST, image_id) = 1)
SELECT image_id, kind, dataset, rows, cols, col_mm, place, row_number() OVER (PARTITION BY kind ORDER BY n = 0, dataset) AS turn
FROM best ORDER BY place, kind, turn"""
"""Of each kind and data set the image with most labels, and of those the one with most of both: label and what is not.

``col_mm`` is a pixel's width on the patient (null where it is the detector's); ``turn`` counts a kind's data sets, labelled ones first."""


def one_of_each(lake: OpenLake, datasets: Collection[str] = ()) -> Figure | None:
    """Rows of images in their true proportions, each with its outlines and a caption; at most MAX_IMAGES, every kind before any twice.

    datasets : of these alone; all where empty
    """
    from matplotlib import pyplot as plt

    found = [row for row in lake.sql(CHOICE).to_pylist() if not datasets or row["dataset"] in datasets]
    chosen = sorted(sorted(found, key=lambda row: row["turn"])[:MAX_IMAGES], key=lambda row: (row["place"], row["kind"], row["turn"]))
    if not chosen:
        return None
    for row in chosen:
        row["picture"] = lake.show(row["image_id"], labels=False).array
        row["labels"] = merged(masked(lake, image_id=row["image_id"]))
    per_row = 2 if len(chosen) in (2, 4) else IN_A_ROW
    lines = [chosen[start : start + per_row] for start in range(0, len(chosen), per_row)]
    gap, margin, title = 0.14, 0.1, 0.3
    heights = [_height(line, WIDTH_IN - 2 * margin - gap * (len(line) - 1)) for line in lines]
    captions = [LINE_IN * max(1, *(len(row["labels"]) for row in line)) + 0.2 for line in lines]
    high = sum(heights) + sum(captions) + title * len(lines)
    figure = plt.figure(figsize=(WIDTH_IN, high), dpi=DPI)
    top = high
    for line, height, caption in zip(lines, heights, captions, strict=True):
        left, top = margin, top - title
        for row in line:
            wide = height * _aspect(row)
            axes = figure.add_axes((left / WIDTH_IN, (top - height) / high, wide / WIDTH_IN, height / high))
            _panel(axes, row, height)
            left += wide + gap
        top -= height + caption
    return figure


def _aspect(row: dict[str, Any]) -> float:
    """Width / height as shown."""
    rows, cols = row["picture"].shape[:2]
    return float(cols / rows)


def _height(line: Sequence[dict[str, Any]], width: float) -> float:
    """Of a line of images that fills the width, inches; at most half the picture's width, so that one image alone is not a poster."""
    return min(width / sum(_aspect(row) for row in line), WIDTH_IN / 2)


def _panel(axes: Axes, row: dict[str, Any], height_in: float) -> None:
    from PIL import Image

    rows, cols = row["rows"], row["cols"]  # as stored; the picture may be enlarged
    shown_px = round(2 * DPI * height_in)  # twice the figure's: what is smaller is left as it is
    picture = Image.fromarray(row["picture"])
    picture.thumbnail((round(shown_px * _aspect(row)), shown_px), Image.Resampling.LANCZOS)
    extent = (-0.5, cols - 0.5, rows - 0.5, -0.5)
    axes.imshow(np.asarray(picture), extent=extent, aspect="auto", interpolation="antialiased")
    hue = colours([one["label"] for one in row["labels"]])
    for one in row["labels"]:
        _mask(axes, one["mask"], hue[one["label"]], height_in * DPI / rows)
    axes.set_xlim(-0.5, cols - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor("#dfe3e8")
    if row["col_mm"]:
        length = round_length(cols * row["col_mm"])
        text = f"{length:g} mm" if length >= 1 else f"{1000 * length:g} µm"
        scale_bar(axes, length / row["col_mm"], text, dark=bool(row["picture"].mean() > 128))
    axes.set_title(f"{row['kind']}: {row['dataset']}", loc="left", fontsize=9.5)
    step = LINE_IN / height_in
    for place, one in enumerate(row["labels"]):
        y = -0.06 / height_in - (place + 0.5) * step
        axes.text(0, y, "▬", transform=axes.transAxes, fontsize=11, color=hue[one["label"]], va="center", path_effects=rim(1.6, "#3a4652"))
        axes.text(0.2 / (height_in * _aspect(row)), y, _measures(one), transform=axes.transAxes, fontsize=7.5, va="center")
    if not row["labels"]:
        axes.text(0, -0.06 / height_in - 0.5 * step, "no label", transform=axes.transAxes, fontsize=7.5, color=PALE, va="center")


def _mask(axes: Axes, mask: np.ndarray, colour: str, scale: float) -> None:
    """Outline and tint; thin structures filled.  scale : pixels of the picture per pixel of the mask"""
    from scipy.ndimage import binary_erosion
    from skimage.measure import block_reduce

    border = mask & ~binary_erosion(mask, border_value=1)
    thickness_px = 2 * mask.sum() / max(1, border.sum()) * scale
    times = max(1, int(DETAIL / scale))
    share = block_reduce(mask, (times, times), np.mean)
    if thickness_px < THIN_PX:
        tint(axes, np.sqrt(share), colour, alpha=1.0, times=times)  # the root keeps the finest ones visible
    else:
        tint(axes, share, colour, alpha=0.1, times=times)
        outline(axes, share >= 0.5, colour, width=1.2, times=times)


def _measures(one: dict[str, Any]) -> str:
    """The label's name, its share of the image and its size on the patient, or in pixels where their size is not the patient's."""
    area = f"{one['area_px']:,} px" if one["area_mm2"] is None else _area(one["area_mm2"])
    return f"{one['label']}: {100 * one['fraction']:.1f} %, {area}"


def _area(mm2: float) -> str:
    if mm2 >= 100:
        return f"{mm2 / 100:,.1f} cm²"
    return f"{mm2:,.1f} mm²" if mm2 >= 0.1 else f"{1e6 * mm2:,.0f} µm²"
