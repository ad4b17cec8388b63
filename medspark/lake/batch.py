"""A batch: claim -> append -> close -> finish, with fencing. What makes ingest survive any kill and any second job.

A batch claims its (source, settings) pairs, and the parents that only one batch may touch at a time, in one transaction on ``claims``. Its
rows carry its random id, children are appended before parents, each append at most once (transaction id ``medspark:<batch_id>``); the
append to ``sources`` is the commit point. After it, `finish` brings derived rows up to date (idempotent) and the claims are released.

A batch whose owner is gone is rolled forward when it reached ``sources``; else it is fenced, ``sources`` first, by empty appends under its
transaction id, so that a late append of a process that was only slow is dropped, and its rows are removed.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.lake import owner
from medspark.lake.files import PRIVATE, DataFile, admitted_paths
from medspark.lake.store import Lake
from medspark.tables.catalog import TABLES
from medspark.tables.rows import Rows

DATA = ("pixels", "labels", "tiles", "slices", "photos", "planes", "regions", "grids", "slides", "series", "subjects", "rejected")
"""Tables that a batch may append to before it closes; children before parents."""
KEYED = {"subjects": "subject_key", "slides": "slide_id", "grids": "grid_id", "series": "series_id"}
"""Tables whose rows several batches may bring: the first one stays."""
WHOLE_LAKE = "lock:lake"
"""The lock of a job that needs the lake to itself (`Batch.claim_alone`): while it is held no batch opens."""
WAIT_S = 0.4  # between two looks at a parent that another live batch holds


def app(batch_id: str) -> str:
    return f"medspark:{batch_id}"


@dataclass
class Batch:
    """One claim's work. ``settings`` is the ledger's key beside the source: job and fingerprint."""

    lake: Lake
    run_id: str
    job: str
    settings: str
    lease_s: float
    finish: Callable[[str], None] | None = None
    batch_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    claimed: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    _file: DataFile | None = None
    _state: str = "open"
    _stop: threading.Event = field(default_factory=threading.Event)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def metadata(self) -> str:
        return self.lake.user_metadata(run=self.run_id, batch=self.batch_id, job=self.job, settings=self.settings)

    # ---- claim

    def claim(
        self,
        sources: Iterable[str],
        locks: Mapping[str, str],
        waiting: Callable[[], None] = lambda: None,
        done: Callable[[Sequence[str]], set[str]] | None = None,
    ) -> list[str]:
        """Claims the sources that no live batch and no ledger row has; waits while another batch holds one of their parents.

        locks : source_id -> parent; done : which of the claimed ones the ledger has already. Returns the claimed source_ids (possibly none; then there is nothing to release).
        """
        wanted = sorted(set(sources))
        refuse_second_writer(self.lake)
        while True:
            mine: list[str] = []
            busy = False

            def build(version: int) -> tuple[list[DataFile], list[DataFile]]:
                nonlocal mine, busy
                held = self.lake.read("claims", ["source_id", "settings"], files=self.lake.files("claims", version))
                pairs = set(zip(held.column(0).to_pylist(), held.column(1).to_pylist(), strict=True))
                mine = [source for source in wanted if (source, self.key) not in pairs]
                parents = sorted({f"lock:{locks[source]}" for source in mine if source in locks})
                busy = any((parent, "") in pairs for parent in (WHOLE_LAKE, *parents))
                if busy or not mine:
                    return [], []
                self.claimed, self.locks = tuple(mine), tuple(parents)
                self._file = self._rows()
                return [self._file] if self._file else [], []

            self._file = None
            self.lake.transact("claims", build, metadata=self.metadata, reads=True)
            if busy:
                waiting()
                time.sleep(WAIT_S)
                recover_dead(self.lake, self.finish)
                continue
            break
        if not mine:
            return []
        self._refuse_second_writer()
        threading.Thread(target=self._renew, daemon=True, name=f"lease-{self.batch_id[:8]}").start()
        # Another job may have closed and released these between our look at the ledger and our claim.
        over = done(mine) if done is not None else ledger_has(self.lake, mine, self.job, self.settings)
        left = [source for source in mine if source not in over]
        if not left:
            self.release()
        return left

    def claim_alone(self) -> list[str]:
        """Claims the whole lake, so that every other claim waits until `release`; returns the batches that are open (then nothing is claimed)."""
        others: list[str] = []

        def build(version: int) -> tuple[list[DataFile], list[DataFile]]:
            nonlocal others
            held = self.lake.read("claims", ["batch_id"], files=self.lake.files("claims", version))
            others = sorted(set(held.column(0).to_pylist()))
            if others:
                return [], []
            self.claimed, self.locks = (), (WHOLE_LAKE,)
            self._file = self._rows()
            return [self._file] if self._file else [], []

        self._file = None
        refuse_second_writer(self.lake)
        self.lake.transact("claims", build, metadata=self.metadata, reads=True)
        if not others:
            self._refuse_second_writer()
            threading.Thread(target=self._renew, daemon=True, name=f"lease-{self.batch_id[:8]}").start()
        return others

    def _refuse_second_writer(self) -> None:
        """Once more, with this batch's claim in place: of two that came in the same moment at least one sees the other, or its own claim gone."""
        try:
            refuse_second_writer(self.lake, self.batch_id)
        except BadRequest:
            self.release()
            raise

    @property
    def key(self) -> str:
        return f"{self.job}:{self.settings}"

    def _rows(self) -> DataFile | None:
        pairs = [(source, self.key) for source in self.claimed] + [(lock, "") for lock in self.locks]
        until = datetime.now(UTC) + timedelta(seconds=self.lease_s)
        rows = Rows(
            "claims",
            {
                "source_id": [source for source, _ in pairs],
                "settings": [settings for _, settings in pairs],
                "owner": [str(owner.current())] * len(pairs),
                "state": [self._state] * len(pairs),
                "lease_until": [until] * len(pairs),
            },
        )
        name = f"claim-{self.batch_id}-{uuid.uuid4().hex[:8]}.parquet"
        return self.lake.write_file("claims", [rows.to_arrow(self.run_id, self.batch_id)], name)

    def _replace(self, state: str | None) -> None:
        """Writes the claim again (new lease, new state), or removes it (None)."""
        with self._guard:
            if self._file is None:
                return
            if state is not None:
                self._state = state
            old, new = self._file, self._rows() if state is not None else None
            self.lake.transact("claims", lambda version: ([new] if new else [], [old]), metadata=self.metadata)
            self._file = new

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """The lease is new and nothing of this batch is written into ``claims`` meanwhile: for a moment much shorter than the lease."""
        self._replace(self._state)
        with self._guard:
            yield

    def _renew(self) -> None:
        while not self._stop.wait(self.lease_s / 3):
            self._replace(self._state)

    # ---- append, close

    def append(self, files: Mapping[str, list[DataFile]]) -> dict[str, int]:
        """Appends to all tables but the ledger, children before parents; independent tables side by side. Returns rows that became new."""
        written: dict[str, int] = {}
        with ThreadPoolExecutor(4) as pool:
            for group in (DATA[:2], DATA[2:7], DATA[7:]):
                jobs = {table: pool.submit(self._append, table, files[table]) for table in group if files.get(table)}
                written |= {table: job.result() for table, job in jobs.items()}
        return written

    def _append(self, table: str, files: list[DataFile]) -> int:
        new = sum(file.rows for file in files)
        if table not in KEYED:
            self.lake.transact(table, files, app(self.batch_id), self.metadata)
            return new
        key, folder = KEYED[table], self.lake.folder(table)
        own = pa.concat_tables([self.lake.read(table, TABLES[table].names, files=[f"{folder}/{file.path}"]) for file in files])

        def build(version: int) -> tuple[list[DataFile], list[DataFile]]:
            nonlocal new
            there = self.lake.read(table, [key], files=self.lake.files(table, version)).column(0)
            absent = own.filter(
                pc.invert(pc.is_in(own.column(key), value_set=there.combine_chunks() if there.num_chunks else pa.array([], pa.string())))
            )
            new = absent.num_rows
            if new == own.num_rows:
                return files, []
            file = self.lake.write_file(table, absent.cast(TABLES[table].arrow()), f"part-{self.batch_id}-{uuid.uuid4().hex[:8]}.parquet")
            return [file] if file else [], []

        self.lake.transact(table, build, app(self.batch_id), self.metadata, reads=True)
        return new

    def close(self, ledger: Rows) -> None:
        """The commit point: one row per claimed source in ``sources``."""
        file = self.lake.write_file("sources", [ledger.to_arrow(self.run_id, self.batch_id)], f"part-{self.batch_id}.parquet")
        if self.lake.transact("sources", [file] if file else [], app(self.batch_id), self.metadata) is None:
            raise Fenced(self.batch_id)
        self._replace("closed")

    @contextlib.contextmanager
    def worked(self) -> Iterator[None]:
        """Around everything between claim and release: an error in this process gives the batch up, as another job would had it died."""
        try:
            yield
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        self._stop.set()
        with contextlib.suppress(Exception):  # whatever fails here is left to the next job's recovery
            if not self.lake.committed("pixels", app(self.batch_id)):
                discard(self.lake, self.batch_id)  # first of all: if the disk is full, there is no room for a fence
            if not _closed(self.lake, self.batch_id):
                fence(self.lake, self.batch_id)
                roll_back(self.lake, self.batch_id)
                _drop(self.lake, "claims", self.batch_id)

    def release(self) -> None:
        self._stop.set()
        self._replace(None)


