"""COCO JSON: polygons, run lengths (plain and compressed), boxes; px of the image, (0, 0) the corner of the first pixel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from medspark.errors import Rejected
from medspark.labels.formats.json_items import outline, parts
from medspark.labels.pairs import image_ref
from medspark.labels.regions import Context, Item, MaskPlane, Region, box, ring


def is_coco(document: Any) -> bool:
    return isinstance(document, dict) and all(isinstance(document.get(key), list) for key in ("images", "annotations", "categories"))


def read(path: str, context: Context) -> Iterator[Item]:
    """One `Region` per polygon or box, one `MaskPlane` per run-length mask; instance_key = annotation id; ``iscrowd`` -> role ignore.

    Two passes, for images and categories may stand behind the annotations, which are read one by one.
    """
    document = outline(path, context, "annotations").rest
    if not is_coco(document):
        raise Rejected("LABEL_FORMAT", "the JSON is not COCO: it lacks images, annotations or categories")
    try:
        images = {item["id"]: item for item in document["images"]}
        labels = {item["id"]: str(item["name"]).strip() for item in document["categories"]}
    except (KeyError, TypeError):
        raise Rejected("LABEL_FORMAT", "an image or a category of the COCO file has no id or name") from None
    for annotation in (value for is_item, value in parts(path, context, "annotations") if is_item):
        try:
            items = list(_items(annotation, images, labels, context))
        except Rejected as error:
            yield error
        except (TypeError, KeyError, ValueError, OverflowError):  # unhashable ids, lists for numbers
            yield Rejected("LABEL_FORMAT", "an annotation of the COCO file is not of the form that COCO defines")
        else:
            yield from items


def _items(annotation: Any, images: dict[Any, Any], labels: dict[Any, str], context: Context) -> Iterator[Region | MaskPlane]:
    image, label = images.get(annotation["image_id"]), labels.get(annotation["category_id"])
    if image is None or not label:
        raise Rejected("LABEL_FORMAT", "an annotation belongs to an image or a category that is not listed")
    if not str(image.get("file_name") or "").strip():
        raise Rejected("LABEL_FORMAT", "an image of the COCO file has no file_name")
    ref, key = image_ref(context.ids, str(image["file_name"])), str(annotation["id"])
    role: Any = "ignore" if annotation.get("iscrowd") else "positive"
    shape = annotation.get("segmentation")
    if isinstance(shape, list) and shape:
        if not isinstance(shape[0], list):
            shape = [shape]
        for place, flat in enumerate(shape):
            if len(flat) % 2:
                raise Rejected("LABEL_GEOMETRY", "a polygon has an odd number of coordinates")
            outline = ring(np.array(flat, np.float64).reshape(-1, 2))
            properties = {"part": str(place)} if len(shape) > 1 else {}
            yield Region(ref, label, "polygon", (outline,), role, instance_key=key, properties=properties)
    elif isinstance(shape, dict):
        rows, cols = (int(side) for side in shape["size"])
        context.check_pixels(rows, cols)
        said = (int(image.get("height") or rows), int(image.get("width") or cols))
        if said != (rows, cols):
            raise Rejected("LABEL_SIZE", "a run-length mask is of another size than its image")
        mask = decode_runs(shape["counts"], rows, cols)
        yield MaskPlane.of_bits(mask, ref, label, role=role, instance_key=key, row0=0, col0=0, ref_rows=rows, ref_cols=cols)
    else:
        x, y, width, height = (float(value) for value in annotation["bbox"])
        yield Region(ref, label, "box", (box(x, y, width, height),), role, instance_key=key)


def decode_runs(counts: Any, rows: int, cols: int) -> np.ndarray:
    """(rows, cols) bool from COCO run lengths: alternating runs of 0 and 1 down the columns; text is COCO's own 6-bit code."""
    runs = np.array(_unpack_text(counts) if isinstance(counts, (str, bytes)) else counts, np.int64)
    if runs.ndim != 1 or (runs < 0).any() or int(runs.sum()) != rows * cols:
        raise Rejected("LABEL_SIZE", "a run-length mask does not fill its size")
    values = np.zeros(len(runs), bool)
    values[1::2] = True
    return np.repeat(values, runs).reshape(cols, rows).T


def _unpack_text(text: str | bytes) -> list[int]:
    """Run lengths from cocoapi's compressed string (maskApi.c, rleFrString): 5 bits a character, signed, from the third a difference to two back."""
    data = text.encode("ascii") if isinstance(text, str) else text
    runs: list[int] = []
    place = 0
    while place < len(data):
        value, shift, more = 0, 0, True
        while more:
            if place >= len(data) or not 48 <= data[place] < 48 + 64 or shift > 60:
                raise Rejected("LABEL_FORMAT", "a run-length string is broken")
            letter = data[place] - 48
            value |= (letter & 0x1F) << shift
            more, place, shift = bool(letter & 0x20), place + 1, shift + 5
            if not more and letter & 0x10:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
