"""Upkeep of a lake, in the order in which it makes sense: migrate, forget, verify, lay out, vacuum. What each does is in `medspark.lake.upkeep`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medspark.deid.crosswalk import kept_of
from medspark.errors import BadRequest
from medspark.lake.ingest import Summary
from medspark.lake.store import Lake
from medspark.lake.upkeep import forget, layout, migrate, vacuum, verify
from medspark.lake.upkeep.alone import JOB, alone, beside, refuse_beside_others
from medspark.lake.upkeep.learnt import Tracked
from medspark.tables.catalog import TABLES

DAMAGED = "damaged"  # key of the summary's list under ``verified``


@dataclass(frozen=True)
class Request:
    """What was asked for; None and False: not.

    vacuum_hours : float    files that stopped being current this long ago go
    verify_share : float    of the row groups of every file, above 0, at most 1
    """

    migrate: bool = False
    forget: str | None = None
    verify_share: float | None = None
    compact: bool = False
    cluster: bool = False
    vacuum_hours: float | None = None
    dry_run: bool = False

    @property
    def writes(self) -> bool:
        """Whether anything is written: a vacuum of old files only removes, so that it can make room on a full disk."""
        more = self.migrate or self.forget is not None or self.verify_share is not None or self.compact or self.cluster
        return not self.dry_run and (more or (self.vacuum_hours is not None and self.vacuum_hours < vacuum.SAFE_HOURS))

    def check(self) -> None:
        """Raises `BadRequest` on what cannot be served, before any session is there."""
        if not (self.migrate or self.forget is not None or self.verify_share is not None or self.compact or self.cluster) and (
            self.vacuum_hours is None
        ):
            raise BadRequest("nothing to do: give --compact, --cluster, --vacuum HOURS, --verify, --migrate or --forget-subject KEY")
        if self.vacuum_hours is not None and not 0 <= self.vacuum_hours < float("inf"):
            raise BadRequest(f"--vacuum {self.vacuum_hours:g}: expected hours, 0 or more")
        if self.verify_share is not None and not 0 < self.verify_share <= 1:
            raise BadRequest(f"--verify {self.verify_share:g}: expected a fraction above 0, at most 1")
        if self.forget is not None:
            forget.check_key(self.forget)


def check_lake(lake: Lake, request: Request) -> None:
    """Refuses, from the logs alone, a lake that is not there, one of a newer release, and one in which others are at work."""
    there = [name for name in TABLES if lake.exists(name)]
    if not there:
        raise BadRequest(f"--lake {lake.uri}: no lake there")
    for name in there:
        lake.snapshot(name)  # refuses a newer major version
    if request.compact or request.cluster or request.forget is not None or request.migrate:
        migrate.refuse_unknown_columns(lake)
    if request.forget is not None:
        forget.check_known(lake, request.forget)
        refuse_beside_others(lake, "--forget-subject")
    if request.vacuum_hours is not None and request.vacuum_hours < vacuum.SAFE_HOURS:
        refuse_beside_others(lake, f"--vacuum below {vacuum.SAFE_HOURS:g} hours")


@dataclass
class Maintenance:
    """One run of upkeep."""

    lake: Lake
    request: Request
    lease_s: float
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    progress: Callable[[str], None] = lambda text: None
    say: Callable[[str], None] = lambda line: None
    """Receives the lines of the tables for people: damage, originals of a forgotten subject."""
    key_path: Path | None = None
    """Where the lake's key lies, if it lies here: only what is kept beside it is looked for."""
    tracked: Callable[[Lake], Tracked] | None = None
    """Opens the stores in which the lake's runs are tracked."""

    def __post_init__(self) -> None:
        self.summary = Summary(JOB, self.run_id, self.lake.uri)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.summary.stages[step] = time.monotonic() - started

    def run(self) -> Summary:
        """Does what was asked; the summary's ``verified.damaged`` lists damage."""
        asked, said, dry = self.request, self.summary.extra, self.request.dry_run
        self.lake.spark.sparkContext.setJobGroup(self.run_id, f"medspark {JOB}")
        if dry:
            said["dry_run"] = True
        if asked.migrate:
            with self._timed("migrate"):
                said["migrated"] = migrate.missing(self.lake) if dry else migrate.migrate(self.lake)
        if asked.forget is not None:
            with self._timed("forget"):
                said["forgotten"] = self._forget(asked.forget)
        if asked.verify_share is not None:
            with self._timed("verify"):
                said["verified"] = self._verify(asked.verify_share)
        if asked.compact or asked.cluster:
            with self._timed("layout"):
                said["clustered" if asked.cluster else "compacted"] = self._lay_out(asked.cluster)
        if asked.vacuum_hours is not None:
            with self._timed("vacuum"):
                said["vacuumed"] = self._vacuum(asked.vacuum_hours)
        self.summary.versions = dict(self.lake.versions)
        return self.summary

    def _forget(self, key: str) -> dict[str, Any]:
        tracked = None if self.tracked is None else self.tracked(self.lake)
        if self.request.dry_run:
            return forget.planned(self.lake, key, tracked)
        with alone(self.lake, "--forget-subject", self.run_id, self.lease_s) as batch:
            forgotten = forget.forget(self.lake, key, batch, self.progress, tracked)
        if self.key_path is not None:
            forgotten.crosswalk = [str(path) for path in kept_of(self.key_path, forgotten.found.ids)]
        for line in forgotten.table():
            self.say(line)
        return forgotten.json()

    def _verify(self, share: float) -> dict[str, Any]:
        if self.request.dry_run:
            files = verify.listed(self.lake)
            return {"files": len(files), "bytes": sum(file.size for file in files)}
        found = verify.verify(self.lake, share, self.run_id, self.progress)
        for line in found.table():
            self.say(line)
        return found.json()

    def _lay_out(self, cluster: bool) -> dict[str, Any]:
        if self.request.dry_run:
            return {work.table: {"files": work.files, "bytes": work.bytes} for work in layout.plans(self.lake, cluster)}
        with beside(self.lake, "layout", self.run_id, self.lease_s) as batch:
            return layout.lay_out(self.lake, cluster, batch.batch_id, self.progress)

    def _vacuum(self, hours: float) -> dict[str, Any]:
        if self.request.dry_run:
            files = list(vacuum.inventory(self.lake, hours))
            return {**vacuum.count(files), "folders": sum(1 for _ in vacuum.stale_folders(self.lake, hours))}
        if hours < vacuum.SAFE_HOURS:
            with alone(self.lake, f"--vacuum below {vacuum.SAFE_HOURS:g} hours", self.run_id, self.lease_s):
                return vacuum.remove(self.lake, vacuum.inventory(self.lake, hours), vacuum.stale_folders(self.lake, hours))
        return vacuum.remove(self.lake, vacuum.inventory(self.lake, hours), vacuum.stale_folders(self.lake, hours))
