"""From masks to rows of ``labels``: who is labelled with what, what is united, who yields where labels overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.keys import Ids
from medspark.labels.raster import Spans, paint
from medspark.pixels.masks import pack, pack_u8
from medspark.pixels.measure import bounding_box, measures
from medspark.tables.rows import Rows
from medspark.tables.work import SourceFile

SOURCE = "annotation"
ROUND = 0
U8_FULL = 255.0  # a stored fraction of 1 (contract.md §4: u8-zstd)
FLUSH_ROWS = 2_000  # rows per yielded Rows: a few MB with packed masks of tiles, some tens with those of large photos


@dataclass(frozen=True)
class Group:
    """What one row says: regions and planes of one image that share these four are united into one row."""

    label: str
    instance_key: str | None
    annotator: str | None
    role: str
    code: str | None = None
    code_scheme: str | None = None
    class_value: str | None = None
    confidence: float | None = None
    excludes: bool = False


@dataclass
class Groups:
    """The groups of one source, numbered by first appearance."""

    groups: list[Group] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    """Place (over all tables) at which each group's label was drawn last."""
    _number: dict[tuple[str, str | None, str | None, str, bool], int] = field(default_factory=dict)
    _seen: int = 0

    def __getitem__(self, number: int) -> Group:
        return self.groups[number]

    def add(self, table: pa.Table) -> np.ndarray:
        """(n,) int64: the group of each row of ``regions`` or ``planes``; new ones are added."""
        count = table.num_rows
        properties = [dict(item or ()) for item in column(table, "properties")] if "properties" in table.column_names else [{}] * count
        names = ("label", "instance_key", "annotator", "role", "code", "code_scheme")
        numbers = np.empty(count, np.int64)
        for place, (row, given) in enumerate(zip(zip(*(column(table, name) for name in names), strict=True), properties, strict=True)):
            excludes = given.get("exclude") == "true"
            key = (*row[:4], excludes)
            number = self._number.get(key)
            if number is None:
                number = self._number[key] = len(self.groups)
                label, instance_key, annotator, role, code, scheme = row
                self.groups.append(
                    Group(
                        label,
                        instance_key,
                        annotator,
                        role,
                        code,
                        scheme,
                        given.get("class_value"),
                        _number(given.get("confidence")),
                        excludes,
                    )
                )
                self.last.append(0)
            numbers[place] = number
            self.last[number] = self._seen + place
        self._seen += count
        return numbers


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def column(table: pa.Table, name: str) -> list[Any]:
    """The column's values; Nones where the table has no such column."""
    return table.column(name).to_pylist() if name in table.column_names else [None] * table.num_rows


@dataclass(frozen=True)
class Piece:
    """A group's mask on one image, as a crop that begins at (row0, col0) and holds the whole of it.

    mask : (rows, cols) bool
    fractions : (rows, cols) uint8 or None      fractions of 255, where the truth is fractional; ``mask`` is those >= threshold
    """

    row0: int
    col0: int
    mask: np.ndarray
    fractions: np.ndarray | None = None
    threshold: float | None = None

    @classmethod
    def of(cls, spans: Spans) -> Piece:
        return cls(*paint(spans))

    @property
    def box(self) -> tuple[slice, slice]:
        return slice(self.row0, self.row0 + self.mask.shape[0]), slice(self.col0, self.col0 + self.mask.shape[1])

    def on(self, rows: int, cols: int) -> np.ndarray:
        """(rows, cols) bool: the mask on the whole image."""
        if self.mask.shape == (rows, cols):
            return self.mask
        whole = np.zeros((rows, cols), bool)
        whole[self.box] = self.mask
        return whole

    def without(self, other: np.ndarray) -> Piece:
        """Less the pixels of ``other``, a (rows, cols) bool mask of the whole image."""
        taken = other[self.box]
        if not taken.any():
            return self
        fractions = None if self.fractions is None else np.where(taken, 0, self.fractions).astype(np.uint8)
        return replace(self, mask=self.mask & ~taken, fractions=fractions)


def unite(pieces: Sequence[Piece], rows: int, cols: int) -> Piece:
    """The union of several masks of one group on one image."""
    if len(pieces) == 1:
        return pieces[0]
    whole = np.zeros((rows, cols), bool)
    for piece in pieces:
        whole[piece.box] |= piece.mask
    fractional = [piece for piece in pieces if piece.fractions is not None]
    if not fractional:
        return Piece(0, 0, whole)
    fractions = np.zeros((rows, cols), np.uint8)
    for piece in pieces:
        drawn = piece.fractions if piece.fractions is not None else np.where(piece.mask, 255, 0)
        np.maximum(fractions[piece.box], drawn, out=fractions[piece.box], casting="unsafe")
    return Piece(0, 0, whole, fractions, fractional[0].threshold)


