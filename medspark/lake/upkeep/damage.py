"""The list of damaged payload files, from `verify` to the ingest job that mends them: ``<lake>/_medspark/damage/<run>.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pyarrow import fs as pafs

from medspark.lake.files import PRIVATE
from medspark.lake.store import Lake

FOLDER = f"{PRIVATE}/damage"


@dataclass(frozen=True)
class Lost:
    """Damaged files that are exchanged together, and the images to make again.

    paths : relative to ``pixels``; one file, or all of a batch that no longer tell which images they held
    job, settings : the ledger's key under which the batch came: the same job under the same settings makes the same images
    images : image_id -> source_ids of the files that it can be made from
    """

    paths: tuple[str, ...]
    job: str
    settings: str
    images: Mapping[str, list[str]]

    @property
    def sources(self) -> set[str]:
        return {source for sources in self.images.values() for source in sources}


@dataclass
class Damaged:
    """What is damaged and current. ``records`` : the files that say so."""

    lost: list[Lost] = field(default_factory=list)
    records: list[str] = field(default_factory=list)

    def sources(self, job: str, settings: str) -> set[str]:
        """The sources that a job under its settings can mend from."""
        return {source for one in self.lost if (one.job, one.settings) == (job, settings) for source in one.sources}


def write(lake: Lake, run_id: str, lost: Iterable[Lost]) -> None:
    """Keeps the list for the ingest jobs that will mend it; what it says of a file replaces what an earlier one said."""
    new, before = list(lost), load(lake)
    again = {path for one in new for path in one.paths}
    kept = [one for one in before.lost if not again & set(one.paths)]
    lake.filesystem.create_dir(lake.folder(FOLDER), recursive=True)
    name = lake.folder(FOLDER, f"{run_id}.json")
    with lake.filesystem.open_output_stream(f"{name}.tmp") as stream:
        stream.write(json.dumps([dataclasses.asdict(one) for one in [*kept, *new]]).encode())
    lake.filesystem.move(f"{name}.tmp", name)
    for record in before.records:
        if record != name:
            lake.filesystem.delete_file(record)


def load(lake: Lake) -> Damaged:
    """What is damaged and still current: files that were exchanged meanwhile are no longer listed."""
    found = Damaged()
    for info in lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(FOLDER), allow_not_found=True)):
        if info.base_name.endswith(".json"):
            with lake.filesystem.open_input_stream(info.path) as stream:
                found.lost += [Lost(**{**one, "paths": tuple(one["paths"])}) for one in json.loads(stream.read())]
            found.records.append(info.path)
    if found.lost:
        live = {action["relative"] for action in lake.actions("pixels")}
        found.lost = [one for one in found.lost if set(one.paths) <= live]
    return found


def clear(lake: Lake) -> None:
    """Removes the records once none of their files is current."""
    found = load(lake)
    if found.records and not found.lost:
        lake.filesystem_delete(lake.folder(FOLDER))
