"""Runs pure work in Spark tasks so that a decoder that crashes or hangs its process costs one source, not the job.

Before each piece of foreign decoding the work calls ``watch(source, what)``. The watch journals what is open and arms a timer that lives
outside Python (faulthandler's C thread): a decoder that holds the interpreter for ever is ended with its process. Spark tries the task
again; the new attempt reads the journals of the earlier ones and its watch raises `Rejected` for what was open when they died. When
Spark itself gives up (``local[2]`` never tries twice), the driver submits the stage again as long as each failure names a new culprit.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys
import tempfile
import time
import zipimport
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs as pafs
from pyspark import TaskContext
from pyspark.sql import SparkSession

from medspark.errors import Rejected
from medspark.lake.files import PRIVATE
from medspark.lake.store import Lake
from medspark.tables.work import SourceFile

WHOLE = ""  # `what` of a culprit that is rejected whatever part of it is asked for
PROOF = 2  # attempts that ended with the same step open
STRIKES = 2  # parts of one source that may kill a process before the whole source is given up
ALONE = "alone"  # in the name of an attempt whose stage had no other task
SLOWEST_BYTES_PER_S = (
    5e6  # of one decoder on one core: a step on a large file (a thumbnail of a slide without pyramid) may take this much longer
)
SLACK_S = 1.0  # the timer is armed once in this time (or a quarter of its seconds), not at each step: arming starts a thread, 50 µs a time
RESUBMISSIONS = 25  # of one stage by the driver; each must have found a new culprit


class Unwritable(BaseException):
    """The lake's disk is full, or gone: no fault of the source, so it passes every handler that would reject one, and ends the task."""


@dataclass(frozen=True)
class Journal:
    """Where the attempts of a stage write what they have open.

    folder : str    on ``filesystem``; on a local lake every step is one small write, elsewhere only attempts after a failure are journalled
    """

    folder: str
    local: bool
    filesystem: pafs.FileSystem

    @classmethod
    def of(cls, lake: Lake, batch_id: str, stage: str = "journal") -> Journal:
        """The journal of a batch's stage, in the lake's private folder."""
        return cls(lake.folder(PRIVATE, batch_id, stage), isinstance(lake.filesystem, pafs.LocalFileSystem), lake.filesystem)

    def culprits(self, partition: int | None = None) -> dict[tuple[str, str], str]:
        """(source_id, what) -> DECODER_CRASHED | DECODER_TIMEOUT of what killed its process.

        One attempt that ended with a step open is a suspicion only: Spark also ends the innocent (a stage that is given up, a lost
        executor). Two attempts are proof, and so is one that ran alone.
        """
        seen: dict[tuple[str, str], int] = {}
        codes: dict[tuple[str, str], str] = {}
        for name, entry, code in self._open():
            if partition is not None and not name.startswith(f"{partition}-"):
                continue
            seen[entry] = seen.get(entry, 0) + (PROOF if ALONE in name else 1)
            codes[entry] = code
        found = {entry: codes[entry] for entry, times in seen.items() if times >= PROOF}
        for source in {source for source, _ in found}:
            parts = [entry for entry in found if entry[0] == source]
            if len(parts) >= STRIKES:
                found[(source, WHOLE)] = found[parts[0]]
        return found

    def suspects(self) -> dict[int, int]:
        """partition -> how many of its attempts ended with something open."""
        counts: dict[int, int] = {}
        for name, _, _ in self._open():
            partition = int(name.split("-", 1)[0])
            counts[partition] = counts.get(partition, 0) + 1
        return counts

    def _open(self) -> Iterator[tuple[str, tuple[str, str], str]]:
        for info in self.filesystem.get_file_info(pafs.FileSelector(self.folder, allow_not_found=True)):
            if not info.path.endswith(".open"):
                continue
            with self.filesystem.open_input_file(info.path) as stream:
                text = stream.read().decode().split("\n", 1)[0].strip()
            if text:
                entry, trace = json.loads(text), info.path.removesuffix(".open") + ".trace"
                timed = self.local and os.path.exists(trace) and os.path.getsize(trace) > 0
                yield os.path.basename(info.path), (entry["source"], entry["what"]), "DECODER_TIMEOUT" if timed else "DECODER_CRASHED"


