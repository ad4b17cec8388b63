"""CT slices as stored, with window, scale and masks, and the labels' areas along each series."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from medspark.demo.pictures import DPI, PALE, Store, colours, merged, outline, round_length, scale_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SERIES = 2
WINDOW_HU = (40.0, 400.0)
"""Centre and width for soft tissue, where the file gives no window."""
SLICE = [
    *("image_id", "series_id", "dataset", "modality", "k", "position_mm", "rows", "cols", "pixel_spacing_mm", "rescale_slope"),
    *("rescale_intercept", "value_unit", "is_hu", "window_center", "window_width", "photometric"),
]


def labelled_series(store: Store) -> Figure | None:
    """One row for each of the series with most labelled slices: slice, slice with masks, area of each label along the series."""
    from matplotlib import pyplot as plt

    slices = [row for row in store.rows("slices", SLICE) if row["position_mm"] is not None]
    by_series: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in slices:
        by_series[row["series_id"]].append(row)
    labelled = {series: merged(store.labels(pc.field("parent_id") == series)) for series in by_series}
    chosen = sorted((series for series in by_series if labelled[series]), key=lambda series: (-len(labelled[series]), series))[:MAX_SERIES]
    if not chosen:
        return None
    figure, axes = plt.subplots(
        len(chosen), 3, figsize=(9.6, 3.45 * len(chosen) + 0.1), dpi=DPI, squeeze=False, gridspec_kw={"width_ratios": (1, 1, 1.02)}
    )
    for panels, series in zip(axes, chosen, strict=True):
        _row(store, panels, sorted(by_series[series], key=lambda row: row["position_mm"]), labelled[series])
    figure.subplots_adjust(
        left=0.01, right=0.985, top=1 - 0.32 / figure.get_figheight(), bottom=0.47 / figure.get_figheight(), wspace=0.06, hspace=0.24
    )
    for panels in axes:  # room for the third panel's numbers
        box = panels[2].get_position()
        panels[2].set_position((box.x0 + 0.055, box.y0, box.width - 0.055, box.height))
    return figure


def _row(store: Store, panels: Any, slices: list[dict[str, Any]], labels: list[dict[str, Any]]) -> None:
    hue = colours([row["label"] for row in labels])
    shown = _choose(slices, labels)
    stored = store.pixels(shown["series_id"], [shown["image_id"]])[shown["image_id"]]
    grey, window = _windowed(stored, shown)
    row_mm, col_mm = shown["pixel_spacing_mm"] or (1.0, 1.0)
    here = [row for row in labels if row["image_id"] == shown["image_id"]]
    for axes in panels[:2]:
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, aspect=row_mm / col_mm, interpolation="antialiased")
        axes.set_xticks([])
        axes.set_yticks([])
    for row in sorted(here, key=lambda row: row["label"]):
        outline(panels[1], row["mask"], hue[row["label"]], width=1.1, alpha=0.28)
    for axes in panels[:2]:
        axes.set_xlim(-0.5, shown["cols"] - 0.5)
        axes.set_ylim(shown["rows"] - 0.5, -0.5)
    length = round_length(shown["cols"] * col_mm)
    scale_bar(panels[0], length / col_mm, f"{length:g} mm")
    panels[0].set_title(f"{shown['dataset']}: slice {shown['k'] + 1} of {len(slices)}")
    panels[1].set_title("its masks")
    panels[0].text(
        0.98, 0.03, window, transform=panels[0].transAxes, color="white", fontsize=7, ha="right", va="bottom", path_effects=_rim()
    )
    unit = shown["value_unit"] or ""
    place = 0.97
    for row in sorted(here, key=lambda row: row["label"]):
        text = f"{row['label']}: {row['area_mm2'] / 100:,.1f} cm², mean {row['value_mean']:,.0f} {unit}".rstrip()
        panels[1].text(
            0.03,
            place,
            text,
            transform=panels[1].transAxes,
            color=hue[row["label"]],
            fontsize=7,
            weight="bold",
            va="top",
            path_effects=_rim(),
        )
        place -= 0.06
    _areas(panels[2], slices, labels, hue, shown)


def _rim() -> list[Any]:
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=2.2, foreground="black")]


def _choose(slices: list[dict[str, Any]], labels: list[dict[str, Any]]) -> dict[str, Any]:
    """The slice on which the labels, each against its own largest area, are largest together."""
    largest: dict[str, int] = defaultdict(int)
    for row in labels:
        largest[row["label"]] = max(largest[row["label"]], row["area_px"])
    score: dict[str, float] = defaultdict(float)
    for row in labels:
        score[row["image_id"]] += row["area_px"] / max(1, largest[row["label"]])
    return max(slices, key=lambda row: (score[row["image_id"]], -abs(row["k"] - len(slices) / 2)))


def _windowed(stored: np.ndarray, row: dict[str, Any]) -> tuple[np.ndarray, str]:
    """((rows, cols) in 0..1, the window's text): rescaled, by the file's first window."""
    values = stored.astype(np.float32) * (row["rescale_slope"] or 1.0) + (row["rescale_intercept"] or 0.0)
    if row["window_center"] and row["window_width"]:
        centre, width = row["window_center"][0], row["window_width"][0]
    elif row["is_hu"]:
        centre, width = WINDOW_HU
    else:
        low, high = np.percentile(values, (1, 99))
        centre, width = (low + high) / 2, max(1.0, high - low)
    shown = np.clip((values - centre) / width + 0.5, 0, 1)
    if row["photometric"] == "MONOCHROME1":
        shown = 1 - shown
    return shown, f"window {centre:g} ± {width / 2:g} {row['value_unit'] or ''}".rstrip()


def _areas(axes: Axes, slices: list[dict[str, Any]], labels: list[dict[str, Any]], hue: dict[str, str], shown: dict[str, Any]) -> None:
    """Area over position, against each label's largest; a dot is a slice, at its true place along the normal."""
    from matplotlib import patheffects

    at = {row["image_id"]: row["position_mm"] for row in slices}
    area: dict[tuple[str, str], float] = defaultdict(float)
    for row in labels:
        area[row["label"], row["image_id"]] += row["area_mm2"] / 100
    dark = [patheffects.withStroke(linewidth=3.2, foreground="#3a4652")]
    for label, colour in hue.items():
        largest = max(area[label, row["image_id"]] for row in slices) or 1.0
        x = [at[row["image_id"]] for row in slices]
        y = [100 * area[label, row["image_id"]] / largest for row in slices]
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=4.2,
            markeredgecolor="#3a4652",
            markeredgewidth=0.7,
            label=f"{label} (100 % = {largest:,.1f} cm²)",
            path_effects=dark,
        )
    axes.plot([shown["position_mm"]] * 2, [0, 104], color=PALE, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
    axes.set_title("label area, % of its largest")
    axes.set_xlabel("position along the normal (mm)", fontsize=8)
    axes.tick_params(labelsize=7.5, length=3)
    axes.margins(x=0.04)
    axes.set_ylim(0, 112 + 9 * len(hue))
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.grid(axis="y", color="#e5e9ed", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=7.5, loc="upper left", ncol=1, handlelength=1.6, borderaxespad=0.2)
