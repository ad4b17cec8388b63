"""Removes one subject from the lake, its past and its feeds, and proves it.

The lake is held alone meanwhile. What identifies the subject is collected and kept in one private file first (`traces`); then its rows go from
every table and every feed, what runs show of it goes (`learnt`), the logs lose their past (`trim`), every file that is no longer current goes
whatever pins it, and all that is left is searched (`proof`). The private file goes last: a run that was killed anywhere is completed by giving
the same key again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.lake import pins, tasks
from medspark.lake.batch import DATA, Batch
from medspark.lake.derive import drop_where
from medspark.lake.explode import PayloadWriter
from medspark.lake.files import PRIVATE, DataFile, locate
from medspark.lake.session import cores
from medspark.lake.store import Lake
from medspark.lake.upkeep import feeds, learnt, proof, traces, vacuum
from medspark.lake.upkeep.check import UNREADABLE
from medspark.lake.upkeep.learnt import Tracked
from medspark.lake.upkeep.traces import Traces
from medspark.lake.upkeep.trim import trim
from medspark.tables.catalog import TABLES
from medspark.tables.work import SourceFile

KEY = re.compile(r"[0-9a-f]{32}")
BYTES_PER_S = 2e8  # a payload file copied without some rows, one core
COPY_S = 600.0
DAMAGED = -1  # in place of a file's removed rows
KEPT_PRIVATE = ("lake.json", "pins", "forget", "runs")
SAID_OF_IT = ("predictions", "evaluations", "splits")
NARROW = (*SAID_OF_IT, *(table for table in DATA if table not in ("pixels", "subjects", "rejected")), "rejected", "sources", "subjects")
"""Order of removal: what was said of it, children before parents, the subject last."""


def check_key(key: str) -> None:
    if not KEY.fullmatch(key):
        raise BadRequest(f"--forget-subject {key!r}: expected a subject_key, 32 hexadecimal digits (column subject_key of the tables)")


def check_known(lake: Lake, key: str) -> None:
    """Raises `BadRequest` where the lake holds nothing of the subject. Needs no session."""
    if not traces.known(lake, key):
        raise BadRequest(f"--forget-subject {key}: the lake holds no such subject (see: SELECT subject_key FROM subjects)")


@dataclass
class Forgotten:
    """rows : removed, by table;  files : removed from the disk;  pictures : of runs and evaluations, that went;  unreached : tracking stores that did
    not answer;  crosswalk : files beside the key that keep the originals of its UIDs
    """

    found: Traces
    rows: Counter[str] = field(default_factory=Counter)
    files: int = 0
    scanned: int = 0
    feeds: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    unpinned: list[str] = field(default_factory=list)
    pictures: int = 0
    unreached: list[str] = field(default_factory=list)
    crosswalk: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        return {
            **traces.mapping(self.found),
            "rows": dict(sorted(self.rows.items())),
            "files_removed": self.files,
            "used_by": {**_used_by(self.found), "feeds": self.feeds, "pins": self.pins},
            "pictures_removed": self.pictures,
            "not_reached": self.unreached,
            "unpinned": self.unpinned,
            "files_searched": self.scanned,
            "files_holding": 0,
            "crosswalk_files": len(self.crosswalk),
        }

    def table(self) -> Iterator[str]:
        """Lines for people: the originals, which another ingest would bring back, what the crosswalk keeps, which other lakes may use, and stores that
        may still show the subject."""
        if self.found.uris:
            yield "the subject's original files are where they were; an ingest of them would bring the subject back:"
            yield from sorted(self.found.uris)
        if self.crosswalk:
            yield "the crosswalk beside the key keeps the subject's original UIDs; remove these files unless another lake of this key needs them:"
            yield from self.crosswalk
        if self.unreached:
            yield "these tracking stores did not answer; pictures of the runs named in used_by.training may still lie there, remove them by hand:"
            yield from self.unreached


def _used_by(found: Traces) -> dict[str, list[str]]:
    """runs : wrote its rows;  training, evaluations : on feeds that held it;  models : learnt from it, predicted it or were measured on it"""
    said = {"runs": found.runs, "training": found.trained, "evaluations": found.evaluated, "models": found.models}
    return {name: sorted(ids) for name, ids in said.items()}


def planned(lake: Lake, key: str, tracked: Tracked | None = None) -> dict[str, Any]:
    """What `forget` would remove."""
    found = _found(lake, key, tracked)
    rows = {table: _count(lake, table, found) for table in TABLES if lake.exists(table)}
    counts = {table: count for table, count in rows.items() if count}
    return {**traces.mapping(found), "rows": counts, "used_by": _used_by(found)}


def _found(lake: Lake, key: str, tracked: Tracked | None) -> Traces:
    """Everything by which the subject is known and what has used it. Raises `BadRequest` while a run trains on it."""
    found = traces.collect(lake, key)
    learnt.note(lake, found, tracked)
    found.models |= traces.models(lake, found) | {str(pin.said["model"]) for pin in pins.pins(lake) if "model" in pin.said}
    if at_work := learnt.training_on(lake, found):
        raise BadRequest(
            f"--forget-subject: run {at_work[0]} is training on a feed that holds the subject; wait until it has ended, or end it"
        )
    return found


def _count(lake: Lake, table: str, found: Traces) -> int:
    where = traces.condition(table, found)
    return 0 if where is None else sum(batch.num_rows for batch in lake.scan(table, ["run_id"], where))


def forget(
    lake: Lake, key: str, batch: Batch, progress: Callable[[str], None] = lambda text: None, tracked: Tracked | None = None
) -> Forgotten:
    """Removes the subject everywhere.

    batch : the claim of the whole lake, see `medspark.lake.upkeep.alone`
    tracked : the runs' tracking stores; None: there are none
    """
    found = _found(lake, key, tracked)
    done = Forgotten(found, pins=_used(lake, key))
    traces.save(lake, found)
    progress(f"forget: {len(found.images)} images from {len(found.sources)} files")
    done.rows["pixels"] = _payload(lake, found, batch.batch_id)
    for table in NARROW:
        if lake.exists(table):
            done.rows[table] = _count(lake, table, found)
            if done.rows[table]:
                lake.rewrite(table, drop_where(traces.condition(table, found)), *traces.admitting(table, found))
    done.rows = Counter({table: count for table, count in done.rows.items() if count})
    done.feeds = [name for name in feeds.feeds(lake) if feeds.remove(lake, name, found.subject, found.images, found.ids, batch.batch_id)]
    progress("forget: pictures of runs")
    done.pictures = learnt.clear(lake, found, tracked)
    done.unreached = sorted(tracked.unreached) if tracked is not None else []
    progress("forget: the past")
    done.unpinned = _unpin(lake)
    done.files = _clear(lake, batch)
    progress("forget: searching every file")
    besides = traces.path_of(lake, key)
    holding = proof.hits(lake, found, besides, batch.batch_id)
    lake.filesystem_delete(lake.folder(PRIVATE, batch.batch_id))
    if holding:
        raise RuntimeError(f"{len(holding)} files still hold traces of the subject, first {holding[0].path} ({holding[0].what})")
    done.scanned = sum(1 for info in lake.filesystem.get_file_info(pafs.FileSelector(lake.root, recursive=True)) if info.is_file) - 1
    lake.filesystem.delete_file(besides)
    return done


def _used(lake: Lake, key: str) -> list[str]:
    """Pins (of feeds and runs) whose versions hold rows of the subject."""
    return [pin.name for pin in pins.pins(lake) if any(_holds(lake, table, version, key) for table, version in pin.tables.items())]


def _holds(lake: Lake, table: str, version: int, key: str) -> bool:
    if table not in TABLES or "subject_key" not in TABLES[table].names:
        return False
    return lake.read(table, ["subject_key"], pc.field("subject_key") == key, lake.files(table, version)).num_rows > 0


# ---- payload


@dataclass(frozen=True)
class Without:
    """The work of a task: payload files copied without some images, row group by row group. Yields (old name, rows removed, new files)."""

    uri: str
    images: frozenset[str]
    batch_id: str

    def __call__(self, items: Iterable[tuple[str, int]], watch: tasks.Watcher, partition: int) -> Iterator[tuple[str, int, list[DataFile]]]:
        filesystem, root, _ = locate(self.uri)
        leave = pa.array(sorted(self.images), pa.string())
        for name, size in items:
            watch(SourceFile(name, name, "", size, ""))
            try:
                with filesystem.open_input_file(f"{root}/pixels/{name}") as stream:
                    file = pq.ParquetFile(stream)
                    theirs = pc.is_in(file.read(columns=["image_id"]).column(0), value_set=leave)
                    removed = pc.sum(theirs).as_py() or 0
                    if removed:
                        yield name, removed, self._copy(filesystem, root, file, leave)
            except UNREADABLE:
                yield name, DAMAGED, []

    def _copy(self, filesystem: pafs.FileSystem, root: str, file: pq.ParquetFile, leave: pa.Array) -> list[DataFile]:
        writer = PayloadWriter(filesystem, root, self.batch_id)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            writer.write_group(rows.filter(pc.invert(pc.is_in(rows.column("image_id"), value_set=leave))))
        return writer.close()


def _payload(lake: Lake, found: Traces, batch_id: str) -> int:
    if not lake.exists("pixels") or not found.images:
        return 0
    holders = sorted(found.holders)
    actions = [action for action in lake.actions("pixels") if _admits(action, holders)]
    work = Without(lake.uri, frozenset(found.images), batch_id)
    items = [(action["relative"], action["size_bytes"]) for action in actions]
    parts = tasks.split(items, lambda item: 0.01 + item[1] / BYTES_PER_S, 20.0, cores(lake.spark))
    results = tasks.run(lake.spark, tasks.Journal.of(lake, batch_id, "payload"), parts, work, COPY_S)
    bad = [name for name, removed, _ in results if removed == DAMAGED]
    if bad:
        raise BadRequest(
            f"{len(bad)} payload files cannot be read, first pixels/{bad[0]}; find the damage with --verify and mend it, then forget again"
        )
    if results:
        old = {action["relative"]: action for action in actions}
        gone = [DataFile(name, old[name]["size_bytes"], old[name]["num_records"], "") for name, _, _ in results]
        new = [file for _, _, files in results for file in files]
        lake.transact("pixels", lambda version: (new, gone), metadata=lake.user_metadata(forgotten=True))
    return sum(removed for _, removed, _ in results)


def _admits(action: dict[str, Any], holders: Sequence[str]) -> bool:
    low, high = action.get("min.parent_id"), action.get("max.parent_id")
    return low is None or high is None or any(low <= holder <= high for holder in holders)


# ---- the past


def _unpin(lake: Lake) -> list[str]:
    """No version before this one will be there: pins of runs go, cards keep what they were built from under another name."""
    gone = []
    for pin in pins.pins(lake):
        if not pin.tables:
            continue
        gone.append(pin.name)
        if pin.name.startswith("feed:"):
            feeds.unpinned(lake, f"{pins.FEEDS}/{pin.name.removeprefix('feed:')}")
        else:
            pins.unpin(lake, pin.name)
    return gone


def _clear(lake: Lake, batch: Batch) -> int:
    """Trims every log and removes every file that is not current; returns how many data files went."""
    held = feeds.feeds(lake)
    removed = 0
    for table in [*(table for table in TABLES if lake.exists(table) and table not in ("claims", "kpi")), *held]:
        trim(lake, table)
    files = [gone for gone in _not_needed(lake) if gone.table not in ("claims", "kpi")]
    files += [gone for name in held for gone in vacuum.not_current(lake, name)]
    removed = vacuum.remove(lake, files, ())["files"]
    with batch.at_rest():  # its lease is written into claims from a thread of its own
        trim(lake, "claims")
        removed += vacuum.remove(lake, [gone for gone in _not_needed(lake) if gone.table == "claims"], ())["files"]
    for info in lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(PRIVATE), allow_not_found=True)):
        if info.type == pafs.FileType.Directory and info.base_name not in KEPT_PRIVATE:
            lake.filesystem_delete(info.path)
    return removed


def _not_needed(lake: Lake) -> Iterator[vacuum.Gone]:
    """Every file that is not current; ``kpi`` is left out above, runs write it without a claim and it knows no subject."""
    return vacuum.inventory(lake, 0.0, keep_pins=False, fresh_s=0.0)
