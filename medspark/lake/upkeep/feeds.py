"""A subject out of feeds: a feed is never laid anew, but it forgets. Row groups stay as they were, less the subject's rows; the card follows."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.lake import pins
from medspark.lake.files import DataFile, OpenFile
from medspark.lake.store import Lake
from medspark.pixels import masks

CARD = "medspark.card"
"""Property of a feed's table: the card that belongs to the version."""
AMENDED = "a subject was removed after the feed was built; mean and std are those of the feed as it was built"


def feeds(lake: Lake) -> list[str]:
    """Feeds that are Delta tables, as paths below the lake."""
    found = lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(pins.FEEDS), allow_not_found=True))
    names = [f"{pins.FEEDS}/{info.base_name}" for info in found if info.type == pafs.FileType.Directory]
    return sorted(name for name in names if lake.exists(name))


def checksums(lake: Lake, name: str) -> dict[str, str]:
    """file -> sha256, as the card in the table's properties lists them; none where the table has no card."""
    text = lake.snapshot(name).metadata().configuration.get(CARD)
    return {} if text is None else {file["path"]: file["sha256"] for file in json.loads(text)["files"]}


def remove(lake: Lake, name: str, subject: str, images: set[str], ids: set[str], batch_id: str) -> bool:
    """Removes the subject from a feed, row groups as they were; its card follows in the same commit. Whether it held any.

    ids : of its series, slides and so on, which the query of a feed may name, also of one that left the subject out
    """
    columns = {"subject_key": {subject}, "image_id": images}
    held = {column: pa.array(sorted(values), pa.string()) for column, values in columns.items()}
    new: list[DataFile] = []
    old: list[DataFile] = []
    instead: dict[str, DataFile | None] = {}
    for action in lake.actions(name):
        with lake.filesystem.open_input_file(action["path"]) as stream:
            file = pq.ParquetFile(stream)
            by = [column for column in held if column in file.schema_arrow.names]
            groups = [kept_rows(file.read_row_group(group, columns=by), held) for group in range(file.num_row_groups)] if by else []
            if all(pc.all(kept).as_py() for kept in groups):
                continue
            old.append(DataFile(action["relative"], action["size_bytes"], action["num_records"] or 0, ""))
            instead[action["relative"]] = None
            if any(pc.any(kept).as_py() for kept in groups):
                path = f"part-{batch_id}-{len(new):05d}.parquet"
                new.append(copy_file(lake, f"{name}/{path}", path, file, groups))
                instead[action["relative"]] = new[-1]
    card = read_card(lake, name)
    forgotten = {subject, *images, *ids}
    query = "" if card is None else card.get("query", "")
    named = any(word in query for word in forgotten)
    if old or named:
        if lake.snapshot(name).metadata().partition_columns:
            raise RuntimeError(f"{name} is partitioned, which no feed of medspark is; nothing of it was changed")
        said = {} if card is None else {CARD: dumped(amended(lake, name, card, instead, forgotten))}
        lake.transact(name, lambda version: (new, old), metadata=lake.user_metadata(forgotten=True), properties=said)
    text = lake.snapshot(name).metadata().configuration.get(CARD)
    if text is not None and card is not None and dumped(card) != text:  # also where a run was killed between the feed and its card
        write_card(lake, lake.folder(name, pins.CARD), json.loads(text))
    return bool(old)


def read_card(lake: Lake, name: str) -> dict[str, Any] | None:
    """The card beside the files; None where there is none."""
    path = lake.folder(name, pins.CARD)
    if lake.filesystem.get_file_info(path).type != pafs.FileType.File:
        return None
    with lake.filesystem.open_input_stream(path) as stream:
        found: dict[str, Any] = json.loads(stream.read())
    return found


