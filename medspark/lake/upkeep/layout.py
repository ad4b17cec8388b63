"""compact and cluster: the same rows in fewer, better files. Narrow tables only; `pixels` is laid out by its writers, feeds never change.

Batches come in whatever order they come, so the files of a table overlap in their keys and a look-up opens all of them. ``cluster`` lays
overlapping files anew in the catalogue's order, 32 to 64 MB each, so that min/max statistics leave one or two. ``compact`` only merges the
files that are too small. Planning is pure; the rows are sorted and written by Arrow in tasks (`runs`), bounded in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from medspark.lake import tasks
from medspark.lake.files import NARROW_FILE_BYTES, PRIVATE, DataFile
from medspark.lake.session import cores
from medspark.lake.store import Lake
from medspark.lake.upkeep.narrow import SMALL_BYTES, Limits
from medspark.lake.upkeep.ranges import Sample, cuts, loads, shares
from medspark.lake.upkeep.runs import Bounds, Direct, Gather, Job, Origin, Run, Sampler, Scatter
from medspark.tables.catalog import TABLES

BOUNDS, LIMITS = Bounds(), Limits()
READ_BYTES_PER_S = 1e7  # of files that are read, sorted and written as runs, one core; balances the tasks
TASK_S = 10.0
FILES_A_TASK = 8  # that a task writes at most; one that fails is done again
CELLS_A_TASK = 4  # at least, so that tasks can be given about equal work
FOREVER_S = 3600.0  # no step is watched: Arrow reads and writes our own files
LEFT_ALONE = ("pixels", "claims")
"""Payload lies in runs of one parent already; a claim's owner exchanges its own file by name."""
TRIES = 3  # plans of one table; a running ingest may take a file away in between


@dataclass(frozen=True)
class Laid:
    """A file and the range of its first clustering columns (``low``, ``high``: one value, or two where the first is constant)."""

    path: str
    size: int
    rows: int
    low: tuple[Any, ...] = ()
    high: tuple[Any, ...] = ()


def order(table: str) -> tuple[str, ...]:
    """The columns by which a table's rows are sorted."""
    return TABLES[table].cluster_by or TABLES[table].key


def laid(action: dict[str, Any], columns: Sequence[str]) -> Laid:
    """`Laid` from an entry of `Lake.actions`."""
    low, high = [], []
    for column in columns[:2]:
        least, most = action.get(f"min.{column}"), action.get(f"max.{column}")
        if least is None or most is None:
            break
        low.append(least)
        high.append(most)
        if least != most:  # the ranges of further columns say nothing once the first varies
            break
    return Laid(action["relative"], action["size_bytes"], action["num_records"] or 0, tuple(low), tuple(high))


def _after(high: tuple[Any, ...], low: tuple[Any, ...]) -> bool:
    """Whether a file that begins at ``low`` lies behind one that ends at ``high``; sharing the last key (a series in two files) is no overlap."""
    if high[0] != low[0]:
        return bool(high[0] < low[0])
    return len(high) < 2 or len(low) < 2 or bool(high[1] <= low[1])


def stale(files: Iterable[Laid]) -> list[list[Laid]]:
    """Groups of files that ``cluster`` lays anew: those whose ranges overlap, and neighbours that are too small, or would be once they are laid anew:
    what was laid out is at rest.

    Each group is a stretch of the key's range that no other file reaches into, so that its new files overlap nothing. Files without
    statistics of the key (all null) form a group of their own where they are small.
    """
    known = sorted((file for file in files if file.low), key=lambda file: (file.low[0], len(file.low) > 1, file.low[1:], file.path))
    blank = [file for file in files if not file.low]
    stretches: list[list[Laid]] = []
    reach: tuple[Any, ...] = ()
    for file in known:
        if stretches and not _after(reach, file.low):
            stretches[-1].append(file)
            reach = reach if _after(file.high, reach) else file.high
        else:
            stretches.append([file])
            reach = file.high
    groups: list[list[Laid]] = []
    run: list[Laid] = []
    for stretch in stretches:
        if sum(file.size for file in stretch) < SMALL_BYTES:
            run += stretch
            continue
        groups += [run, stretch]
        run = []
    groups += [run, [file for file in blank if file.size < SMALL_BYTES]]
    return [group for group in groups if len(group) > 1 and (_overlaps(group) or parts(group) < len(group))]


def _overlaps(group: Sequence[Laid]) -> bool:
    return any(file.low and before.low and not _after(before.high, file.low) for before, file in pairwise(group))


def small(files: Iterable[Laid]) -> list[list[Laid]]:
    """The one group of files that ``compact`` merges: those below 32 MB, where that makes fewer of them."""
    group = [file for file in files if file.size < SMALL_BYTES]
    return [group] if len(group) > 1 and parts(group) < len(group) else []


def parts(group: Sequence[Laid]) -> int:
    """Files that a group's rows should fill."""
    return max(1, round(sum(file.size for file in group) / NARROW_FILE_BYTES))