class Fenced(RuntimeError):
    """Another job took this batch over (its lease had passed); its rows were rolled back and will be ingested again."""


def ledger_has(lake: Lake, sources: Iterable[str], job: str, settings: str) -> set[str]:
    """Which of the sources the ledger already has under this job and settings."""
    wanted = pa.array(sorted(sources), pa.string())
    if not len(wanted):
        return set()
    where = pc.field("source_id").isin(wanted) & (pc.field("job") == job) & (pc.field("settings") == settings)
    return set(lake.read("sources", ["source_id"], where).column(0).to_pylist())


# ---- recovery


def open_batches(lake: Lake) -> dict[str, dict[str, object]]:
    """batch_id -> {owner, state, lease_until, run_id, sources} of every batch in ``claims``."""
    found: dict[str, dict[str, object]] = {}
    if not lake.exists("claims"):
        return found
    rows = lake.read("claims", ["batch_id", "owner", "state", "lease_until", "run_id"])
    for row in rows.to_pylist():
        entry = found.setdefault(row["batch_id"], {**row, "sources": 0})
        entry["sources"] = int(str(entry["sources"])) + 1
    return found


def gone(entry: Mapping[str, object]) -> bool:
    """Whether a batch's owner no longer lives: certainly (its process is gone), or by its lease."""
    until = entry["lease_until"]
    assert isinstance(until, datetime)
    return owner.Owner.parse(str(entry["owner"])).dead() or until.astimezone(UTC) < datetime.now(UTC)


