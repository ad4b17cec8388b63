"""Curves and tables of scores as PNG bytes: ROC and precision-recall, reliability, confusion, per-image values by subject."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medspark.scores.calibration import Reliability
from medspark.scores.ranking import Ranked, auc, average_precision, precision_recall_curve, roc_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2b6cb0", "#d97706", "#1f9d55", "#b83280", "#6b46c1", "#c53030", "#0e7490", "#8d6e63")
"""Of labels, in their order: told apart on white, with colour-blind eyes too; dashes from the ninth on."""
INK, PALE, GRID = "#1d2733", "#6b7785", "#e2e6ea"
PLAIN: Any = {
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
"""The look of all figures; the demo's, too."""
STYLE: Any = {**PLAIN, "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "legend.frameon": False}
DPI = 110
MOST_POINTS = 2000  # of a drawn curve: more cannot be seen, and a curve of millions of images would not fit a file
MOST_NAMED = 16  # classes whose names and numbers fit into a confusion matrix


def roc_and_pr(curves: Mapping[str, tuple[Ranked, float]], title: str, within_subject: bool = False) -> bytes:
    """ROC and precision-recall curves of each label, with the point of its threshold.

    curves : label -> (its ranked probabilities, its threshold); labels with one class only have none and are named
    """
    with _Figure(2, title, within_subject) as drawn:
        left, right = drawn.axes
        left.plot([0, 1], [0, 1], color=PALE, lw=0.8, ls=":")
        missing = []
        for place, (label, (ranked, threshold)) in enumerate(curves.items()):
            area, precise = auc(ranked), average_precision(ranked)
            if area is None or precise is None:
                missing.append(label)
                continue
            look: Any = {"color": COLOURS[place % len(COLOURS)], "lw": 1.6, "ls": "-" if place < len(COLOURS) else "--"}
            right_rate, up_rate = roc_curve(ranked)
            recall, precision = precision_recall_curve(ranked)
            left.plot(*_thinned(right_rate, up_rate), label=f"{label}  AUC {area:.3f}", **look)
            right.plot(*_thinned(recall, precision), label=f"{label}  AP {precise:.3f}", **look)
            at = int(np.searchsorted(-ranked.cuts, -threshold, side="right"))  # cuts that reach the threshold
            left.plot(right_rate[at], up_rate[at], "o", color=look["color"], ms=6, mec="white")
            if at:
                right.plot(recall[at - 1], precision[at - 1], "o", color=look["color"], ms=6, mec="white")
        left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC (dot: the threshold)")
        right.set(xlabel="recall", ylabel="precision", title="Precision and recall")
        for axes in (left, right):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        if len(missing) < len(curves):
            left.legend(loc="lower right")
            right.legend(loc="lower left")
        if missing:
            left.set_xlabel("1 - specificity\n(no curve, one class only: " + ", ".join(missing) + ")")
    return drawn.png


def reliability_diagram(bins: Mapping[str, Reliability], title: str, within_subject: bool = False) -> bytes:
    """How often each label is true against how probable it was said, and how many samples stand behind each point."""
    with _Figure(2, title, within_subject) as drawn:
        left, right = drawn.axes
        left.plot([0, 1], [0, 1], color=PALE, lw=0.8, ls=":")
        for place, (label, one) in enumerate(bins.items()):
            there = one.n > 0
            colour = COLOURS[place % len(COLOURS)]
            said = f"{label}  ECE {one.ece:.3f}, Brier {one.brier:.3f}" if there.any() else f"{label}  no samples"
            left.plot(one.said[there] / one.n[there], one.true[there] / one.n[there], "o-", color=colour, ms=4, lw=1.4, label=said)
            edges = np.linspace(0, 1, len(one.n) + 1)
            right.stairs(one.n, edges, color=colour, lw=1.4)
        left.set(
            xlabel="probability said", ylabel="how often true", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", title="Reliability"
        )
        left.legend(loc="upper left", fontsize=8)
        right.set(xlabel="probability said", ylabel="samples", yscale="log", xlim=(-0.02, 1.02), title="How many samples")
    return drawn.png


def confusion_picture(matrix: np.ndarray, labels: Sequence[str], title: str, within_subject: bool = False) -> bytes:
    """The confusion matrix: colour is the share of the true class, the number the count. Row = truth, column = prediction."""
    share = np.divide(matrix, matrix.sum(1, keepdims=True), out=np.zeros_like(matrix, float), where=matrix.sum(1, keepdims=True) > 0)
    with _Figure(1, title, within_subject) as drawn:
        (axes,) = drawn.axes
        axes.grid(False)
        shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        if len(labels) <= MOST_NAMED:
            slanted: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if max(map(len, labels)) > 11 else {}
            axes.set_xticks(range(len(labels)), labels, **slanted)
            axes.set_yticks(range(len(labels)), labels)
            for row in range(len(labels)):
                for col in range(len(labels)):
                    ink = "white" if share[row, col] > 0.5 else INK
                    axes.text(col, row, f"{matrix[row, col]:.0f}\n{share[row, col]:.0%}", ha="center", va="center", color=ink, fontsize=8)
        axes.set(xlabel="predicted", ylabel="true")
        drawn.figure.colorbar(shown, ax=axes, label="share of the true class", shrink=0.8)
    return drawn.png


def values_by_subject(values: Mapping[str, Sequence[float]], metric: str, title: str, within_subject: bool = False) -> bytes:
    """One dot per value, one column per label (or subject): how a measure spreads. Columns are shown in the order given."""
    with _Figure(1, title, within_subject) as drawn:
        (axes,) = drawn.axes
        for place, (_, column) in enumerate(values.items()):
            found = np.sort(np.asarray(column, float))
            across = place + (np.arange(len(found)) % 7 - 3) * 0.05
            axes.plot(across, found, "o", color=COLOURS[place % len(COLOURS)], ms=4, alpha=0.6, mec="none")
            if len(found):
                axes.plot([place - 0.3, place + 0.3], [np.mean(found)] * 2, color=INK, lw=1.4)
        axes.set_xticks(range(len(values)), [f"{name}\n(n={len(column)})" for name, column in values.items()])
        axes.set(ylabel=metric, title="Each dot one image or series; the line their mean")
    return drawn.png


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= MOST_POINTS:
        return x, y
    place = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int))
    return x[place], y[place]


class _Figure:
    """A titled figure of ``columns`` axes in the style of all score pictures; ``png`` holds its bytes afterwards."""

    figure: Figure
    axes: list[Axes]
    png: bytes

    def __init__(self, columns: int, title: str, within_subject: bool) -> None:
        self.columns, self.title, self.within_subject = columns, title, within_subject

    def __enter__(self) -> _Figure:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        self._style: Any = rc_context(STYLE)
        self._style.__enter__()
        self.figure = Figure(figsize=(4.9 * self.columns + 0.4, 4.9), layout="constrained", dpi=DPI)
        self.axes = [self.figure.add_subplot(1, self.columns, place + 1) for place in range(self.columns)]
        mark = "\nWITHIN-SUBJECT: training and test share subjects" if self.within_subject else ""
        self.figure.suptitle(self.title + mark, fontsize=11, color="#c53030" if mark else INK)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                out = io.BytesIO()
                self.figure.savefig(out, format="png")
                self.png = out.getvalue()
        finally:
            self._style.__exit__(*error)
