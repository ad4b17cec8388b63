"""Whole-slide images as a `Kind`: what the engine calls for ``tile_slides``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medspark.config import Config
from medspark.errors import BadRequest
from medspark.keys import Ids
from medspark.slides import explode as explode_module
from medspark.slides import header, plan
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import Plan, SourceFile, Unit, Watch

DICOM_NAMES = (".dcm", ".dicom")
"""Besides those without an extension, or with nothing but digits behind their last dot (an instance's UID)."""


@dataclass(frozen=True)
class SlidesKind:
    """Final. See `medspark.tables.work.Kind`.

    tissue : file or folder of tissue masks (``--tissue``), None to find tissue
    fingerprint : what changes rows besides ``sections``; a part of the ledger's fingerprint of settings
    """

    tissue: str | None = None
    fingerprint: str = ""
    job: str = "tile_slides"
    source_kind: str = "slide"
    sections: tuple[str, ...] = ("tiling", "deid")
    batch_sources: int = 256
    """Slides planned at once: each brings its thumbnail (some 100 KB) to the driver."""

    def scan(self, path: str, uri: str, ids: Ids, settings: Config) -> dict[str, Any]:
        return header.scan(path, uri, ids, settings, self.tissue)

    def together(self, uri: str) -> str | None:
        """What a file must be planned with: the levels of a DICOM slide are files, of one folder as archives hand them out."""
        parent, _, name = uri.rpartition("/")
        suffix = name.rpartition(".")[2]
        return parent if name.lower().endswith(DICOM_NAMES) or suffix == name or suffix.isdigit() else None

    def plan(self, files: list[SourceFile], ids: Ids, settings: Config) -> Plan:
        return plan.plan(files, ids, settings, settings.fingerprint(*self.sections, extra=(ids.fingerprint, self.fingerprint)))

    def explode(self, unit: Unit, ids: Ids, settings: Config, watch: Watch) -> Iterator[Rows | Rejection]:
        return explode_module.explode(unit, ids, settings, watch)


def slides_kind(tissue: str | None = None) -> SlidesKind:
    """The kind, with tissue masks of one's own; raises `BadRequest` where ``tissue`` does not exist."""
    if tissue is None:
        return SlidesKind()
    path = Path(tissue)
    if not path.exists():
        raise BadRequest(f"--tissue {tissue}: no such file or folder")
    digest = hashlib.sha256()
    for item in sorted(path.iterdir()) if path.is_dir() else [path]:
        if item.is_file():
            digest.update(item.name.encode() + b"\0" + hashlib.sha256(item.read_bytes()).digest())
    return SlidesKind(str(path), f"tissue:{digest.hexdigest()[:16]}")


SLIDES = slides_kind()