def refuse_second_writer(lake: Lake, mine: str = "") -> None:
    """Raises `BadRequest` where another process has a batch open on a lake that cannot keep two writers apart (`Lake.excludes_writers`).

    mine : a batch whose claim was committed; that it is not there any more is another writer's doing, too
    """
    if lake.excludes_writers:
        return
    there = open_batches(lake)
    others = [batch for batch, entry in there.items() if not gone(entry) and entry["owner"] != str(owner.current())]
    if others or (mine and mine not in there):
        who = f"batch {others[0]} is open" if others else "this job's claim was overwritten"
        raise BadRequest(
            f"--lake {lake.uri}: another job writes to this lake ({who}), and on S3 without a log store that keeps two writers apart commits "
            "would be lost; wait until it has ended, or set spark.delta.logStore.s3a.impl in all jobs (docs/clusters.md, Object stores)"
        )


def recover_dead(lake: Lake, finish: Callable[[str], None] | None = None) -> list[tuple[str, str]]:
    """Rolls every batch whose owner is gone forward or back. Returns [(batch_id, "forward" | "back")].

    finish : what a closed batch still owes (derived rows, labels that waited); None leaves closed batches to a caller that knows it
    """
    done = []
    for batch_id, entry in open_batches(lake).items():
        if not gone(entry):
            continue
        if not lake.committed("sources", app(batch_id)) or not _closed(lake, batch_id):
            fence(lake, batch_id)
        if _closed(lake, batch_id):
            if finish is None:
                continue
            finish(batch_id)
            done.append((batch_id, "forward"))
        else:
            roll_back(lake, batch_id)
            done.append((batch_id, "back"))
        _drop(lake, "claims", batch_id)
    return done