def settle(pieces: dict[int, Piece], groups: Groups, overlap: str, rows: int, cols: int) -> dict[int, Piece]:
    """Exclusions subtracted, and each pixel given to one label where ``labels.overlap`` says so.

    overlap : "keep": each label its own mask; "first": a pixel stays with the label that was drawn first; "last": with the one drawn last
    Only labels of the role ``positive`` yield to each other; objects of one label never do. A label's place is that of its first
    ("first") or last ("last") shape in the file.
    """
    excluding = [number for number in pieces if groups[number].excludes]
    if excluding:
        excluded = unite([pieces[number] for number in excluding], rows, cols).on(rows, cols)
        pieces = {number: piece.without(excluded) for number, piece in pieces.items() if not groups[number].excludes}
    if overlap == "keep":
        return pieces
    by_label: dict[str, list[int]] = {}
    for number in pieces:
        if groups[number].role == "positive":
            by_label.setdefault(groups[number].label, []).append(number)
    if len(by_label) < 2:
        return pieces
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, group in enumerate(groups.groups):
        if group.label in by_label and group.role == "positive":
            first.setdefault(group.label, number)
            last[group.label] = max(last.get(group.label, 0), groups.last[number])
    order = sorted(by_label, key=lambda label: first[label] if overlap == "first" else -last[label])
    settled, taken = dict(pieces), np.zeros((rows, cols), bool)
    for label in order:
        for number in by_label[label]:
            settled[number] = pieces[number].without(taken)
        for number in by_label[label]:
            taken[settled[number].box] |= settled[number].mask
    return settled


@dataclass
class LabelRows:
    """Collects rows of ``labels`` and hands them out in bounded `Rows`.

    source : the annotation file; None: nobody's (a model drew them)
    origin, round : what ``labels.source`` and ``labels.round`` say
    """

    ids: Ids
    source: SourceFile | None
    now: datetime
    origin: str = SOURCE
    round: int = ROUND
    _records: list[dict[str, Any]] = field(default_factory=list)

    def add(self, group: Group, target: str, target_id: str, owner: Mapping[str, Any], **rest: Any) -> None:
        """One row. ``owner``: dataset, subject_key, parent_id of the target."""
        source_id = self.source.source_id if self.source is not None else None
        identity = (target_id, group.label, group.instance_key, self.origin, group.annotator, self.round, source_id or "", group.role)
        record: dict[str, Any] = {
            "label_row_id": self.ids.label_row(*identity),
            "target": target,
            "target_id": target_id,
            "image_id": target_id if target == "image" else None,
            "parent_id": owner["parent_id"],
            "dataset": owner["dataset"],
            "subject_key": owner["subject_key"],
            "label": group.label,
            "code": group.code,
            "code_scheme": group.code_scheme,
            "instance_key": group.instance_key,
            "role": group.role,
            "source": self.origin,
            "annotator": group.annotator,
            "round": self.round,
            "confidence": group.confidence,
            "class_value": group.class_value,
            "source_id": source_id,
            "created_at": self.now,
        }
        self._records.append({**record, **_NOTHING, **rest})

    def add_mask(
        self,
        group: Group,
        image_id: str,
        owner: Mapping[str, Any],
        piece: Piece,
        size: tuple[int, int],
        counted_px: int,
        pixel_mm2: float | None,
        values: np.ndarray | None,
    ) -> None:
        """One row with a mask.

        size : (rows, cols) of the image; counted_px : the pixels that ``fraction`` is over; pixel_mm2 : area of one, None where unknown
        values : (rows, cols) or (rows, cols, 3) array of the whole image, after rescale
        """
        under = None if values is None else values[piece.box]
        found = measures(piece.mask, under, piece.row0, piece.col0)
        area = found["area_px"]
        if piece.fractions is None:
            codec, mask = "bits-zstd", pack(piece.on(*size))
        else:
            whole = np.zeros(size, np.uint8)
            whole[piece.box] = piece.fractions
            codec, mask = "u8-zstd", pack_u8(whole)
        self.add(
            group,
            "image",
            image_id,
            owner,
            **found,
            rows=size[0],
            cols=size[1],
            mask_codec=codec,
            mask=mask,
            area_mm2=None if pixel_mm2 is None else area * pixel_mm2,
            fraction=area / counted_px if counted_px else None,
            threshold=None if piece.threshold is None else piece.threshold / U8_FULL,
        )

    def take(self, least: int = 1) -> Iterable[Rows]:
        """What was collected, if it is at least so many rows."""
        if len(self._records) >= least:
            yield Rows.of("labels", self._records)
            self._records = []


_NOTHING: dict[str, Any] = {
    **{name: None for name in ("rows", "cols", "mask_codec", "mask", "area_px", "area_mm2", "fraction", "bbox", "centroid_row")},
    **{
        name: None
        for name in ("centroid_col", "n_components", "boundary_px", "value_mean", "value_std", "value_min", "value_max", "threshold")
    },
}


def cropped(mask: np.ndarray, fractions: np.ndarray | None = None, threshold: float | None = None) -> Piece:
    """A `Piece` from a mask of the whole image; fractional ones keep their whole extent, since they may be above 0 outside the mask."""
    if fractions is not None:
        return Piece(0, 0, mask, fractions, threshold)
    box = bounding_box(mask)
    if box is None:
        return Piece(0, 0, mask[:0, :0])
    return Piece(box[0], box[1], mask[box[0] : box[2], box[1] : box[3]].copy())  # a view would keep the whole image's mask
