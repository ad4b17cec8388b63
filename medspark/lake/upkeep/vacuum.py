"""Removes files that no version in use, no pin and no open batch needs. By inventory: what is on the disk against what the logs name.

Delta's own VACUUM knows no pins; its USING INVENTORY takes a list and silently removes nothing where a path is written another way. Here the
list is made and the files are removed by the same code, on any file system, and both are counted.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.lake.batch import open_batches
from medspark.lake.files import PRIVATE
from medspark.lake.pins import FOLDER as PINS
from medspark.lake.pins import pins
from medspark.lake.store import Lake
from medspark.tables.catalog import TABLES

SAFE_HOURS = 24.0  # longer than any task, commit or query: below it a vacuum wants the lake to itself
FRESH_S = 600.0  # a file that no commit knows is left alone this long whatever was asked: some writers (a run's kpi row) hold no claim
AT_ONCE = 16  # deletions under way; object stores answer slowly
KEPT = ("lake.json", PINS.rpartition("/")[2], "damage", "forget", "runs")
"""Names in the private folder that are no batch's."""


@dataclass(frozen=True)
class Gone:
    """A file to remove: ``table`` (or the private folder), ``path`` on the lake's file system, ``known``: a commit once named it."""

    table: str
    path: str
    size: int
    known: bool


def inventory(lake: Lake, hours: float, keep_pins: bool = True, fresh_s: float = FRESH_S, now_s: float | None = None) -> Iterator[Gone]:
    """Every data file that may go.

    Kept are the files of the current versions and of pinned ones, files that stopped being current less than ``hours`` ago (readers may
    still be at them), files that no commit knows and that are younger than ``hours`` (or ``fresh_s``), and whatever an open batch has written.
    """
    now = time.time() if now_s is None else now_s
    held = pins(lake) if keep_pins else []
    for table in TABLES:
        if not lake.exists(table):
            continue
        on_disk = list(files_of(lake, table))  # before the log is read: a file that is committed in between is current then
        live_batches = set(open_batches(lake))
        removed = tombstones(lake, table)
        live = {unquote(action["relative"]) for action in lake.actions(table)}
        for pin in held:
            if table in pin.tables:
                live |= _pinned(lake, table, pin.name, pin.tables[table])
        for relative, info in on_disk:
            if relative in live or of_batch(relative) in live_batches:
                continue
            known = relative in removed
            since = removed[relative] if known else _modified(info)
            if now - since >= (hours * 3600 if known else max(hours * 3600, fresh_s)):
                yield Gone(table, info.path, info.size, known)


def _pinned(lake: Lake, table: str, name: str, version: int) -> set[str]:
    try:
        return {unquote(action["relative"]) for action in lake.actions(table, version)}
    except BadRequest:
        raise
    except Exception as error:  # deltalake's errors share no base class
        raise BadRequest(
            f"pin {name} names version {version} of {table}, which the log no longer tells ({str(error).splitlines()[0][:120]}); unpin it first"
        ) from None


def of_batch(relative: str) -> str:
    """The batch in the name of a data file (``part-<batch>-...``, ``claim-<batch>-...``); empty where there is none."""
    pieces = relative.rsplit("/", 1)[-1].split("-")
    return pieces[1].removesuffix(".parquet") if len(pieces) > 1 else ""


def files_of(lake: Lake, table: str) -> Iterator[tuple[str, pafs.FileInfo]]:
    """(path relative to the table, info) of every file in a table's folder that is none of its log's."""
    folder = lake.folder(table)
    for info in lake.filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=True)):
        relative = info.path[len(folder) :].lstrip("/")
        if info.type == pafs.FileType.File and not relative.startswith("_") and not info.base_name.startswith("."):
            yield relative, info


def not_current(lake: Lake, table: str) -> Iterator[Gone]:
    """Parquet files of a Delta table that its current version does not name (of a feed, whose folder holds a card besides)."""
    live = {unquote(action["relative"]) for action in lake.actions(table)}
    for relative, info in files_of(lake, table):
        if relative.endswith(".parquet") and relative not in live:
            yield Gone(table, info.path, info.size, True)


def tombstones(lake: Lake, table: str) -> dict[str, float]:
    """relative path -> when it stopped being current (seconds since the epoch), of every removal that the log still tells."""
    found: dict[str, float] = {}

    def note(entry: dict[str, Any] | None) -> None:
        if entry:
            path = unquote(entry["path"])
            found[path] = max(found.get(path, 0.0), (entry.get("deletionTimestamp") or 0) / 1000)

    for info in lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(table, "_delta_log"), allow_not_found=True)):
        if info.base_name.endswith(".json"):
            with lake.filesystem.open_input_stream(info.path) as stream:
                for line in stream.read().decode().splitlines():
                    if '"remove"' in line:
                        note(json.loads(line).get("remove"))
        elif ".checkpoint." in info.base_name and info.base_name.endswith(".parquet"):
            with lake.filesystem.open_input_file(info.path) as stream:
                file = pq.ParquetFile(stream)
                if "remove" in file.schema_arrow.names:
                    for batch in file.iter_batches(columns=["remove.path", "remove.deletionTimestamp"]):
                        for row in batch.to_pylist():
                            note(row["remove"])
    return found


def stale_folders(lake: Lake, hours: float, fresh_s: float = FRESH_S, now_s: float | None = None) -> Iterator[pafs.FileInfo]:
    """Stages and journals of batches that are no longer open, and of scans that ended without clearing up."""
    now = time.time() if now_s is None else now_s
    listed = lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(PRIVATE), allow_not_found=True))
    live = set(open_batches(lake))
    for info in listed:
        if info.type != pafs.FileType.Directory or info.base_name in KEPT or info.base_name in live:
            continue
        inside = lake.filesystem.get_file_info(pafs.FileSelector(info.path, allow_not_found=True, recursive=True))
        if now - max(map(_modified, [info, *inside])) >= max(hours * 3600, fresh_s):
            yield info


def _modified(info: pafs.FileInfo) -> float:
    return (info.mtime_ns or 0) / 1e9


def remove(lake: Lake, files: Iterable[Gone], folders: Iterable[pafs.FileInfo]) -> dict[str, Any]:
    """Removes them: {"files": n, "bytes": n, "unknown": files that no commit knew, "folders": n, "tables": {table: files}}."""
    listed = list(files)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(lambda gone: _delete(lake, gone.path), listed):
            pass
    cleared = 0
    for info in folders:
        lake.filesystem_delete(info.path)
        cleared += 1
    return {**count(listed), "folders": cleared}


def count(files: Collection[Gone]) -> dict[str, Any]:
    tables: dict[str, int] = {}
    for gone in files:
        tables[gone.table] = tables.get(gone.table, 0) + 1
    return {
        "files": len(files),
        "bytes": sum(gone.size for gone in files),
        "unknown": sum(not gone.known for gone in files),
        "tables": tables,
    }


def _delete(lake: Lake, path: str) -> None:
    folder, _, name = path.rpartition("/")
    for one in (path, f"{folder}/.{name}.crc"):  # the JVM's local file system writes a checksum beside each of its files
        with contextlib.suppress(FileNotFoundError):  # another vacuum was faster, or there was none
            lake.filesystem.delete_file(one)
