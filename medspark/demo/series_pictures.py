"""CT slices as stored, with window, scale and masks, and the labels' areas along each series."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from medspark.scores.pictures import PALE
from medspark.demo.drawing import DPI, colours, masked, merged, outline, rim, round_length, scale_bar, tint
from medspark.lake.open import WINDOW_HU
from medspark.series import display

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medspark.lake.open import OpenLake

MAX_SERIES = 2
SLICE = [
    *("image_id", "series_id", "dataset", "k", "position_mm", "rows", "cols", "pixel_spacing_mm", "rescale_slope", "rescale_intercept"),
    *("modality_lut", "value_unit", "is_hu", "window_center", "window_width", "voi_lut_function", "photometric", "value_min", "value_max"),
]


def labelled_series(lake: OpenLake) -> Figure | None:
    """One row for each of the series with most labelled slices: slice, slice with masks, area of each label along the series."""
    from matplotlib import pyplot as plt

    slices = [row for row in lake.rows("slices", SLICE).to_pylist() if row["position_mm"] is not None]
    by_series: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in slices:
        by_series[row["series_id"]].append(row)
    labelled = {series: merged(masked(lake, parent_id=series)) for series in by_series}
    chosen = sorted((series for series in by_series if labelled[series]), key=lambda series: (-len(labelled[series]), series))[:MAX_SERIES]
    if not chosen:
        return None
    figure, axes = plt.subplots(
        len(chosen), 3, figsize=(9.6, 3.45 * len(chosen) + 0.1), dpi=DPI, squeeze=False, gridspec_kw={"width_ratios": (1, 1, 1.02)}
    )
    for panels, series in zip(axes, chosen, strict=True):
        _row(lake, panels, sorted(by_series[series], key=lambda row: row["position_mm"]), labelled[series])
    figure.subplots_adjust(
        left=0.01, right=0.985, top=1 - 0.32 / figure.get_figheight(), bottom=0.47 / figure.get_figheight(), wspace=0.06, hspace=0.24
    )
    for panels in axes:  # room for the third panel's numbers
        box = panels[2].get_position()
        panels[2].set_position((box.x0 + 0.055, box.y0, box.width - 0.055, box.height))
    return figure


def _row(lake: OpenLake, panels: Any, slices: list[dict[str, Any]], drawn: list[dict[str, Any]]) -> None:
    hue = colours([row["label"] for row in drawn])
    shown = _choose(slices, drawn)
    window = _window(shown)
    grey = display.picture(lake.image(shown["image_id"]), shown, window)
    row_mm, col_mm = shown["pixel_spacing_mm"] or (1.0, 1.0)
    here = [row for row in drawn if row["image_id"] == shown["image_id"]]
    for axes in panels[:2]:
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, aspect=row_mm / col_mm, interpolation="antialiased")
        axes.set_xticks([])
        axes.set_yticks([])
    for row in sorted(here, key=lambda row: row["label"]):
        tint(panels[1], row["mask"], hue[row["label"]], alpha=0.28)
        outline(panels[1], row["mask"], hue[row["label"]], width=1.1)
    for axes in panels[:2]:
        axes.set_xlim(-0.5, shown["cols"] - 0.5)
        axes.set_ylim(shown["rows"] - 0.5, -0.5)
    length = round_length(shown["cols"] * col_mm)
    scale_bar(panels[0], length / col_mm, f"{length:g} mm")
    panels[0].set_title(f"{shown['dataset']}: slice {shown['k'] + 1} of {len(slices)}")
    panels[1].set_title("its masks")
    text = f"window {window[0]:g} ± {window[1] / 2:g} {shown['value_unit'] or ''}".rstrip()
    panels[0].text(1, -0.02, text, transform=panels[0].transAxes, color=PALE, fontsize=7.5, ha="right", va="top")
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
            path_effects=rim(2.2),
        )
        place -= 0.06
    _areas(panels[2], slices, drawn, hue, shown)


def _choose(slices: list[dict[str, Any]], labels: list[dict[str, Any]]) -> dict[str, Any]:
    """The slice on which the labels, each against its own largest area, are largest together."""
    largest: dict[str, int] = defaultdict(int)
    for row in labels:
        largest[row["label"]] = max(largest[row["label"]], row["area_px"])
    score: dict[str, float] = defaultdict(float)
    for row in labels:
        score[row["image_id"]] += row["area_px"] / max(1, largest[row["label"]])
    return max(slices, key=lambda row: (score[row["image_id"]], -abs(row["k"] - len(slices) / 2)))


def _window(row: dict[str, Any]) -> tuple[float, float]:
    """(centre, width) to show a slice in: the file's first window, else soft tissue for HU, else all of its values."""
    if row["window_center"] and row["window_width"] and row["window_width"][0] >= 1:
        return row["window_center"][0], row["window_width"][0]
    return WINDOW_HU if row["is_hu"] else ((row["value_min"] + row["value_max"]) / 2, max(1.0, row["value_max"] - row["value_min"]))


def _areas(axes: Axes, slices: list[dict[str, Any]], labels: list[dict[str, Any]], hue: dict[str, str], shown: dict[str, Any]) -> None:
    """Area over position, against each label's largest; a dot is a slice, at its true place along the normal."""
    at = {row["image_id"]: row["position_mm"] for row in slices}
    area: dict[tuple[str, str], float] = defaultdict(float)
    for row in labels:
        area[row["label"], row["image_id"]] += row["area_mm2"] / 100
    dark = rim(3.2, "#3a4652")
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