def amended(
    lake: Lake, name: str, card: dict[str, Any], instead: Mapping[str, DataFile | None], forgotten: Collection[str]
) -> dict[str, Any]:
    """The card of a feed of which files were replaced: its files and what its parts hold. What was measured over all of them stays.

    instead : path of a file that goes -> the one in its place, None where no row was left
    forgotten : keys and ids that may not stand in it
    """
    files = []
    for file in card["files"]:
        if file["path"] not in instead:
            files.append(file)
        elif (copy := instead[file["path"]]) is not None:
            with lake.filesystem.open_input_stream(lake.folder(name, copy.path)) as stream:
                data = stream.read()
            metadata = pq.read_metadata(pa.BufferReader(data))
            groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            digest = hashlib.sha256(data).hexdigest()
            files.append({**file, "path": copy.path, "bytes": copy.size, "sha256": digest, "row_groups": groups})
    doubles = [[image for image in group if image not in forgotten] for group in card.get("doubles", ())]
    query = card.get("query", "")
    for word in forgotten:
        query = query.replace(word, "(removed)")
    return {
        **card,
        "files": files,
        "parts": {part: _counts(lake, name, card, [file for file in files if file["part"] == part]) for part in card["parts"]},
        "doubles": [group for group in doubles if len(group) > 1],
        "query": query,
        "amended": AMENDED,
    }


def _counts(lake: Lake, name: str, card: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`medspark.feed.card.PartCounts` of a part, from its rows; payload columns but the masks are not read."""
    labels, px = card["labels"], math.prod(card["image"]["shape"][:-1])
    rows, images, subjects = 0, set[str](), set[str]()
    positives, negatives = dict.fromkeys(labels, 0), dict.fromkeys(labels, 0)
    pixels = np.zeros(len(labels) + 1, np.int64)
    for entry in files:
        with lake.filesystem.open_input_file(lake.folder(name, entry["path"])) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                read = file.read_row_group(group, columns=["image_id", "subject_key", "target", "mask"])
                rows += read.num_rows
                images.update(read.column("image_id").to_pylist())
                subjects.update(read.column("subject_key").to_pylist())
                for target in read.column("target").to_pylist():
                    for label, value in zip(labels, target, strict=True):
                        positives[label] += value == 1
                        negatives[label] += value == 0
                for mask in read.column("mask").to_pylist():
                    if mask:
                        pixels += masks.count_planes(mask, len(labels) + 1, px)
    positive_px = dict(zip(labels, pixels[:-1].tolist(), strict=True)) if card["task"] == "segmentation" else {}
    return {
        "rows": rows,
        "images": len(images),
        "subjects": len(subjects),
        "positives": positives,
        "negatives": negatives,
        "positive_px": positive_px,
        "known_px": int(pixels[-1]),
    }


def kept_rows(rows: pa.Table, held: dict[str, pa.Array]) -> pa.ChunkedArray:
    theirs = [pc.is_in(rows.column(column), value_set=held[column]) for column in rows.column_names]
    either = theirs[0]
    for one in theirs[1:]:
        either = pc.or_(either, one)
    return pc.invert(either)


def copy_file(lake: Lake, path: str, relative: str, file: pq.ParquetFile, groups: Sequence[pa.ChunkedArray]) -> DataFile:
    compression = {
        file.schema.column(column).path: file.metadata.row_group(0).column(column).compression for column in range(len(file.schema))
    }
    named = {column: "none" if codec == "UNCOMPRESSED" else codec for column, codec in compression.items()}
    schema = file.schema_arrow
    with OpenFile(lake.filesystem, lake.folder(path), relative, schema, schema.names, compression=named) as copy:
        for group, kept in enumerate(groups):
            rows = file.read_row_group(group).filter(kept)
            if rows.num_rows:
                copy.write(rows)
        return copy.close()


def unpinned(lake: Lake, name: str) -> None:
    """No version of a table that the feed was made from is there any more: its card says so, beside it and in its properties."""
    card = read_card(lake, name)
    if card is None:
        return
    said = {**card, "built_from": {**card.get("built_from", {}), **card.get("tables", {})}, "tables": {}}
    if lake.exists(name) and CARD in lake.snapshot(name).metadata().configuration:
        lake.transact(name, [], metadata=lake.user_metadata(unpinned=True), properties={CARD: dumped(said)})
    write_card(lake, lake.folder(name, pins.CARD), said)


def dumped(said: Mapping[str, Any]) -> str:
    """As `medspark.feed.card.Card.to_json` writes it."""
    return json.dumps(said, sort_keys=True, allow_nan=False)


def write_card(lake: Lake, path: str, said: dict[str, Any]) -> None:
    with lake.filesystem.open_output_stream(f"{path}.tmp") as stream:
        stream.write(dumped(said).encode())
    lake.filesystem.move(f"{path}.tmp", path)
