"""Versions that somebody still reads: a vacuum keeps their files.

A pin says of some tables which version it needs. Feeds pin by their card (``<lake>/feeds/<name>/card.json``, key ``tables``: table ->
version); runs pin by a small file of their own, ``<lake>/_medspark/pins/<name>.json``, for as long as they need it. Delta itself has no such
thing: a vacuum by time removes what a frozen feed was made from, and a shallow clone protects nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.lake.files import PRIVATE
from medspark.lake.store import Lake

FOLDER = f"{PRIVATE}/pins"
FEEDS = "feeds"
CARD = "card.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Pin:
    """``name`` : ``feed:<name>`` or the name it was pinned under.  ``tables`` : table -> version.  ``said`` : what its owner wrote besides."""

    name: str
    tables: Mapping[str, int]
    said: Mapping[str, str]


def pin(lake: Lake, name: str, tables: Mapping[str, int], **said: str) -> None:
    """Pins versions of tables under a name (a run's id, a study); the same name again replaces it. ``said`` : ``run``, ``model`` ..."""
    _check(name)
    for table, version in tables.items():
        if not lake.exists(table):
            raise BadRequest(f"pin {name}: the lake has no table {table}")
        lake.snapshot(table, version)
    text = json.dumps({"tables": {table: int(version) for table, version in tables.items()}, "said": said}, sort_keys=True)
    lake.filesystem.create_dir(lake.folder(FOLDER), recursive=True)
    draft = lake.folder(FOLDER, f".{name}.tmp")
    with lake.filesystem.open_output_stream(draft) as stream:
        stream.write(text.encode())
    lake.filesystem.move(draft, lake.folder(FOLDER, f"{name}.json"))


def unpin(lake: Lake, name: str) -> bool:
    """Takes a pin away; False where there was none."""
    _check(name)
    path = lake.folder(FOLDER, f"{name}.json")
    if lake.filesystem.get_file_info(path).type == pafs.FileType.NotFound:
        return False
    lake.filesystem.delete_file(path)
    return True


def pins(lake: Lake) -> list[Pin]:
    """Every pin of the lake, of feeds and of runs."""
    found = []
    for info in sorted(_listed(lake, FOLDER), key=lambda info: info.path):
        if info.base_name.endswith(".json") and not info.base_name.startswith("."):
            said = _read(lake, info.path)
            found.append(Pin(info.base_name.removesuffix(".json"), _versions(info.path, said), dict(said.get("said") or {})))
    for name, path in cards(lake).items():
        found.append(Pin(f"feed:{name}", _versions(path, _read(lake, path)), {}))
    return found


def cards(lake: Lake) -> dict[str, str]:
    """Feed -> path of its card."""
    found = {}
    for info in sorted(_listed(lake, FEEDS), key=lambda info: info.path):
        card = f"{info.path}/{CARD}"
        if info.type == pafs.FileType.Directory and lake.filesystem.get_file_info(card).type == pafs.FileType.File:
            found[info.base_name] = card
    return found


def _listed(lake: Lake, folder: str) -> list[pafs.FileInfo]:
    return lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(folder), allow_not_found=True))


def _read(lake: Lake, path: str) -> dict[str, object]:
    with lake.filesystem.open_input_stream(path) as stream:
        try:
            said = json.loads(stream.read())
        except ValueError:
            raise BadRequest(f"{path}: not valid JSON; a pin that cannot be read might protect anything: repair or remove it") from None
    if not isinstance(said, dict):
        raise BadRequest(f"{path}: expected a JSON object; repair or remove it")
    return said


def _versions(path: str, said: Mapping[str, object]) -> dict[str, int]:
    tables = said.get("tables", {})
    if not isinstance(tables, dict) or not all(isinstance(version, int) for version in tables.values()):
        raise BadRequest(f"{path}: expected 'tables' to map tables to versions; repair or remove it")
    return {str(table): int(version) for table, version in tables.items()}


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadRequest(f"pin {name!r}: a name is letters, digits, '.', '_' and '-', at most 200")
