"""A subject out of feeds: a feed is never laid anew, but it forgets. Row groups stay as they were, less the subject's rows; the card follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.lake import pins
from medspark.lake.files import DataFile, statistics
from medspark.lake.store import Lake


def feeds(lake: Lake) -> list[str]:
    """Feeds that are Delta tables, as paths below the lake."""
    found = lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(pins.FEEDS), allow_not_found=True))
    names = [f"{pins.FEEDS}/{info.base_name}" for info in found if info.type == pafs.FileType.Directory]
    return sorted(name for name in names if lake.exists(name))


def remove(lake: Lake, name: str, subject: str, images: set[str], batch_id: str) -> bool:
    """Removes the subject from a feed, row groups as they were; its card names the new files. Whether it held any."""
    columns = {"subject_key": {subject}, "image_id": images}
    held = {column: pa.array(sorted(values), pa.string()) for column, values in columns.items()}
    new: list[DataFile] = []
    old: list[DataFile] = []
    for action in lake.actions(name):
        with lake.filesystem.open_input_file(action["path"]) as stream:
            file = pq.ParquetFile(stream)
            by = [column for column in held if column in file.schema_arrow.names]
            groups = [kept_rows(file.read_row_group(group, columns=by), held) for group in range(file.num_row_groups)] if by else []
            if all(pc.all(kept).as_py() for kept in groups):
                continue
            old.append(DataFile(action["relative"], action["size_bytes"], action["num_records"] or 0, ""))
            if any(pc.any(kept).as_py() for kept in groups):
                path = f"part-{batch_id}-{len(new):05d}.parquet"
                new.append(copy_file(lake, f"{name}/{path}", path, file, groups))
    if old:
        if lake.snapshot(name).metadata().partition_columns:
            raise RuntimeError(f"{name} is partitioned, which no feed of medspark is; nothing of it was changed")
        lake.transact(name, lambda version: (new, old), metadata=lake.user_metadata(forgotten=True))
    _amend_card(lake, name)  # also where a run was killed between the feed and its card
    return bool(old)


def kept_rows(rows: pa.Table, held: dict[str, pa.Array]) -> pa.ChunkedArray:
    theirs = [pc.is_in(rows.column(column), value_set=held[column]) for column in rows.column_names]
    either = theirs[0]
    for one in theirs[1:]:
        either = pc.or_(either, one)
    return pc.invert(either)


def copy_file(lake: Lake, path: str, relative: str, file: pq.ParquetFile, groups: Sequence[pa.ChunkedArray]) -> DataFile:
    collected: list[pq.FileMetaData] = []
    compression = {
        file.schema.column(column).path: file.metadata.row_group(0).column(column).compression for column in range(len(file.schema))
    }
    with lake.filesystem.open_output_stream(lake.folder(path)) as stream:
        named = {column: "none" if codec == "UNCOMPRESSED" else codec for column, codec in compression.items()}
        with pq.ParquetWriter(stream, file.schema_arrow, compression=named, metadata_collector=collected) as writer:
            for group, kept in enumerate(groups):
                rows = file.read_row_group(group).filter(kept)
                if rows.num_rows:
                    writer.write_table(rows, row_group_size=rows.num_rows)
    size = lake.filesystem.get_file_info(lake.folder(path)).size
    return DataFile(relative, size, collected[0].num_rows, statistics(collected[0], file.schema_arrow.names))


def _amend_card(lake: Lake, name: str) -> None:
    """The card's file list (``files``) follows the feed's current version; that it was amended is said."""
    path = lake.folder(name, pins.CARD)
    if lake.filesystem.get_file_info(path).type != pafs.FileType.File:
        return
    with lake.filesystem.open_input_stream(path) as stream:
        card = json.loads(stream.read())
    live = [action["relative"] for action in lake.actions(name)]
    listed = card.get("files")
    if isinstance(listed, list) and set(listed) != set(live):
        card["files"] = [file for file in listed if file in live] + [file for file in live if file not in listed]
        card["amended"] = "a subject was removed after the feed was built"
        write_card(lake, path, card)


def write_card(lake: Lake, path: str, said: dict[str, Any]) -> None:
    with lake.filesystem.open_output_stream(f"{path}.tmp") as stream:
        stream.write(json.dumps(said, sort_keys=True).encode())
    lake.filesystem.move(f"{path}.tmp", path)
