"""scan -> plan -> explode -> commit: the one implementation for every kind of data. Knows the four steps and no modality.

Read `scan`, `tasks`, `explode`, `stage` and `batch` for the steps; what a kind of data adds when its rows come together (a series'
geometry, a grid's counts) is in `derive`; labels that waited for their images are in `link`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs as pafs

from medspark.config import Config
from medspark.deid.crosswalk import Crosswalk
from medspark.errors import UNCOUNTED_CODES, BadRequest
from medspark.keys import Ids
from medspark.lake import card, derive, kpi, link, meetings, tasks
from medspark.lake.batch import Batch, recover_dead
from medspark.lake.explode import Exploder, TaskResult
from medspark.lake.files import PRIVATE
from medspark.lake.scan import UNKNOWN_SIZE, Found, Ledger, Scanned, cuts_before, opened_up, reader, resolve, to_path, walk, with_listed
from medspark.lake.session import cores
from medspark.lake.stage import Stage
from medspark.lake.store import Lake
from medspark.lake.upkeep import damage, mend
from medspark.series.dicomweb import Access, is_address, parse
from medspark.tables import names
from medspark.tables.rows import Rejection, Rows, rejected_rows
from medspark.tables.work import Kind, Plan, SourceFile, Unit

log = logging.getLogger("medspark.ingest")

HASH_BYTES_PER_S = 8e8  # SHA-256 and reading, one core; balances scan tasks
HEADER_S = 1e-3  # parsing one header, one core
FETCH_S = 0.05  # bringing one instance of unknown size over the web
HINTS = 5  # sentences in a summary
TASK_S = 12.0  # of work in one explode task: long against a task's overhead, short against a lost one
WRITES = {
    "tile_slides": ("subjects", "slides", "grids", "tiles", "pixels"),
    "explode_series": ("subjects", "series", "slices", "pixels"),
    "ingest_photos": ("subjects", "photos", "pixels", "labels"),
    "import_labels": ("regions", "planes", "labels"),
}
SPARE_BYTES = 256 << 20  # for logs, stages and whatever else writes to the disk meanwhile
ALWAYS = ("sources", "rejected", "claims", "kpi")


@dataclass(frozen=True)
class Request:
    """What a job was asked for.

    dataset : str           empty: each input folder's name
    subjects : Mapping      file name or path -> subject (``--subjects``); subject_pattern : group 1 of the file name
    """

    inputs: tuple[str, ...]
    dataset: str = ""
    subjects: Mapping[str, str] = field(default_factory=dict)
    subject_pattern: str = ""
    subject_domain: str = ""
    retry_rejected: bool = False
    dry_run: bool = False


@dataclass
class Summary:
    """The last line of a job (contract.md §1)."""

    job: str
    run_id: str
    lake: str
    written: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    skipped: int = 0
    duplicates: int = 0
    new_sources: int = 0
    rejected_sources: int = 0
    images: int = 0
    input_bytes: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("start", "scan", "plan", "explode", "commit"), 0.0))
    versions: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.stages[stage] = self.stages.get(stage, 0.0) + time.monotonic() - started

    def json(self) -> dict[str, Any]:
        said = {
            "job": self.job,
            "run_id": self.run_id,
            "lake": self.lake,
            "written": dict(sorted(self.written.items())),
            "rejected": self.rejected,
            "skipped": self.skipped,
            "duplicates": self.duplicates,
            "seconds": round(self.seconds, 3),
            "stages": {name: round(value, 3) for name, value in self.stages.items()},
            "versions": dict(sorted(self.versions.items())),
        }
        return {**said, **self.extra}


Progress = Callable[[str], None]


@dataclass
class Ingest:
    """One run of one kind of data into a lake."""

    lake: Lake
    kind: Kind
    ids: Ids
    settings: Config
    request: Request
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    progress: Progress = lambda text: None

    def __post_init__(self) -> None:
        self.summary = Summary(self.kind.job, self.run_id, self.lake.uri)
        extra = (self.ids.fingerprint, getattr(self.kind, "fingerprint", ""))
        self.fingerprint = self.settings.fingerprint(*self.kind.sections, extra=extra)
        self.access = Access.of(self.settings)
        self._skipped_suffixes: Counter[str] = Counter()
        self._damaged: dict[str, list[Found]] = {}

    # ---- the run

    def run(self) -> Summary:
        """Ingests all that is new under the inputs; every batch is complete in itself."""
        self.open()
        roots = self.roots()
        ledger = self.ledger()
        for dataset, folders, files in roots:
            for found in self._new(dataset, folders, files, ledger):
                self.ingest(dataset, self.scan(dataset, found))
        return self.close()

    def open(self) -> None:
        """Makes the tables, and finishes what dead runs have left."""
        self.lake.spark.sparkContext.setJobGroup(self.run_id, f"medspark {self.kind.job}")
        if not self.request.dry_run:
            with self.summary.timed("commit"):
                card.check_key(self.lake.uri, self.ids, create=True)  # the card comes with the tables: who is refused before leaves none
                self.lake.ensure([*WRITES[self.kind.job], *ALWAYS])
                self.lake.warm("claims")
                recovered = recover_dead(self.lake, self._finisher())
                if recovered:
                    log.warning("recovered batches", extra={"said": {"batches": recovered}})
                    self.summary.extra["recovered"] = len(recovered)

    def ledger(self) -> Ledger:
        with self.summary.timed("scan"):
            listed = damage.load(self.lake)
            if listed.records and not listed.lost and not self.request.dry_run:
                damage.clear(self.lake)  # whoever mended it did not come to this any more
            again = listed.sources(self.kind.job, self.fingerprint)
            return Ledger(self.lake, self.kind.job, self.fingerprint, self.request.retry_rejected, self._uri, again)

    def close(self) -> Summary:
        if self._damaged and not self.request.dry_run:
            self._mend(damage.load(self.lake))
        self.summary.versions = dict(self.lake.versions)
        if self._skipped_suffixes:
            self.summary.extra["skipped_by_suffix"] = dict(self._skipped_suffixes.most_common())
        return self.summary

    def _finisher(self) -> Callable[[str], None]:
        return lambda batch_id: finish(self.lake, self.ids, self.settings, self.run_id, batch_id, self.summary)

    def roots(self) -> list[tuple[str, list[str], list[Found]]]:
        """(data set, folders to walk, single files) of the inputs."""
        folders, files = resolve(self.request.inputs)
        if self.request.dataset:
            return [(self.request.dataset, folders, files)]
        roots = [(_name(folder), [folder], []) for folder in folders]
        by_parent: dict[str, list[Found]] = {}
        for file in files:
            by_parent.setdefault(names.folder(file.uri) or "root", []).append(file)
        return [*roots, *((name, [], listed) for name, listed in by_parent.items())]

    def _new(self, dataset: str, folders: Sequence[str], files: Sequence[Found], ledger: Ledger) -> Iterator[list[Found]]:
        """New files in batches bounded by count and bytes."""
        batch: list[Found] = []
        size = 0
        most = min(self.settings.ingest.batch_sources, getattr(self.kind, "batch_sources", self.settings.ingest.batch_sources))
        given = with_listed(files, self.kind, self.settings, self.access)
        for found in opened_up(walk(folders, given, self.access, self.lake.spark), self.kind, self.settings.guard):
            if ledger.damaged(dataset, found):
                self._damaged.setdefault(dataset, []).append(found)
            if ledger.knows(dataset, found):
                self.summary.skipped += 1
                continue
            if batch and cuts_before(found, batch, size, most, self.settings.ingest.batch_bytes, getattr(self.kind, "together", None)):
                yield batch
                batch, size = [], 0
            batch.append(found)
            size += found.load
        if batch:
            yield batch

    def _mend(self, damaged: damage.Damaged) -> None:
        """Makes damaged payload of the sources that were met again; see `medspark.lake.upkeep.mend`."""
        units: list[Unit] = []
        with self.summary.timed("plan"):
            for dataset, found in self._damaged.items():
                scanned = self.scan(dataset, found)
                sources = {self.ids.source(dataset, one.found.uri, one.sha256): one for one in scanned}
                units += self.kind.plan(self._files(dataset, sources), self.ids, self.settings).units

        def explode(batch_id: str, units: Sequence[Unit], images: frozenset[str]) -> list[TaskResult]:
            return self._explode(batch_id, units, images)

        lost = [one for one in damaged.lost if (one.job, one.settings) == (self.kind.job, self.fingerprint)]
        with self.summary.timed("commit"):
            outcome = mend.mend(self.lake, lost, units, explode, self.run_id, self.settings.ingest.lease_s)
        self.summary.extra["mended"] = outcome.mended
        if outcome.left:
            self.summary.extra["not_mended"] = outcome.left

    # ---- one batch

    def scan(self, dataset: str, found: Sequence[Found]) -> list[Scanned]:
        """The files' hashes and headers, by tasks; those that could not be brought are counted and left out."""
        with self.summary.timed("scan"):
            self.progress(f"scan: {len(found)} new files")
            scanned = self._scan(dataset, found)
        self._absent(one.message for one in scanned if one.absent)
        return [one for one in scanned if not one.absent]

    def parents(self, dataset: str, scanned: Sequence[Scanned]) -> dict[str, str]:
        """uri -> what the file belongs to (a series, a slide), for the files that have a header."""
        sources = {self.ids.source(dataset, one.found.uri, one.sha256): one for one in scanned}
        plan = self.kind.plan(self._files(dataset, sources), self.ids, self.settings)
        return {sources[source].found.uri: parent for source, parent in plan.locks.items()}

    def _absent(self, reasons: Iterable[str]) -> None:
        for reason in reasons:
            self.summary.extra["unavailable"] = self.summary.extra.get("unavailable", 0) + 1
            self._hint(reason)

    def _hint(self, text: str) -> None:
        hints = self.summary.extra.get("hints", [])
        if text and len(hints) < HINTS and text not in hints:
            self.summary.extra["hints"] = [*hints, text]

    def ingest(self, dataset: str, scanned: Sequence[Scanned]) -> None:
        """plan, claim, explode, commit of one batch."""
        if not scanned:
            return
        sources = {self.ids.source(dataset, one.found.uri, one.sha256): one for one in scanned}
        self.summary.new_sources += len(sources)
        with self.summary.timed("plan"):
            plan = self.kind.plan(self._files(dataset, sources), self.ids, self.settings)
        self.progress(f"plan: {len(plan.units)} units of work, {sum(unit.images for unit in plan.units)} images")
        if self.request.dry_run:
            self._dry(sources, plan)
            return
        self._check_space(sum(one.found.load for one in scanned))
        batch = Batch(self.lake, self.run_id, self.kind.job, self.fingerprint, self.settings.ingest.lease_s, self._finisher())
        if self.request.retry_rejected:
            derive.forget_rejected(self.lake, sources, self.kind.job, self.fingerprint)
        with self.summary.timed("commit"):
            left = set(batch.claim(sources, plan.locks, lambda: self.progress("waiting for another job on the same data")))
        self.summary.skipped += len(sources) - len(left)
        if not left:
            return
        if len(left) < len(sources):
            sources = {source: one for source, one in sources.items() if source in left}
            with self.summary.timed("plan"):
                plan = self.kind.plan(self._files(dataset, sources), self.ids, self.settings)
        with batch.worked():
            with self.summary.timed("plan"):
                units = derive.with_known(self.lake, self.kind.job, plan.units)
            with self.summary.timed("explode"):
                results = self._explode(batch.batch_id, units)
            with self.summary.timed("commit"):
                self._commit(dataset, batch, sources, plan, results)

    def _check_space(self, needed: int) -> None:
        """Refuses a batch that a local disk cannot hold; stored pixels take about what the input takes."""
        if isinstance(self.lake.filesystem, pafs.LocalFileSystem):
            free = shutil.disk_usage(self.lake.root).free
            if free < needed + SPARE_BYTES:
                raise BadRequest(
                    f"the lake's disk has {free / 1e9:.1f} GB free, the next batch needs about {(needed + SPARE_BYTES) / 1e9:.1f} GB"
                )

    def _journal(self, batch_id: str, stage: str) -> tasks.Journal:
        if self.request.dry_run:  # writes nothing into the lake, not even what it has open
            return tasks.Journal(os.path.join(tempfile.gettempdir(), batch_id, stage), True, pafs.LocalFileSystem())
        return tasks.Journal.of(self.lake, batch_id, stage)

    def _scan(self, dataset: str, found: Sequence[Found]) -> list[Scanned]:
        weigh = lambda one: FETCH_S if one.size == UNKNOWN_SIZE else HEADER_S + one.size / HASH_BYTES_PER_S
        parts = tasks.split(found, weigh, 2.0, cores(self.lake.spark))
        name = f"scan-{self.run_id}-{uuid.uuid4().hex[:8]}"
        work = reader(self.kind, self.ids, self.settings, dataset, self.access)
        try:
            return tasks.run(self.lake.spark, self._journal(name, "journal"), parts, work, self.settings.guard.decode_s)
        finally:
            if self.request.dry_run:
                shutil.rmtree(os.path.join(tempfile.gettempdir(), name), ignore_errors=True)
            else:
                self.lake.filesystem_delete(self.lake.folder(PRIVATE, name))

    def _files(self, dataset: str, sources: Mapping[str, Scanned]) -> list[SourceFile]:
        domain = self.request.subject_domain or dataset
        return [
            SourceFile(
                source_id,
                one.found.uri,
                to_path(one.found.uri),
                one.found.size,
                dataset,
                one.header,
                self._subject(one.found.uri),
                domain,
                one.found.member,
            )
            for source_id, one in sources.items()
            if one.header is not None and not one.found.archive
        ]

    def _subject(self, uri: str) -> str | None:
        path = to_path(uri)
        for name in (path, uri, names.basename(path)):
            if name in self.request.subjects:
                return self.request.subjects[name]
        if self.request.subject_pattern:
            match = re.search(self.request.subject_pattern, names.basename(path))
            if match:
                return match.group(1)
        return None

    def _explode(self, batch_id: str, units: Sequence[Unit], only: frozenset[str] | None = None) -> list[TaskResult]:
        work = Exploder(self.kind, self.ids, self.settings, self.lake.uri, self.run_id, batch_id, self.access, only)
        parts = tasks.split(units, lambda unit: unit.cost, TASK_S, cores(self.lake.spark))
        self.progress(f"explode: {len(units)} units in {len(parts)} tasks")
        journal = self._journal(batch_id, "journal" if only is None else f"mend-{uuid.uuid4().hex[:8]}")
        return tasks.run(self.lake.spark, journal, parts, work, self.settings.guard.decode_s)

    def _commit(self, dataset: str, batch: Batch, sources: Mapping[str, Scanned], plan: Plan, results: list[TaskResult]) -> None:
        stage = Stage.of(self.lake, self.run_id, batch.batch_id, results)
        images: Counter[str] = Counter()
        absent = {source: reason for result in results for source, reason in result.absent.items()}
        self._absent(absent.values())
        self.summary.new_sources -= len(absent)
        sources = {source: one for source, one in sources.items() if source not in absent}
        rejections = [*plan.rejections, *(item for result in results for item in result.rejections)]
        rejections = [item for item in rejections if item.source_id in sources]
        parents: set[str] = set()
        subjects: set[str] = set()
        for result in results:
            images.update(result.images)
            parents |= result.parents
            subjects |= result.subjects
        for rows in plan.rows:  # only of parents that have images
            stage.add(derive.only(rows, parents, subjects))
        rejections += [Rejection(source, one.found.uri, "scan", one.code, one.message) for source, one in sources.items() if one.code]
        waiting: set[str] = set()
        if self.kind.job == "import_labels":
            waiting = self._waiting(stage)
            rejections += [
                Rejection(
                    source,
                    sources[source].found.uri,
                    "link",
                    "ORPHAN_LABEL",
                    "its image is not in the lake; its labels appear when it comes",
                )
                for source in waiting
            ]
        files = derive.files(self.lake, stage, self.settings)
        files["pixels"] = [file for result in results for file in result.payload]
        now = datetime.now(UTC)
        rejections = sorted(set(rejections), key=lambda item: (item.source_id, item.stage, item.code, item.message))
        if rejections:
            stage.add(rejected_rows(rejections, lambda _: dataset, self._uri, now))
            files["rejected"] = stage.files("rejected")
        self._keep_originals(sources)
        self.progress("commit: " + ", ".join(f"{sum(file.rows for file in listed)} {table}" for table, listed in files.items() if listed))
        written = batch.append(files)
        batch.close(self._ledger(dataset, sources, images, rejections, now))
        self.summary.written.update(written)
        self.summary.written["sources"] += len(sources)
        self.summary.images += sum(images.values())
        self.summary.input_bytes += sum(max(one.found.size, 0) for one in sources.values())
        finish(self.lake, self.ids, self.settings, self.run_id, batch.batch_id, self.summary)
        batch.release()
        stage.clear()

    def _keep_originals(self, sources: Mapping[str, Scanned]) -> None:
        """With ``deid.crosswalk``, before any row is committed: whatever the lake holds can go back under its original UIDs."""
        if self.settings.deid.crosswalk and self.ids.key is not None:
            originals = (one.header["original"] for one in sources.values() if one.header and "original" in one.header)
            Crosswalk.beside(self.settings.deid.key_path(), self.ids.key).add(originals, self.ids)

    def _waiting(self, stage: Stage) -> set[str]:
        """Annotation files of the batch of which an image is not in the lake."""
        refs: set[meetings.Ref] = set()
        for table in meetings.TRUTH:
            if table in stage.tables():
                refs |= meetings.refs_in(stage.narrow(table, ["source_id", "ref_image", "ref_dataset"]))
        return meetings.orphans(self.lake, refs)

    def _ledger(
        self, dataset: str, sources: Mapping[str, Scanned], images: Mapping[str, int], rejections: Sequence[Rejection], now: datetime
    ) -> Rows:
        lost: Counter[str] = Counter()
        codes: dict[str, set[str]] = {}
        for item in rejections:
            codes.setdefault(item.source_id, set()).add(item.code)
            if item.code not in UNCOUNTED_CODES:
                lost[item.source_id] += max(1, item.images)
                self.summary.rejected += 1
            elif item.code == "DUPLICATE":
                self.summary.duplicates += 1
        records = []
        for source_id, one in sources.items():
            status = _status(one, images.get(source_id, 0), codes.get(source_id, set()))
            if status == "skipped":
                self.summary.skipped += 1
                self._skipped_suffixes[PurePosixPath(one.found.uri).suffix.lower() or "(none)"] += 1
                self._hint(one.message)
            self.summary.rejected_sources += status == "rejected"
            records.append(
                {
                    "source_id": source_id,
                    "dataset": dataset,
                    "uri": self._uri(one.found.uri),
                    "kind": (one.header or {}).get("kind", self.kind.source_kind),
                    "size_bytes": max(one.found.size, 0),  # of a file that was too large to be brought nobody knows it
                    "modified_at": datetime.fromtimestamp(one.found.modified_us / 1e6, UTC),
                    "sha256": one.sha256,
                    "job": self.kind.job,
                    "settings": self.fingerprint,
                    "status": status,
                    "n_images": images.get(source_id, 0),
                    "n_rejected": lost[source_id],
                    "ingested_at": now,
                }
            )
        return Rows.of("sources", records)

    def _uri(self, uri: str) -> str:
        return uri if self.settings.deid.uris == "keep" else "token:" + self.ids.token(uri)

    def _dry(self, sources: Mapping[str, Scanned], plan: Plan) -> None:
        said = self.summary.extra.setdefault("plan", Counter())
        said["sources"] += len(sources)
        said["images"] += sum(unit.images for unit in plan.units)
        said["bytes"] += sum(one.found.load for one in sources.values())
        said["partitions"] += len(tasks.split(plan.units, lambda unit: unit.cost, TASK_S, cores(self.lake.spark)))
        self.summary.rejected += sum(1 for one in sources.values() if one.code) + len(plan.rejections)


