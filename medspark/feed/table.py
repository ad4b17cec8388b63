"""A feed as a Delta table: its schema, and the one commit that holds files and card."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from pyarrow import fs as pafs

from medspark.feed.card import Card
from medspark.feed.rows import SCHEMA
from medspark.lake import pins
from medspark.lake.files import DataFile
from medspark.lake.store import Lake
from medspark.lake.upkeep.feeds import CARD
from medspark.tables.schema import Column, Table

_SPARK = {pa.string(): "string", pa.int32(): "int", pa.float32(): "float", pa.binary(): "binary"}
TABLE = Table(
    "feed",
    "A feed: frozen samples in exact row groups; its card is in the property medspark.card.",
    ("row_id",),
    tuple(Column(column.name, _SPARK.get(column.type, "array<float>"), "see medspark.feed.rows") for column in SCHEMA),
)


def commit(lake: Lake, card: Card, files: Sequence[DataFile], run_id: str) -> tuple[int, bool]:
    """(version, whether it is new): the files and the card as one Delta version that replaces what was there.

    The property ``medspark.card`` belongs to the version; ``card.json`` beside the files follows it. The same feed again changes nothing.
    """
    table = f"{pins.FEEDS}/{card.name}"
    text = card.to_json()
    there = lake.snapshot(table)
    if there is not None and there.metadata().configuration.get(CARD) == text:
        put_card(lake, table, text)
        return int(there.version()), False

    def build(version: int) -> tuple[list[DataFile], list[DataFile]]:
        old = {action["relative"]: action for action in lake.actions(table, version)}
        new = {file.path for file in files}
        gone = [DataFile(path, action["size_bytes"], action["num_records"] or 0, "") for path, action in old.items() if path not in new]
        return [file for file in files if file.path not in old], gone

    version = lake.transact(table, build, metadata=lake.user_metadata(run=run_id, feed=card.name), reads=True, properties={CARD: text})
    assert version is not None, "the card is new, so there is something to commit"
    put_card(lake, table, text)
    return version, True


def put_card(lake: Lake, table: str, text: str) -> None:
    """``card.json``, whole or not at all."""
    path = lake.folder(table, pins.CARD)
    if lake.filesystem.get_file_info(path).type == pafs.FileType.File:
        with lake.filesystem.open_input_stream(path) as stream:
            if stream.read().decode() == text:
                return
    with lake.filesystem.open_output_stream(f"{path}.tmp") as stream:
        stream.write(text.encode())
    lake.filesystem.move(f"{path}.tmp", path)
