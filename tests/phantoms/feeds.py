"""Small true feeds with known truth, written without Spark: `rows.SCHEMA` in exact row groups, one hand-made Delta commit, the card.

Bright discs (label ``disc``) and dark squares (label ``square``) on noise, so that a tiny network learns them within seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medspark.feed import rows
from medspark.feed.card import Card, ImageSpec, PartCounts, PartFile
from medspark.feed.write import new_writer
from medspark.keys import rng
from medspark.pixels.codecs import decode_jpeg, encode

Kind = Literal["tiles", "slices", "volumes"]
DEPTH = 4  # slices of a phantom volume
CONTRAST = 60  # of a disc against its ground, in feed values; the noise has a standard deviation of 15
UNKNOWN_EVERY = 5  # every fifth sample's truth is unknown in its upper quarter
ROWS_PER_SUBJECT = 4
DELTA_TYPES = {pa.string(): "string", pa.int32(): "integer", pa.float32(): "float", pa.binary(): "binary"}


@dataclass(frozen=True)
class Sample:
    """What a row of the feed holds, decoded: shapes as in `reader.Batch`, without the batch axis."""

    image: np.ndarray
    masks: np.ndarray | None
    known: np.ndarray | None
    target: np.ndarray
    weight: float


@dataclass(frozen=True)
class Made:
    """A written feed. truth : row_id -> `Sample`; order : part -> row ids in the feed's order"""

    lake: str
    name: str
    card: Card
    truth: Mapping[str, Sample]
    order: Mapping[str, tuple[str, ...]]


def write_feed(
    lake: Path | str,
    name: str = "phantom",
    kind: Kind = "tiles",
    task: Literal["segmentation", "classification"] = "segmentation",
    parts: Mapping[str, int] | None = None,
    labels: Sequence[str] = ("disc",),
    exclusive: bool = False,
    side: int = 48,
    group_rows: int = 8,
    groups_per_file: int = 3,
    unknown: bool = True,
    seed: int = 0,
) -> Made:
    """Writes the feed ``lake/feeds/name`` (version 0) and returns what is in it.

    kind : "tiles" (side, side, 3) uint8 jpeg R G B · "slices" (side, side, 3) int16 blosc2 HU, k-1 k k+1 · "volumes" (4, side, side, 1) int16 blosc2
    parts : rows of each part (train 40, val 12, test 12); the last row group of a part is short where they do not divide
    labels : of "disc", "square", in this order; ``exclusive``: the square gives way to the disc
    """
    parts = dict(parts or {"train": 40, "val": 12, "test": 12})
    folder = Path(lake) / "feeds" / name
    folder.mkdir(parents=True)
    image = _spec(kind, side)
    truth: dict[str, Sample] = {}
    order: dict[str, tuple[str, ...]] = {}
    files: list[PartFile] = []
    counts: dict[str, PartCounts] = {}
    for part, total in parts.items():
        made = [_row(image, task, labels, exclusive, unknown, seed, part, number) for number in range(total)]
        order[part] = tuple(row["row_id"] for row, _ in made)
        truth.update({row["row_id"]: sample for row, sample in made})
        counts[part] = _counts(labels, made)
        table = pa.Table.from_pylist([row for row, _ in made], rows.SCHEMA)
        step = group_rows * groups_per_file
        files += [write_file(folder, part, table.slice(start, step), group_rows) for start in range(0, total, step)]
    train = np.stack([truth[row_id].image for row_id in order["train"]]).astype(np.float64) if order.get("train") else np.zeros(image.shape)
    axes = tuple(range(train.ndim - 1))
    card = Card(
        name=name,
        task=task,
        labels=tuple(labels),
        exclusive=exclusive,
        image=image,
        query="SELECT image_id FROM slices",
        tables={"slices": 0},
        split={"name": "phantom", "seed": seed, "unit": "subject"},
        within_subject=False,
        seed=seed,
        options={},
        recipe={},
        parts=counts,
        mean=tuple(train.mean(axes).tolist()),
        std=tuple(train.std(axes).tolist()),
        files=tuple(files),
    )
    commit(folder, card)
    return Made(str(lake), name, card, truth, order)


def _spec(kind: Kind, side: int) -> ImageSpec:
    tiles = ImageSpec("image", (side, side, 3), "uint8", "jpeg", ("R", "G", "B"), mpp_um=0.5)
    if kind == "tiles":
        return tiles
    slices = ImageSpec("context", (side, side, 3), "int16", "blosc2", ("k-1", "k", "k+1"), "HU", spacing_mm=(0.7, 0.7))
    if kind == "slices":
        return slices
    return replace(slices, kind="volume", shape=(DEPTH, side, side, 1), channels=("value",), spacing_mm=(2.5, 0.7, 0.7))


