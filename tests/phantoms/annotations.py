"""Annotation files with known truth, written by the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def asap_xml(shapes: list[tuple[str, str, list[tuple[Any, Any]]]], groups: dict[str, str] | None = None) -> str:
    """ASAP XML of (type, group, points); ``groups``: name -> group that holds it."""
    body = "".join(
        f'<Annotation Name="A{place}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        + "".join(f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>' for order, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for place, (kind, group, points) in enumerate(shapes)
    )
    held = "".join(f'<Group Name="{name}" PartOfGroup="{parent}"/>' for name, parent in (groups or {}).items())
    return f"<ASAP_Annotations><Annotations>{body}</Annotations><AnnotationGroups>{held}</AnnotationGroups></ASAP_Annotations>"


def feature(kind: str, coordinates: Any, label: str | None = None, **more: Any) -> dict[str, Any]:
    """A QuPath feature whose author typed a name into it."""
    properties: dict[str, Any] = {"objectType": "annotation", "name": "Dr. Jane Doe"}
    if label is not None:
        properties["classification"] = {"name": label}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties, **more}


def write_json(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def label_image(rows: int = 90, cols: int = 70, values: tuple[int, ...] = (1, 2, 3)) -> np.ndarray:
    """(rows, cols) uint8: one rectangle per value on 0."""
    array = np.zeros((rows, cols), np.uint8)
    for place, value in enumerate(values):
        top, left = 3 + place * rows // (len(values) + 1), 5 + place * cols // (len(values) + 2)
        array[top : top + rows // 4, left : left + cols // 3] = value
    return array
