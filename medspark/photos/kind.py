"""Photos as a `Kind`: what the engine calls for ``ingest_photos``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medspark.config import Config
from medspark.errors import BadRequest
from medspark.keys import Ids
from medspark.photos import explode as explode_module
from medspark.photos import header
from medspark.photos import plan as plan_module
from medspark.photos.classes import Classes, read_classes
from medspark.tables.names import MASK_NAMES
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import Plan, SourceFile, Unit, Watch


@dataclass(frozen=True)
class PhotosKind:
    """Final. See `medspark.tables.work.Kind`.

    exclude : file names that are left out (regular expression; empty for none)
    fingerprint : what changes rows besides ``sections``; a part of the ledger's fingerprint of settings
    archives : zip files are read member by member
    """

    classes: Classes = Classes()
    exclude: str = MASK_NAMES
    fingerprint: str = ""
    job: str = "ingest_photos"
    source_kind: str = "photo"
    sections: tuple[str, ...] = ("deid",)
    archives: bool = True

    def __getstate__(self) -> dict[str, Any]:
        """What travels to the tasks: the table of labels stays with the plan, which looks them up."""
        return {**self.__dict__, "classes": dataclasses.replace(self.classes, table={})}

    def scan(self, path: str, uri: str, ids: Ids, settings: Config) -> dict[str, Any]:
        return header.scan(path, uri, settings, self.exclude)

    def plan(self, files: list[SourceFile], ids: Ids, settings: Config) -> Plan:
        return plan_module.plan(files, ids, settings, self.classes)

    def explode(self, unit: Unit, ids: Ids, settings: Config, watch: Watch) -> Iterator[Rows | Rejection]:
        return explode_module.explode(unit, ids, settings, watch, self.classes)


def photos_kind(
    class_from: str = "none",
    class_pattern: str = "",
    labels: str | Path | None = None,
    names: Mapping[Any, tuple[str, str]] | None = None,
    exclude: str = MASK_NAMES,
) -> PhotosKind:
    """The kind for the options of ``ingest_photos``; raises `BadRequest`. ``names``: value of an array's labels -> (label, role)."""
    try:
        re.compile(exclude)
    except re.error as error:
        raise BadRequest(f"--exclude: not a regular expression ({error})") from None
    classes = read_classes(class_from, class_pattern, labels, names)
    plain = not classes.fingerprint and exclude == MASK_NAMES
    return PhotosKind(classes, exclude, "" if plain else repr((classes.fingerprint, exclude)))


PHOTOS = PhotosKind()
"""``ingest_photos`` without options."""
