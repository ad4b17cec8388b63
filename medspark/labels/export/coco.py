"""COCO JSON with compressed run lengths (pycocotools): an image per image of the lake, an annotation per row of ``labels``.

``file_name`` is the image_id, which ``import_labels`` understands and which names the PNG of the same export. Ids that COCO wants as numbers
are given when the parts of many tasks are joined (`join`), in a pass that holds one image at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from medspark import __version__
from medspark.labels.export.rows import Mask

ROLES = ("positive", "ignore")
"""What COCO has a word for: ``iscrowd`` stands for ``ignore``, as on import."""
_PLACE = (
    "series_id",
    "slide_id",
    "grid_id",
    "k",
    "t",
    "tile_row",
    "tile_col",
    "x_l0",
    "y_l0",
    "width_l0",
    "height_l0",
    "mpp_um",
    "dataset",
)
"""Where an image lies, beside COCO's own fields of an image."""


def entries(masks: Iterable[Mask], categories: Mapping[str, int]) -> Iterator[str]:
    """A line of JSON per image: its ``image`` and its ``annotations``, without numbers of their own.

    masks : those of one image follow each other
    categories : label -> category id
    """
    image: dict[str, Any] | None = None
    annotations: list[dict[str, Any]] = []
    for mask in masks:
        if image is None or image["medspark"]["image_id"] != mask.image_id:
            if image is not None:
                yield json.dumps({"image": image, "annotations": annotations})
            place = {name: mask.image[name] for name in _PLACE if mask.image.get(name) is not None}
            said = {"image_id": mask.image_id, **place}
            image, annotations = {"file_name": mask.image_id, "width": mask.cols, "height": mask.rows, "medspark": said}, []
        annotations.append(_annotation(mask, categories[mask.label]))
    if image is not None:
        yield json.dumps({"image": image, "annotations": annotations})


def _annotation(mask: Mask, category: int) -> dict[str, Any]:
    import numpy as np
    from pycocotools import mask as runs

    coded = runs.encode(np.asfortranarray(mask.inside(), np.uint8))
    said: dict[str, Any] = {
        "category_id": category,
        "segmentation": {"size": [int(side) for side in coded["size"]], "counts": coded["counts"].decode("ascii")},
        "area": int(runs.area(coded)),
        "bbox": [float(side) for side in runs.toBbox(coded)],
        "iscrowd": int(mask.role == "ignore"),
    }
    reader = mask.reader
    own = {
        "label_row_id": mask.label_row_id,
        "instance_key": mask.instance_key,
        "source": reader.source,
        "annotator": reader.annotator or None,
    }
    said["medspark"] = {name: value for name, value in own.items() if value is not None}
    if mask.confidence is not None:
        said["score"] = mask.confidence
    return said


def category_list(labels: Sequence[tuple[str, str | None, str | None]]) -> list[dict[str, Any]]:
    """``categories`` of (label, code, code_scheme), numbered from 1 in their order."""
    listed = []
    for number, (label, code, scheme) in enumerate(labels, start=1):
        coded = {"medspark": {"code": code, "code_scheme": scheme}} if code else {}
        listed.append({"id": number, "name": label, "supercategory": "", **coded})
    return listed


def join(stream: IO[bytes], spill: IO[bytes], lines: Iterable[bytes], categories: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Writes the whole document from the lines of `entries`; returns (images, annotations). Holds one line at a time.

    spill : a temporary file for the annotations, which stand after all images
    """
    head = {"info": {"description": "labels of a medspark lake", "version": __version__}, "licenses": [], "categories": list(categories)}
    stream.write(json.dumps(head).encode()[:-1] + b', "images": [')
    n_images = n_annotations = 0
    for line in lines:
        entry = json.loads(line)
        n_images += 1
        stream.write((b",\n" if n_images > 1 else b"\n") + json.dumps({"id": n_images, **entry["image"]}).encode())
        for annotation in entry["annotations"]:
            n_annotations += 1
            text = json.dumps({"id": n_annotations, "image_id": n_images, **annotation})
            spill.write((b",\n" if n_annotations > 1 else b"\n") + text.encode())
    stream.write(b'\n], "annotations": [')
    spill.seek(0)
    while block := spill.read(1 << 20):
        stream.write(block)
    stream.write(b"\n]}\n")
    return n_images, n_annotations
