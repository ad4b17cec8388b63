"""Drawings of a comparison page as SVG text: curves and intervals. Pure; no library, so that a page of twenty runs stays small."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0b6fb8", "#d1495b", "#2e933c", "#8e5ea2", "#e08e45", "#3aa6a0", "#7a5230", "#55606e", "#b0a01e", "#c2489c")
"""Told apart also by people with red-green blindness up to the sixth; further runs begin again, dashed."""
WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 10, 30  # room for the axes' words
TICKS = 4
MOST_POINTS = 400  # of a curve: more than the drawing has pixels; further ones are averaged
ROW_PX = 22  # of one interval


@dataclass(frozen=True)
class Curve:
    """points : (step, value), by step;  place : of the run on the page, which gives its colour"""

    name: str
    points: Sequence[tuple[float, float]]
    place: int


@dataclass(frozen=True)
class Interval:
    """low, high : None where no interval was computed"""

    name: str
    value: float
    low: float | None
    high: float | None
    place: int


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def dashes(place: int) -> str:
    return ' stroke-dasharray="5 3"' if place >= len(COLOURS) else ""


def curves(title: str, drawn: Sequence[Curve], x_name: str) -> str:
    """One drawing of all runs' curves of one metric; values that are no numbers leave gaps out."""
    kept = [Curve(curve.name, thinned([p for p in curve.points if math.isfinite(p[1])]), curve.place) for curve in drawn]
    kept = [curve for curve in kept if curve.points]
    if not kept:
        return ""
    xs = [x for curve in kept for x, _ in curve.points]
    ys = [y for curve in kept for _, y in curve.points]
    x_axis, y_axis = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_of = _scale(x_axis, LEFT, WIDTH - RIGHT)
    y_of = _scale(y_axis, HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in y_axis:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(value):.1f}" y2="{y_of(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y_of(value) + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in x_axis:
        if min(xs) <= value <= max(xs):
            parts.append(f'<text x="{x_of(value):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 3}" text-anchor="middle" class="axis">{escape(x_name)}</text>')
    for curve in kept:
        line = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in curve.points)
        said = f"<title>{escape(curve.name)}: {number(curve.points[-1][1])}</title>"
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour(curve.place)}" stroke-width="1.8"{dashes(curve.place)}>{said}</polyline>'
        )
        if len(curve.points) <= 30:
            parts += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.2" fill="{colour(curve.place)}"/>' for x, y in curve.points]
    return "".join([*parts, "</svg>"])


def intervals(drawn: Sequence[Interval]) -> str:
    """One row for each run: its value as a dot, its interval as a bar."""
    ends = [end for one in drawn for end in (one.value, one.low, one.high) if end is not None and math.isfinite(end)]
    if not ends:
        return ""
    axis = ticks(min(ends), max(ends))
    height = TOP + ROW_PX * len(drawn) + BOTTOM
    x_of = _scale(axis, LEFT, WIDTH - RIGHT)
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img">']
    for value in axis:
        parts.append(f'<line class="grid" x1="{x_of(value):.1f}" x2="{x_of(value):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text x="{x_of(value):.1f}" y="{height - BOTTOM + 14}" text-anchor="middle">{number(value)}</text>')
    for row, one in enumerate(drawn):
        y = TOP + ROW_PX * (row + 0.5)
        if not math.isfinite(one.value):
            continue
        if one.low is not None and one.high is not None:
            parts.append(
                f'<line x1="{x_of(one.low):.1f}" x2="{x_of(one.high):.1f}" y1="{y}" y2="{y}" stroke="{colour(one.place)}" stroke-width="3" opacity="0.45"/>'
            )
        parts.append(
            f'<circle cx="{x_of(one.value):.1f}" cy="{y}" r="4.5" fill="{colour(one.place)}"><title>{escape(one.name)}</title></circle>'
        )
    return "".join([*parts, "</svg>"])


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points: means of equal runs of points."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def ticks(low: float, high: float) -> list[float]:
    """Round values from at or below ``low`` to at or above ``high``, about `TICKS` steps."""
    if high - low < 1e-12 * max(1.0, abs(low)):  # one value: an axis needs two
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def _scale(axis: Sequence[float], start: float, stop: float) -> Callable[[float], float]:
    low, high = axis[0], axis[-1]
    return lambda value: start + (value - low) / (high - low) * (stop - start)