def _closed(lake: Lake, batch_id: str) -> bool:
    files = admitted_paths(lake.actions("sources"), "batch_id", [batch_id])
    return lake.read("sources", ["batch_id"], pc.field("batch_id") == batch_id, files).num_rows > 0


def fence(lake: Lake, batch_id: str) -> None:
    """Empty appends under the batch's transaction id, the ledger first: after that it can no longer close."""
    said = lake.user_metadata(batch=batch_id, fence=True)
    for table in ("sources", *DATA):
        if lake.exists(table):
            lake.transact(table, [], app(batch_id), said)
        if table == "sources" and _closed(lake, batch_id):
            return


def discard(lake: Lake, batch_id: str) -> None:
    """Removes the stage and the payload files of a batch that has given up before it appended any."""
    lake.filesystem_delete(lake.folder(PRIVATE, batch_id))
    for info in lake.filesystem.get_file_info(pafs.FileSelector(lake.folder("pixels"), allow_not_found=True)):
        if info.base_name.startswith(f"part-{batch_id}-"):
            lake.filesystem.delete_file(info.path)


def roll_back(lake: Lake, batch_id: str) -> None:
    for table in DATA:
        if lake.exists(table):
            _drop(lake, table, batch_id)
    lake.filesystem_delete(lake.folder(PRIVATE, batch_id))


def _drop(lake: Lake, table: str, batch_id: str) -> None:
    """Removes a batch's rows. In a clustered table every file's statistics admit every batch: one column tells whether there are any."""
    if table != "pixels":
        files = admitted_paths(lake.actions(table), "batch_id", [batch_id])
        if not files or not lake.read(table, ["batch_id"], pc.field("batch_id") == batch_id, files).num_rows:
            return

    def without(rows: pa.Table) -> pa.Table:
        mine = pc.equal(rows.column("batch_id"), batch_id)
        return rows.filter(pc.invert(mine)) if pc.any(mine).as_py() else rows

    if table == "subjects":  # another batch may have left its subject out because this one had brought it
        elsewhere = {
            key
            for images in ("tiles", "slices", "photos")
            if lake.exists(images)
            for key in lake.read(images, ["subject_key"], pc.field("batch_id") != batch_id).column(0).unique().to_pylist()
        }

        def unneeded(rows: pa.Table) -> pa.Table:
            keep = pc.or_(
                pc.not_equal(rows.column("batch_id"), batch_id),
                pc.is_in(rows.column("subject_key"), pa.array(sorted(elsewhere), pa.string())),
            )
            return rows if pc.all(keep).as_py() else rows.filter(keep)

        lake.rewrite(table, unneeded, "batch_id", [batch_id])
    elif table == "pixels":  # payload files are never read to be changed: each holds the rows of one batch
        lake.transact(table, lambda version: ((), _own_files(lake, table, batch_id, version)), reads=True)
    else:
        lake.rewrite(table, without, "batch_id", [batch_id])


def _own_files(lake: Lake, table: str, batch_id: str, version: int) -> list[DataFile]:
    actions = [action for action in lake.actions(table, version) if action.get("min.batch_id") == batch_id == action.get("max.batch_id")]
    return [DataFile(action["relative"], action["size_bytes"], action["num_records"], "") for action in actions]