@dataclass(frozen=True)
class Work:
    """What one table needs: groups of files, each of which is laid anew."""

    table: str
    groups: tuple[tuple[Laid, ...], ...]

    @property
    def files(self) -> int:
        return sum(len(group) for group in self.groups)

    @property
    def bytes(self) -> int:
        return sum(file.size for group in self.groups for file in group)


def plan(lake: Lake, table: str, cluster: bool) -> Work:
    files = [laid(action, order(table)) for action in lake.actions(table)]
    return Work(table, tuple(tuple(group) for group in (stale(files) if cluster else small(files))))


def plans(lake: Lake, cluster: bool) -> list[Work]:
    """What there is to do, table by table; reads the logs only."""
    works = [plan(lake, table, cluster) for table in TABLES if table not in LEFT_ALONE and lake.exists(table)]
    return [work for work in works if work.groups]


def lay_out(lake: Lake, cluster: bool, batch_id: str, progress: Callable[[str], None] = lambda text: None) -> dict[str, dict[str, int]]:
    """Lays every narrow table out anew where it needs it: table -> {files_before, files_after, bytes_before, bytes_after, rows}."""
    done: dict[str, dict[str, int]] = {}
    for work in plans(lake, cluster):
        for _ in range(TRIES):
            progress(f"{'cluster' if cluster else 'compact'}: {work.table}, {work.files} files, {work.bytes / 1e6:.0f} MB")
            lost = False
            for group in work.groups:
                new = rewrite(lake, work.table, group, batch_id)
                if new is None:
                    lost = True
                    continue
                entry = done.setdefault(
                    work.table, dict.fromkeys(("files_before", "files_after", "bytes_before", "bytes_after", "rows"), 0)
                )
                entry["files_before"] += len(group)
                entry["files_after"] += len(new)
                entry["bytes_before"] += sum(file.size for file in group)
                entry["bytes_after"] += sum(file.size for file in new)
                entry["rows"] += sum(file.rows for file in new)
            if not lost:
                break
            work = plan(lake, work.table, cluster)  # an ingest job has changed one of the files meanwhile
    return done


def rewrite(lake: Lake, table: str, group: Sequence[Laid], batch_id: str) -> list[DataFile] | None:
    """Exchanges a group's files for sorted ones in one transaction; None where another job took one of them away meanwhile."""
    new = _sorted_files(lake, table, group, batch_id)
    before, after = sum(file.rows for file in group), sum(file.rows for file in new)
    if before != after:
        raise RuntimeError(f"{table}: {before} rows were read from {len(group)} files and {after} written; nothing was committed")

    def build(version: int) -> tuple[list[DataFile], list[DataFile]]:
        live = {action["relative"] for action in lake.actions(table, version)}
        if not all(file.path in live for file in group):
            return [], []
        return new, [DataFile(file.path, file.size, file.rows, "") for file in group]

    if lake.transact(table, build, metadata=lake.user_metadata(batch=batch_id, layout=True), data_change=False) is None:
        for file in new:
            lake.filesystem.delete_file(lake.folder(table, file.path))
        return None
    return new


def _sorted_files(lake: Lake, table: str, group: Sequence[Laid], batch_id: str) -> list[DataFile]:
    """The group's rows in new files, uncommitted. Runs lie in the batch's private folder meanwhile, which a vacuum clears after a kill."""
    private = lake.folder(PRIVATE, batch_id)
    job = Job(lake.uri, TABLES[table], order(table), batch_id, f"{private}/runs", BOUNDS, LIMITS)
    origins = [Origin(number, file.path, file.size) for number, file in enumerate(group)]
    at_once, files = cores(lake.spark), parts(group)

    def run(step: str, pieces: Sequence[Sequence[Any]], work: Any) -> list[Any]:
        return tasks.run(lake.spark, tasks.Journal.of(lake, batch_id, step), pieces, work, FOREVER_S)

    try:
        if files == 1:
            for done in run("direct", [origins], Direct(job)):
                return list(done)
        lake.filesystem.create_dir(job.folder, recursive=True)
        portions = tasks.split(origins, lambda origin: origin.size / READ_BYTES_PER_S, TASK_S, at_once)
        samples: list[Sample] = run("sample", portions, Sampler(job))
        count = min(files, max(3 * at_once, -(-files // FILES_A_TASK)))  # of tasks that gather
        cell_bytes = min(job.bounds.cell_bytes, sum(sample.bytes for sample in samples) / (CELLS_A_TASK * count))
        cut = cuts(samples, cell_bytes)
        runs: list[Run] = sorted(run("scatter", portions, Scatter(job, cut)), key=lambda run: (run.task, run.number))
        cells = [[run.pieces[cell] for run in runs if cell in run.pieces] for cell in range(len(cut) + 1)]
        sizes = [sum(piece.bytes for piece in cell) for cell in cells]
        together = list(loads(sizes, job.bounds.load_bytes))
        # A load's pieces in the order of the runs, whichever cell they are of: equal keys then stay in the order of their files.
        work = [[run.pieces[cell] for run in runs for cell in load if cell in run.pieces] for load in together]
        weights = [sum(sizes[cell] for cell in load) for load in together]
        return list(run("gather", [[work[load] for load in share] for share in shares(weights, count)], Gather(job)))
    finally:
        lake.filesystem_delete(private)