def _name(folder: str) -> str:
    """What the data set of an input folder is called by default; of a server its host, because the rest of an address may be a UID."""
    return parse(folder).host if is_address(folder) else PurePosixPath(folder).name or "root"


def _status(one: Scanned, images: int, codes: set[str]) -> str:
    counted = codes - UNCOUNTED_CODES
    if "ORPHAN_LABEL" in codes:
        return "waiting"
    if images:
        return "partial" if counted else "ok"
    if counted:
        return "rejected"
    if "DUPLICATE" in codes:
        return "duplicate"
    return "ok" if one.header is not None else "skipped"


def finish(lake: Lake, ids: Ids, settings: Config, run_id: str, batch_id: str, summary: Summary | None = None) -> None:
    """What a closed batch still owes; idempotent, so that a roll-forward may repeat it."""
    derive.replan(lake, batch_id, settings)
    link.supersede(lake, batch_id)
    written = link.link(lake, ids, settings, run_id, batch_id)
    if summary is not None:
        summary.rejected += written.pop("linked_rejections", 0)
        rejected = written.pop("linked_rejected_sources", 0)
        summary.rejected_sources += rejected if summary.job == "import_labels" else 0
        for table, count in written.items():
            summary.written[table] += count


def record_kpi(lake: Lake, summary: Summary, annotation_min: float | None = None) -> None:
    """Seconds per stage, and for jobs that prepare images the time and rates of that, as rows of ``kpi``.

    annotation_min : minutes that people spent on these annotations; counted once, by the run that brings them
    """
    stages = {f"{stage}_s": (value, "s") for stage, value in summary.stages.items()} | {"total_s": (summary.seconds, "s")}
    values = dict(stages)
    if summary.job in WRITES or summary.job == "build_feed":
        worked = sum(value for stage, value in summary.stages.items() if stage != "start")
        values |= kpi.work("toppi_s", worked, summary.images, summary.input_bytes)
    if annotation_min is not None and summary.new_sources:
        values["annotation_min"] = (annotation_min, kpi.UNITS["annotation_min"])
    context = {"new_sources": str(summary.new_sources), "images": str(summary.images)}
    summary.written["kpi"] += kpi.record(lake, summary.run_id, summary.job, values, context)
