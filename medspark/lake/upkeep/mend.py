"""Makes damaged payload again from the originals, and exchanges the damaged files. Part of every ingest job; nothing to do on a sound lake.

A source whose images `verify` found damaged counts as new once more, but only its pixels are made, and only those that were lost. Narrow
rows, labels and the ledger stay as they are, so nothing can come twice. The files are exchanged in one transaction on ``pixels``, when every
lost image of them is there again; a kill before it leaves uncommitted files, which a vacuum removes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.errors import Rejected
from medspark.lake import tasks
from medspark.lake.explode import PayloadWriter, TaskResult
from medspark.lake.files import PRIVATE, DataFile, locate
from medspark.lake.store import Lake
from medspark.lake.upkeep import damage
from medspark.lake.upkeep.alone import Busy, beside
from medspark.lake.upkeep.check import UNREADABLE
from medspark.tables.catalog import PIXELS
from medspark.tables.work import SourceFile, Unit

WORK = "mend"
CRASH_S = 600.0


@dataclass
class Outcome:
    """``mended`` : images made again; ``left`` : images whose originals were not among the input, or gave something else."""

    mended: int = 0
    left: int = 0


def mend(
    lake: Lake,
    lost: Sequence[damage.Lost],
    units: Sequence[Unit],
    explode: Callable[[str, Sequence[Unit], frozenset[str]], list[TaskResult]],
    run_id: str,
    lease_s: float,
) -> Outcome:
    """Mends what the units' sources allow.

    explode : (batch_id, units, image ids) -> results whose payload holds those of the images that the units gave
    """
    outcome = Outcome()
    with ExitStack() as stack:
        try:
            batch = stack.enter_context(beside(lake, WORK, run_id, lease_s))
        except Busy:  # it mends the same files; what it leaves is mended the next time
            return Outcome(left=sum(len(one.images) for one in lost))
        for one in lost:
            if not all(set(sources) & {source.source_id for unit in units for source in unit.sources} for sources in one.images.values()):
                outcome.left += len(one.images)
                continue
            mine = [unit for unit in units if any(source.source_id in one.sources for source in unit.sources)]
            results = explode(batch.batch_id, mine, frozenset(one.images))
            new = _exchange(lake, one, [file.path for result in results for file in result.payload], batch.batch_id)
            if new:
                outcome.mended += len(one.images)
            else:
                outcome.left += len(one.images)
    lake.filesystem_delete(lake.folder(PRIVATE, batch.batch_id))
    damage.clear(lake)
    return outcome


def _exchange(lake: Lake, lost: damage.Lost, made: Sequence[str], batch_id: str) -> bool:
    actions = {action["relative"]: action for action in lake.actions("pixels")}
    if not set(lost.paths) <= set(actions):
        return True  # another job has exchanged them meanwhile
    old = [actions[path] for path in lost.paths]
    work = Splicer(lake.uri, tuple(lost.paths), tuple(made), frozenset(lost.images), batch_id, old[0]["min.run_id"], old[0]["min.batch_id"])
    results = tasks.run(lake.spark, tasks.Journal.of(lake, batch_id, "exchange"), [[0]], work, CRASH_S)
    new = [file for result in results for file in result]
    if sum(file.rows for file in new) != sum(action["num_records"] for action in old):
        return False

    def build(version: int) -> tuple[list[DataFile], list[DataFile]]:
        live = {action["relative"] for action in lake.actions("pixels", version)}
        if not set(lost.paths) <= live:
            return [], []
        return new, [DataFile(action["relative"], action["size_bytes"], action["num_records"], "") for action in old]

    lake.transact("pixels", build, metadata=lake.user_metadata(batch=batch_id, mended=len(lost.images)))
    return True


@dataclass(frozen=True)
class Splicer:
    """The work of one task: the damaged files' sound rows and the images made again, in new files. One row group in memory at a time."""

    uri: str
    paths: tuple[str, ...]
    made: tuple[str, ...]
    lost: frozenset[str]
    batch_id: str
    run_said: str
    batch_said: str

    def __call__(self, items: Iterable[int], watch: tasks.Watcher, partition: int) -> Iterator[list[DataFile]]:
        filesystem, root, _ = locate(self.uri)
        again = Again(filesystem, [f"{root}/pixels/{name}" for name in self.made])
        writer = PayloadWriter(filesystem, root, self.batch_id)
        for path in self.paths:
            try:
                watch(SourceFile(path, path, "", 0, ""))
                groups = list(_groups(filesystem, f"{root}/pixels/{path}"))
            except Rejected:  # Arrow's reader ended the process on it: nothing of it is kept
                groups = []
            for group in groups:
                for rows in self._sound(group, again):
                    writer.write(self._signed(rows))
        for rows in again.rest():
            writer.write(self._signed(rows))
        yield writer.close()

    def _sound(self, group: Callable[[], pa.Table], again: Again) -> Iterator[pa.RecordBatch]:
        """A readable row group with its lost rows replaced in their places; nothing where it cannot be read."""
        try:
            rows = group()
            ids = [str(one) for one in rows.column("image_id").to_pylist()]
        except UNREADABLE:
            return
        start = 0
        for place, image_id in enumerate(ids):
            if image_id in self.lost:
                yield from rows.slice(start, place - start).to_batches()
                replaced = again.take(image_id)
                if replaced is not None:
                    yield replaced
                start = place + 1
        yield from rows.slice(start).to_batches()

    def _signed(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """As the batch that first wrote the images: each payload file holds the rows of one batch."""
        values: dict[str, Any] = {"run_id": self.run_said, "batch_id": self.batch_said}
        arrays = [pa.array([values[name]] * rows.num_rows, pa.string()) if name in values else rows.column(name) for name in PIXELS.names]
        return pa.RecordBatch.from_arrays(arrays, schema=PIXELS.arrow())


def _groups(filesystem: pafs.FileSystem, path: str) -> Iterator[Callable[[], pa.Table]]:
    """Readers of a payload file's row groups; none where its footer cannot be read."""
    try:
        file = pq.ParquetFile(filesystem.open_input_file(path))
    except UNREADABLE:
        return
    for group in range(file.num_row_groups):
        yield lambda group=group: file.read_row_group(group)  # type: ignore[misc]


@dataclass
class Again:
    """Images made again, by id, out of the payload files that hold them; each is taken once."""

    filesystem: pafs.FileSystem
    paths: Sequence[str]
    _places: dict[str, tuple[str, int]] = field(default_factory=dict)
    _files: dict[str, pq.ParquetFile] = field(default_factory=dict)
    _cached: tuple[tuple[str, int], pa.Table] | None = None

    def __post_init__(self) -> None:
        for path in self.paths:
            self._files[path] = pq.ParquetFile(self.filesystem.open_input_file(path))
            for group in range(self._files[path].num_row_groups):
                for image_id in self._files[path].read_row_group(group, columns=["image_id"]).column(0).to_pylist():
                    self._places.setdefault(image_id, (path, group))

    def _rows(self, place: tuple[str, int]) -> pa.Table:
        if self._cached is None or self._cached[0] != place:
            self._cached = (place, self._files[place[0]].read_row_group(place[1]))
        return self._cached[1]

    def take(self, image_id: str) -> pa.RecordBatch | None:
        place = self._places.pop(image_id, None)
        if place is None:
            return None
        rows = self._rows(place)
        at = rows.column("image_id").to_pylist().index(image_id)
        return rows.slice(at, 1).combine_chunks().to_batches()[0]

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Those that no readable row group had a place for, in the order in which they were made."""
        for image_id in list(self._places):
            row = self.take(image_id)
            if row is not None:
                yield row
