"""Series as a kind of data that the engine can ingest: scan, plan, explode, and assemble for what a batch changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medspark.config import Config
from medspark.keys import Ids
from medspark.series import dicomdir, explode, header, plan
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import Plan, SourceFile, Unit, Watch


class SeriesKind:
    """DICOM images and NIfTI volumes (`medspark.tables.work.Kind`). Final."""

    job = "explode_series"
    source_kind = "dicom"
    sections: tuple[str, ...] = ("series", "deid")
    archives = True

    def __init__(self, modality: str = "OT") -> None:
        self.modality = modality
        self.fingerprint = "" if modality == "OT" else modality

    def scan(self, path: str, uri: str, ids: Ids, settings: Config) -> dict[str, Any]:
        found = header.scan(path, uri, ids, settings)
        return {**found, "modality": self.modality} if found["kind"] == "nifti" else found

    def listed(self, path: str, settings: Config) -> list[tuple[str, ...]]:
        return dicomdir.listed(path, settings)

    def plan(self, files: list[SourceFile], ids: Ids, settings: Config) -> Plan:
        return plan.plan(files, ids, settings)

    def explode(self, unit: Unit, ids: Ids, settings: Config, watch: Watch) -> Iterator[Rows | Rejection]:
        return explode.explode(unit, ids, settings, watch)


SERIES = SeriesKind()


def series_kind(modality: str = "OT") -> SeriesKind:
    """``modality`` : of NIfTI files, which do not say it."""
    return SeriesKind(modality)
