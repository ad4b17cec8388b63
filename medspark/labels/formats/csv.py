"""Tables of labels: CSV with the header ``image,label[,value][,x,y[,width,height]][,annotator][,role]``.

Semicolons and tabs separate as well: spreadsheets of half of Europe write ``;`` and then a decimal comma. A row with a place becomes a box or a point; one without is a label of the whole image: a `Region` without rings.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator

import numpy as np

from medspark.errors import Rejected
from medspark.labels.codebook import ROLES
from medspark.labels.pairs import image_ref
from medspark.labels.regions import Context, Geometry, Item, Region, box, points

COLUMNS = ("image", "label", "value", "x", "y", "width", "height", "annotator", "role")
SEPARATORS = (",", ";", "\t")
MAX_HEADER_CHARS = 1 << 16
MAX_VALUE_LENGTH = 64
"""A class value is a number or a word, not a report."""


def is_label_table(header: str) -> bool:
    """Whether the first line of a file names the columns ``image`` and ``label``."""
    return separator(header) is not None


def separator(header: str) -> str | None:
    """What stands between the columns ``image`` and ``label`` of a first line; None where it names them by no separator that we know."""
    for found in SEPARATORS:
        if {"image", "label"} <= {name.strip().strip('"').lower() for name in header.lstrip("\ufeff").split(found)}:
            return found
    return None


def read(path: str, context: Context) -> Iterator[Item]:
    context.check_size(os.path.getsize(path))
    context.watch("csv")
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            between = separator(stream.readline(MAX_HEADER_CHARS)) or ","
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=between)
            names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            if not {"image", "label"} <= set(names) or len(set(names)) != len(names):
                raise Rejected("LABEL_FORMAT", "the CSV header lacks image and label, or names a column twice")
            reader.fieldnames = names
            for number, row in enumerate(reader, start=1):
                try:
                    region = _region({name: (row.get(name) or "").strip() for name in COLUMNS}, number, between, context)
                except Rejected as error:
                    yield error
                else:
                    yield region
    except (UnicodeDecodeError, csv.Error):
        raise Rejected("LABEL_FORMAT", "not a CSV file in UTF-8") from None


def _region(row: dict[str, str], number: int, between: str, context: Context) -> Region:
    if not row["image"] or not row["label"]:
        raise Rejected("LABEL_FORMAT", "a row has no image or no label")
    role = row["role"] or "positive"
    if role not in ROLES:
        raise Rejected("LABEL_FORMAT", f"a row's role is none of {', '.join(ROLES)}")
    if len(row["value"]) > MAX_VALUE_LENGTH:
        raise Rejected("LABEL_FORMAT", f"a row's value is longer than {MAX_VALUE_LENGTH} characters")
    try:
        texts = (row[name] if between == "," else row[name].replace(",", ".") for name in ("x", "y", "width", "height"))
        place = [float(text) for text in texts if text]
    except ValueError:
        raise Rejected("LABEL_GEOMETRY", "a coordinate is not a number") from None
    geometry: Geometry = "box"
    rings: tuple[np.ndarray, ...] = ()
    given = tuple(bool(row[name]) for name in ("x", "y", "width", "height"))
    if given == (True,) * 4:
        rings = (box(*place),)
    elif given == (True, True, False, False):
        geometry, rings = "point", (points([place]),)
    elif any(given):
        raise Rejected("LABEL_GEOMETRY", "a row gives only a part of x, y, width and height")
    return Region(
        *(image_ref(context.ids, row["image"]), row["label"], geometry, rings, role),  # type: ignore[arg-type]
        instance_key=str(number) if rings else None,  # two boxes of one label are two objects
        annotator=context.ids.annotator(row["annotator"]) if row["annotator"] else None,
        properties={"class_value": row["value"]} if row["value"] else {},
    )