@dataclass
class Watcher:
    """The `Watch` of one task attempt.

    seconds : that a step may take, and one more for every 5 MB of the file; it is never ended earlier, and at most `SLACK_S` later (the timer
        then still runs from an earlier step)
    """

    journal: Journal
    name: str
    attempt: int
    seconds: float
    culprits: dict[tuple[str, str], str]
    _stream: Any = None
    _trace: Any = None
    _last: str = field(default="", repr=False)
    _armed: float = -math.inf
    _allowed: float = 0.0

    def __call__(self, source: SourceFile, what: str = "") -> None:
        code = self.culprits.get((source.source_id, what)) or self.culprits.get((source.source_id, WHOLE))
        if code is not None:
            how = "did not end in time" if code == "DECODER_TIMEOUT" else "ended its process"
            raise Rejected(code, f"decoding it {how}")
        text = json.dumps({"source": source.source_id, "what": what})
        try:
            if text != self._last:
                self._write(text)
            self._arm(self.seconds + source.size_bytes / SLOWEST_BYTES_PER_S)
        except OSError as error:
            raise Unwritable(f"the task's journal cannot be written: {error}") from None

    def _arm(self, allowed: float) -> None:
        now, slack = time.monotonic(), min(SLACK_S, self.seconds / 4)
        if now - self._armed < slack and allowed <= self._allowed:
            return
        self._armed, self._allowed = now, allowed
        if self._trace is None:
            folder = self.journal.folder if self.journal.local else tempfile.gettempdir()
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._trace = open(os.path.join(folder, f"{self.name}.trace"), "wb", buffering=0)  # noqa: SIM115 (lives as long as the task)
        faulthandler.dump_traceback_later(allowed + slack, exit=True, file=self._trace)

    def _write(self, text: str) -> None:
        if self.journal.local:
            if self._stream is None:
                os.makedirs(self.journal.folder, mode=0o700, exist_ok=True)
                self._stream = os.open(os.path.join(self.journal.folder, f"{self.name}.open"), os.O_CREAT | os.O_WRONLY, 0o600)
            # Padded to the last length and ended by a line break: a shorter entry must not keep the tail of a longer one.
            os.pwrite(self._stream, (text.ljust(len(self._last)) + "\n").encode(), 0)
        elif self.attempt > 0:
            with self.journal.filesystem.open_output_stream(f"{self.journal.folder}/{self.name}.open") as stream:
                stream.write(text.encode())
        self._last = text

    def done(self) -> None:
        """Nothing is open any more."""
        faulthandler.cancel_dump_traceback_later()
        self._armed, self._last = -math.inf, ""
        if self._stream is not None:
            os.ftruncate(self._stream, 0)
            os.close(self._stream)
            self._stream = None
        elif not self.journal.local and self.attempt > 0:
            self._write("")
        if self._trace is not None:
            self._trace.close()
            self._trace = None


def run(
    spark: SparkSession,
    journal: Journal,
    parts: Sequence[Sequence[Any]],
    work: Callable[[Iterable[Any], Watcher, int], Iterator[Any]],
    seconds: float,
) -> list[Any]:
    """``work(items, watch, partition)`` over each part in a task of its own; returns what all of them yielded (small records only).

    parts : sequence of lists of picklable items
    seconds : time that one watched step may take
    """
    if not parts:
        return []
    journal.filesystem.create_dir(journal.folder, recursive=True)
    results: list[Any] = []
    pending = dict(enumerate(parts))
    for submission in range(RESUBMISSIONS):
        try:
            return results + _submit(spark, journal, pending, work, seconds, submission)
        except Exception:
            before = journal.suspects()
            if not any(partition in pending for partition in before):
                raise  # nothing was open: a bug, or Spark itself
        # Spark has given the stage up. Whoever had something open runs alone now: what dies alone is the culprit.
        for partition in [partition for partition in before if partition in pending]:
            results += _alone(spark, journal, partition, pending.pop(partition), work, seconds, submission)
        if not pending:
            return results
    raise AssertionError("unreachable: every submission ends at least one part")


def _alone(
    spark: SparkSession, journal: Journal, partition: int, part: Sequence[Any], work: Any, seconds: float, submission: int
) -> list[Any]:
    for again in range(RESUBMISSIONS):
        before = set(journal.culprits())
        try:
            return _submit(spark, journal, {partition: part}, work, seconds, f"{submission}{ALONE}{again}")
        except Exception:
            if set(journal.culprits()) <= before or again == RESUBMISSIONS - 1:
                raise
    raise AssertionError("unreachable")


def _submit(
    spark: SparkSession, journal: Journal, parts: dict[int, Sequence[Any]], work: Any, seconds: float, submission: int | str
) -> list[Any]:
    numbers = list(parts)

    def task(place: int, chunks: Iterable[Sequence[Any]]) -> Iterator[Any]:
        partition, context = numbers[place], TaskContext.get()
        attempt = context.attemptNumber() if context is not None else 0
        again = attempt > 0 or submission != 0
        watcher = Watcher(journal, f"{partition}-{submission}-{attempt}", int(again), seconds, journal.culprits(partition) if again else {})
        try:
            for chunk in chunks:
                yield from work(chunk, watcher, partition)
        finally:
            watcher.done()
            _forget_archives()

    return spark.sparkContext.parallelize(list(parts.values()), len(parts)).mapPartitionsWithIndex(task).collect()


def _forget_archives() -> None:
    """Drops the import system's readers of zip files.

    Spark's worker calls ``importlib.invalidate_caches`` before every task, which makes them read the directory of pyspark.zip again: 0.13 s a
    task, ten times what the task itself costs. An import that needs the archive opens it anew.
    """
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimport.zipimporter):
            del sys.path_importer_cache[path]


def split(items: Sequence[Any], weigh: Callable[[Any], float], target: float, at_once: int) -> list[list[Any]]:
    """Contiguous parts of about equal cost: at most ``target`` seconds each, and, where there is enough work, three for every core."""
    if not items:
        return []
    costs = [weigh(item) for item in items]
    aim = min(target, max(sum(costs) / (3 * at_once), 0.5))
    parts: list[list[Any]] = [[]]
    filled = 0.0
    for item, cost in zip(items, costs, strict=True):
        if parts[-1] and filled + cost > aim:
            parts.append([])
            filled = 0.0
        parts[-1].append(item)
        filled += cost
    return parts
