"""ASAP's XML (computationalpathologygroup/ASAP): shapes in level-0 px with a group that names their class."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError

from medspark.errors import Rejected
from medspark.labels.regions import UNCLASSIFIED, Context, Geometry, Item, Region, is_box, points, ring

OUTLINES = ("Polygon", "Spline", "Rectangle")
"""ASAP's own mask export fills a spline as the polygon of its stored points; so do we."""
DOTS = ("Dot", "PointSet")
KEPT = (("Annotations", "Annotation"), ("AnnotationGroups", "Group"))
"""Parent, within the root, and element."""
_COMMA_DECIMAL = re.compile(r"(-?\d+),(\d+)$")  # ASAP writes numbers in the locale of the desktop it runs on


def is_asap(path: str) -> bool:
    """Whether the root element is ASAP's, no more read than that; raises as `_elements`."""
    return next(_elements(path), None) is not None


def _elements(path: str) -> Iterator[Element]:
    """The root as it begins, then each annotation and each group as it ends, one at a time: nothing else of the tree is kept.

    Entities and DTDs are refused. Ends at once where the root is not ASAP's. Raises Rejected(LABEL_FORMAT).
    """
    from defusedxml import DefusedXmlException
    from defusedxml import ElementTree as DefusedTree

    open_now: list[Element] = []
    try:
        for event, element in DefusedTree.iterparse(path, events=("start", "end"), forbid_dtd=True):
            if event == "start":
                open_now.append(element)
                if len(open_now) == 1:
                    if element.tag != "ASAP_Annotations":
                        return
                    yield element
                continue
            open_now.pop()
            within = [one.tag for one in open_now[1:3]]
            if len(open_now) == 2 and (within[0], element.tag) in KEPT:
                yield element
            if open_now and tuple(within) not in KEPT:
                open_now[-1].remove(element)
    except DefusedXmlException:
        raise Rejected("LABEL_FORMAT", "the XML declares a DTD or entities") from None
    except (ParseError, ValueError, LookupError, RecursionError):  # LookupError: unknown encoding
        raise Rejected("LABEL_FORMAT", "not well-formed XML") from None


def read(path: str, context: Context) -> Iterator[Item]:
    """One `Region` per shape (and per point of a point set), for each image that the file belongs to.

    Two passes, for the groups stand behind the shapes: a file that breaks off somewhere gives nothing.
    """
    context.check_size(os.path.getsize(path))
    context.watch("xml")
    parents: dict[str, str] | None = None
    for element in _elements(path):
        parents = {} if parents is None else parents
        if element.tag == "Group":
            parents[element.get("Name", "")] = element.get("PartOfGroup", "None")
    if parents is None:
        raise Rejected("LABEL_FORMAT", "the XML is not of ASAP")
    images = context.images()
    context.watch("xml again")
    for place, annotation in enumerate(element for element in _elements(path) if element.tag == "Annotation"):
        try:
            regions = list(_regions(annotation, place, parents, images, context))
        except Rejected as error:
            yield error
        else:
            yield from regions


def _regions(annotation: Element, place: int, parents: dict[str, str], images: tuple[str, ...], context: Context) -> Iterator[Region]:
    shape, group = annotation.get("Type", ""), annotation.get("PartOfGroup", "None")
    if shape not in OUTLINES + DOTS + ("Measurement",):
        raise Rejected("LABEL_FORMAT", "a shape is of a type that ASAP does not write")
    coordinates = sorted(annotation.iterfind("Coordinates/Coordinate"), key=_order)
    pairs = [(_number(item.get("X")), _number(item.get("Y"))) for item in coordinates]
    properties = {"shape": shape}
    excluded = _excluded(group, parents, context.settings.labels.exclude_groups)
    if excluded:
        properties["exclude"] = "true"
    geometry: Geometry
    if shape in OUTLINES:
        outline = ring(pairs)
        geometry, parts = ("box" if shape == "Rectangle" and is_box(outline) else "polygon"), [outline]
    elif shape in DOTS:
        geometry, parts = "point", list(points(pairs)[:, None, :])
    else:
        geometry, parts = "line", [points(pairs)]
    label = UNCLASSIFIED if group in ("None", "") else group
    for image in images:
        for part in parts:
            yield Region(
                image, label, geometry, (part,), "ignore" if excluded else "positive", instance_key=str(place), properties=properties
            )


def _excluded(group: str, parents: dict[str, str], exclude: tuple[str, ...]) -> bool:
    """Whether the group, or one that holds it, is an exclusion group (``labels.exclude_groups``)."""
    seen: set[str] = set()
    while group not in ("None", "") and group not in seen:
        if group in exclude:
            return True
        seen.add(group)
        group = parents.get(group, "None")
    return False


def _order(item: Element) -> float:
    return _number(item.get("Order", "0"))


def _number(text: str | None) -> float:
    try:
        return float(_COMMA_DECIMAL.sub(r"\1.\2", (text or "").strip()))
    except ValueError:
        raise Rejected("LABEL_GEOMETRY", "a coordinate is not a number") from None
