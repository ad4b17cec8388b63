"""What a feed says of itself. JSON beside its files (``card.json``) and in its table's properties; the same inputs give the same card, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from medspark.errors import BadRequest

CARD_VERSION = 1


@dataclass(frozen=True)
class ImageSpec:
    """A sample's image as it lies in the feed.

    shape : (rows, cols, channels), or (slices, rows, cols, channels) for volumes
    channels : what they are: R G B, value, or k-1 k k+1 (context slices)
    window : (centre, width) in ``value_unit`` that was mapped to 0..255; None: values as they are
    spacing_mm : (row, col) or (slice, row, col) where all samples share it; mpp_um: of tiles
    """

    kind: Literal["image", "context", "volume"]
    shape: tuple[int, ...]
    dtype: Literal["uint8", "int16", "float32"]
    codec: str
    channels: tuple[str, ...]
    value_unit: str = ""
    window: tuple[float, float] | None = None
    spacing_mm: tuple[float, ...] | None = None
    mpp_um: float | None = None

    @property
    def space(self) -> tuple[int, ...]:
        return self.shape[:-1]


@dataclass(frozen=True)
class PartFile:
    """A file of the feed. row_groups : rows of each, in order."""

    path: str
    part: str
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True)
class PartCounts:
    """What a part holds. positive_px : pixels of the label; known_px : pixels whose truth is known (of all of them)."""

    rows: int
    images: int
    subjects: int
    positives: Mapping[str, int] = field(default_factory=dict)  # label -> samples that show it
    negatives: Mapping[str, int] = field(default_factory=dict)  # label -> samples that are known not to
    positive_px: Mapping[str, int] = field(default_factory=dict)
    known_px: int = 0


@dataclass(frozen=True)
class Card:
    """The whole of what is known about a feed but its Delta version (which is the commit that holds it).

    options : everything that shapes the rows (crop, stride, class map, negatives per positive, ...), as given
    recipe : what turns stored pixels into feed values, for `sample.Recipe`; travels with the model
    mean, std : per channel, over the train part's feed values
    doubles : images of equal ``pixel_hash`` under different subjects or parts
    built_from : versions that ``tables`` named and that are gone: a subject was forgotten
    runs : input groups that each output group draws from
    """

    name: str
    task: Literal["segmentation", "classification"]
    labels: tuple[str, ...]
    exclusive: bool  # one label per pixel or image at most: softmax; else each for itself
    image: ImageSpec
    query: str
    tables: Mapping[str, int]
    split: Mapping[str, Any]
    within_subject: bool
    seed: int
    options: Mapping[str, Any]
    recipe: Mapping[str, Any]
    parts: Mapping[str, PartCounts]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: tuple[PartFile, ...]
    runs: int = 1
    world: int = 1
    doubles: tuple[tuple[str, ...], ...] = ()
    amended: str = ""
    built_from: Mapping[str, int] = field(default_factory=dict)
    medspark: str = ""
    card: int = CARD_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    def files_of(self, part: str) -> tuple[PartFile, ...]:
        """Raises `BadRequest` for a part that the feed does not have."""
        if part not in self.parts:
            raise BadRequest(f"feed {self.name} has no part {part}; it has {', '.join(sorted(self.parts))}")
        return tuple(file for file in self.files if file.part == part)


def parse(text: str) -> Card:
    """Inverse of `Card.to_json`; raises `BadRequest` for a card of a newer release."""
    said = json.loads(text)
    if said.get("card", 0) > CARD_VERSION:
        raise BadRequest(f"feed {said.get('name')}: its card has version {said['card']}, this medspark reads up to {CARD_VERSION}")
    image = said["image"]
    tuples = {name: tuple(image[name]) if image[name] is not None else None for name in ("shape", "channels", "window", "spacing_mm")}
    return Card(
        **{
            **said,
            "labels": tuple(said["labels"]),
            "image": ImageSpec(**{**image, **tuples}),
            "parts": {name: PartCounts(**counts) for name, counts in said["parts"].items()},
            "mean": tuple(said["mean"]),
            "std": tuple(said["std"]),
            "files": tuple(PartFile(**{**file, "row_groups": tuple(file["row_groups"])}) for file in said["files"]),
            "doubles": tuple(tuple(group) for group in said["doubles"]),
        }
    )