def _row(
    image: ImageSpec, task: str, labels: Sequence[str], exclusive: bool, unknown: bool, seed: int, part: str, number: int
) -> tuple[dict[str, Any], Sample]:
    random = rng(seed, "phantom feed", part, number)
    side = image.shape[-2]
    row, col = np.mgrid[:side, :side]
    disc_at, square_at = random.integers(side // 4, 3 * side // 4, (2, 2))
    radius = int(random.integers(side // 8, side // 4))
    planes = {
        "disc": (row - disc_at[0]) ** 2 + (col - disc_at[1]) ** 2 < radius**2,
        "square": np.maximum(abs(row - square_at[0]), abs(col - square_at[1])) < side // 10,
    }
    shown = {label: bool(random.random() < (0.5 if task == "classification" else 0.9)) for label in planes}
    planes = {label: plane & shown[label] for label, plane in planes.items()}
    planes["square"] &= ~planes["disc"]
    if exclusive and task == "classification" and planes["disc"].any():
        planes["square"][:] = False
    clean = CONTRAST * (planes["disc"].astype(np.float32) - ("square" in labels) * planes["square"])
    stack = np.broadcast_to(clean[..., None], (*image.shape[:-1], image.shape[-1])) + random.normal(0, 15, image.shape)
    pixels = (stack + 120).clip(0, 255).astype(np.uint8) if image.dtype == "uint8" else (stack + 40).round().astype(np.int16)
    payload = encode(pixels, image.codec)
    if image.codec == "jpeg":
        pixels = decode_jpeg(payload)
    volume = np.stack([np.broadcast_to(planes[label], image.space) for label in labels])
    known = np.ones(image.space, bool)
    if unknown and number % UNKNOWN_EVERY == 0:
        known[..., : side // 4, :] = False
    target = volume.reshape(len(labels), -1).any(axis=1).astype(np.float32)
    segmented = task == "segmentation"
    row_id = hashlib.sha256(f"{seed} {image.kind} {part} {number}".encode()).hexdigest()[:32]
    subject = hashlib.sha256(f"{seed} {part} {number // ROWS_PER_SUBJECT}".encode()).hexdigest()[:32]
    values = {
        "row_id": row_id,
        "image_id": row_id[::-1],
        "parent_id": subject[::-1],
        "dataset": "phantom",
        "subject_key": subject,
        "part": part,
        "row0": 0,
        "col0": 0,
        "k": -1 if image.kind == "image" else number % ROWS_PER_SUBJECT,
        "weight": 1.0 + 0.25 * (number % 2),
        "target": target.tolist(),
        "mask": rows.pack_masks(volume, known) if segmented else b"",
        "image": payload,
    }
    masks = np.moveaxis(volume, 0, -1).astype(np.uint8) if segmented else None
    return values, Sample(pixels, masks, known[..., None].astype(np.uint8) if segmented else None, target, values["weight"])


def _counts(labels: Sequence[str], made: Sequence[tuple[dict[str, Any], Sample]]) -> PartCounts:
    targets = np.array([sample.target for _, sample in made]).reshape(len(made), len(labels))
    px = {label: sum(int(s.masks[..., place].sum()) for _, s in made if s.masks is not None) for place, label in enumerate(labels)}
    return PartCounts(
        rows=len(made),
        images=len(made),
        subjects=len({row["subject_key"] for row, _ in made}),
        positives={label: int((targets[:, place] == 1).sum()) for place, label in enumerate(labels)},
        negatives={label: int((targets[:, place] == 0).sum()) for place, label in enumerate(labels)},
        positive_px=px,
        known_px=sum(int(s.known.sum()) for _, s in made if s.known is not None),
    )


def write_file(folder: Path, part: str, table: pa.Table, group_rows: int) -> PartFile:
    temporary = folder / "writing"
    with new_writer(str(temporary), []) as writer:
        writer.write_table(table, row_group_size=group_rows)
    data = temporary.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    temporary.rename(folder / f"{part}-{digest[:16]}.parquet")
    footer = pq.ParquetFile(folder / f"{part}-{digest[:16]}.parquet").metadata
    groups = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    return PartFile(f"{part}-{digest[:16]}.parquet", part, len(data), digest, groups)


def delta_schema() -> dict[str, Any]:
    """`rows.SCHEMA` as Delta's log writes a schema (Delta protocol, "Schema Serialization Format")."""

    def typed(kind: pa.DataType) -> Any:
        if pa.types.is_list(kind):
            return {"type": "array", "elementType": typed(kind.value_type), "containsNull": kind.value_field.nullable}
        return DELTA_TYPES[kind]

    fields = [{"name": f.name, "type": typed(f.type), "nullable": f.nullable, "metadata": {}} for f in rows.SCHEMA]
    return {"type": "struct", "fields": fields}


def commit(folder: Path, card: Card) -> None:
    """The first version of the table; the time is fixed, so that the same feed has the same bytes."""
    actions: list[dict[str, Any]] = [
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        {
            "metaData": {
                "id": hashlib.sha256(card.name.encode()).hexdigest()[:32],
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps(delta_schema()),
                "partitionColumns": [],
                "configuration": {"medspark.card": card.to_json()},
                "createdTime": 0,
            }
        },
    ]
    for file in card.files:
        statistics = json.dumps({"numRecords": file.rows})
        add = {"path": file.path, "partitionValues": {}, "size": file.bytes, "modificationTime": 0, "dataChange": True, "stats": statistics}
        actions.append({"add": add})
    log = folder / "_delta_log"
    log.mkdir()
    (log / f"{0:020d}.json").write_text("\n".join(json.dumps(action) for action in actions) + "\n")
    (folder / "card.json").write_text(card.to_json())
