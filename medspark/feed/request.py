"""What ``build_feed`` was asked for: options parsed once, refused in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medspark.errors import BadRequest
from medspark.feed.truth import BACKGROUND
from medspark.tables.names import plain_name
from medspark.tables.options import read_csv

TRUTH_SOURCES = ("annotation", "reader", "consensus")
"""Rows of ``labels`` that count as truth unless --label-sources says otherwise: what models and generators said does not."""
RUNS = 16  # input groups that an output group draws from: 48 MB of encoded pixels in a task
MOST_CONTEXT = 16  # slices on either side
PARENTS = ("series", "slide")  # whose labels images may inherit


@dataclass(frozen=True)
class Request:
    """The options, typed. ``crop``, ``stride``, ``size``: (rows, cols); ``volume``: (slices, rows, cols); ``window``: (centre, width), raw or auto.

    inherit : targets of ``labels`` (series, slide) whose labels their images share
    """

    name: str
    query: str
    split: str = ""
    task: Literal["segmentation", "classification"] = "segmentation"
    labels: tuple[str, ...] = ()
    classes: Mapping[str, str] = field(default_factory=dict)
    exclusive: Literal["auto", "yes", "no"] = "auto"
    unlabelled: Literal["skip", "negative"] = "skip"
    label_sources: tuple[str, ...] = TRUTH_SOURCES
    label_where: str = ""
    inherit: tuple[str, ...] = ()
    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    spacing_mm: tuple[float, float] | None = None
    context: int = 0
    volume: tuple[int, int, int] | None = None
    window: tuple[float, float] | Literal["raw", "auto"] = "auto"
    negatives_per_positive: float | None = None
    thinned: tuple[str, ...] = ("train",)
    weights: Literal["none", "balanced"] = "none"
    seed: int = 0
    world: int = 1
    runs: int = RUNS
    part_by: str = "part"
    within_subject: bool = False

    def check(self) -> None:
        """Raises `BadRequest`; needs no session."""
        if not plain_name(self.name):
            raise BadRequest(f"--name {self.name!r}: letters, digits, '.', '_' and '-', at most 100")
        if not self.query.strip():
            raise BadRequest("--query: expected SQL that returns image_id")
        if self.split and not plain_name(self.split):
            raise BadRequest(f"--split {self.split!r}: no name of a split")
        if self.volume and (self.crop or self.context or self.size or self.spacing_mm):
            raise BadRequest("--volume says the whole size: neither --crop, --context, --size nor --spacing-mm goes with it")
        if self.size and self.spacing_mm:
            raise BadRequest("--size and --spacing-mm both say how images are resampled; give one of them")
        if self.stride and not self.crop:
            raise BadRequest("--stride moves a crop: give --crop, too")
        for option, value in (("--crop", self.crop), ("--stride", self.stride), ("--size", self.size), ("--volume", self.volume)):
            if value is not None and min(value) < 1:
                raise BadRequest(f"{option}: sides are 1 px or more")
        if self.spacing_mm and min(self.spacing_mm) <= 0:
            raise BadRequest("--spacing-mm: expected numbers above 0")
        if not 0 <= self.context <= MOST_CONTEXT:
            raise BadRequest(f"--context {self.context}: expected 0 to {MOST_CONTEXT} slices on either side")
        if isinstance(self.window, tuple) and self.window[1] <= 0:
            raise BadRequest("--window: the width must be above 0")
        if self.negatives_per_positive is not None and self.negatives_per_positive < 0:
            raise BadRequest("--negatives-per-positive: expected 0 or more")
        if self.world < 1 or self.runs < 1:
            raise BadRequest("--world and --runs: expected 1 or more")
        for option, names in (("--label-sources", self.label_sources), ("--thin", self.thinned)):
            if not names or not all(map(plain_name, names)):
                raise BadRequest(f"{option} {','.join(names)}: expected names, separated by commas")
        if unknown := sorted(set(self.inherit) - set(PARENTS)):
            raise BadRequest(f"--inherit {unknown[0]}: expected {' or '.join(PARENTS)}, or both")
        if self.inherit and self.task != "classification":
            raise BadRequest("--inherit belongs to --task classification: a label of a whole series or slide says nothing of a pixel")
        if BACKGROUND in self.labels or len(set(self.labels)) != len(self.labels):
            raise BadRequest("--labels: expected different names, none of them empty")
        if self.exclusive == "yes" and self.labels and len(self.labels) < 2:
            raise BadRequest("--exclusive yes: one label excludes no other")

    def options(self) -> dict[str, Any]:
        """All that shapes the rows, as plain JSON values, for the card."""
        plain = {
            name: getattr(self, name)
            for name in (
                "crop stride size spacing_mm context volume window classes exclusive unlabelled label_sources label_where inherit "
                "negatives_per_positive thinned weights part_by"
            ).split()
        }
        said = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
        return {**said, "labels": list(self.labels), "classes": dict(self.classes)}


def parse_sides(option: str, text: str, count: int) -> tuple[int, ...]:
    """``256`` or ``256x320`` (``count`` 2), ``32x64x64`` (3): whole numbers; raises `BadRequest`."""
    pieces = re.fullmatch(r"\d+(x\d+)*", text.strip().lower())
    sides = tuple(int(piece) for piece in text.lower().split("x")) if pieces else ()
    if count == 2 and len(sides) == 1:
        sides = sides * 2
    if len(sides) != count:
        raise BadRequest(f"{option} {text}: expected {'PX or ROWSxCOLS' if count == 2 else 'SLICESxROWSxCOLS'}")
    return sides


def parse_spacing(text: str) -> tuple[float, float]:
    """``0.5`` or ``0.5x0.75`` mm (row, col)."""
    try:
        values = [float(piece) for piece in text.lower().split("x")]
    except ValueError:
        values = []
    if len(values) not in (1, 2):
        raise BadRequest(f"--spacing-mm {text}: expected a number or ROWxCOL")
    return (values[0], values[-1])


def parse_window(text: str) -> tuple[float, float] | Literal["raw", "auto"]:
    """``40,400``, ``raw`` or ``auto``."""
    if text == "raw":
        return "raw"
    if text == "auto":
        return "auto"
    try:
        centre, width = (float(piece) for piece in text.split(","))
    except ValueError:
        raise BadRequest(f"--window {text}: expected CENTRE,WIDTH, raw or auto") from None
    return centre, width


def parse_classes(text: str, file: str | Path | None) -> dict[str, str]:
    """label -> class from ``--class-map old=new,...`` and ``--classes FILE`` (CSV ``label,class``); an empty class is background."""
    found: dict[str, str] = {}
    if file is not None:
        columns, rows = read_csv("--classes", file)
        if not {"label", "class"} <= set(columns):
            raise BadRequest(f"--classes {file}: expected the columns label,class, got {','.join(columns)}")
        found.update({(row["label"] or "").strip(): (row["class"] or "").strip() for row in rows})
    for entry in filter(None, (piece.strip() for piece in text.split(","))):
        label, equals, name = (piece.strip() for piece in entry.partition("="))
        if not equals or not label:
            raise BadRequest(f"--class-map {text}: expected label=class,... (label= for background), got {entry!r}")
        found[label] = name
    return found


def words(text: str) -> tuple[str, ...]:
    """``a, b`` as ("a", "b"); empty for an empty text."""
    return tuple(word for word in (piece.strip() for piece in text.split(",")) if word)
