"""A folder that others write into: look, let files settle, let series fall quiet, ingest; again until told to stop.

Spark's streaming engine gives the beat (one micro-batch a look, numbered in a checkpoint below the lake); *what* a look takes is decided by
the ledger alone, as for every other input. So a kill at any instant costs nothing but the work since the last commit.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.keys import Ids
from medspark.lake.archive import is_archive
from medspark.lake.arrivals import Arrivals
from medspark.lake.files import PRIVATE, locate
from medspark.lake.ingest import Ingest, Summary
from medspark.lake.scan import Found, Scanned, opened_up, to_path, walk
from medspark.series.dicomweb import is_address

log = logging.getLogger("medspark.watch")

WAKE_S = 0.2  # the main thread looks for a signal so often
# Spark's two ways of telling that another stream wrote this batch's offsets: found there before the write, and met by its rename.
TWO_STREAMS = ("CONCURRENT_STREAM_LOG_UPDATE", "Multiple streaming queries are concurrently using")
GROUP_S = 0.5  # service managers signal the whole process group: after so long Spark's process shows whether it ends, too


class Watch:
    """One watched folder and one ingest run into which everything goes. Final."""

    def __init__(self, ingest: Ingest, once: bool = False) -> None:
        self.ingest, self.once = ingest, once
        ((self.dataset, self.folders, _),) = ingest.roots()
        settings = ingest.settings
        self.settle_s, self.poll_s = settings.watch.settle_s, settings.watch.poll_s
        self.arrivals = Arrivals(self.settle_s, 0.0 if once else settings.series.quiet_s)
        self.stop, self.told = threading.Event(), threading.Event()  # an end for whatever reason; SIGTERM
        self.error: BaseException | None = None
        self._exhausted: set[Found] = set()  # archives of which everything is in the ledger: their directories are not read again
        self._working = threading.Lock()

    def run(self) -> Summary:
        """Looks until SIGTERM (or, with ``once``, until what stood still is in the lake). The current batch is always finished."""
        self.ingest.open()
        self.ledger = self.ingest.ledger()
        with _on_sigterm(self.told, self.stop):
            query = self._start()
            try:
                while query.isActive and not self.stop.wait(WAKE_S):
                    pass
                with self._working:  # never in the middle of a look
                    self.stop.set()
                    query.stop()
                failure = query.exception()
                if failure is not None:
                    self.error = self.error or self._failure(str(failure))
            except Exception as error:
                self.error = self.error or error
        if self.told.is_set():
            time.sleep(GROUP_S)
        if self._spark_has_gone() or (self.error is not None and self.told.is_set()):
            raise KeyboardInterrupt from None
        if self.error is not None:
            raise self.error
        said = self.ingest.summary.extra
        said.pop("unavailable", None)  # counts every try; what has been read since, or has gone, is nothing to come back for
        if len(self.arrivals):
            said["waiting"] = len(self.arrivals)
        if self.arrivals.unread:
            said["unavailable"] = self.arrivals.unread
        return self.ingest.close()

    def _failure(self, text: str) -> Exception:
        """The stream's own end as an error of ours."""
        if any(words in text for words in TWO_STREAMS):
            return BadRequest(f"--watch {self.ingest.request.inputs[0]}: another job watches this folder for this lake")
        return RuntimeError(f"the stream ended: {text[:2000]}")

    def _spark_has_gone(self) -> bool:
        try:
            return bool(self.ingest.lake.spark._jsc.sc().isStopped())
        except Exception:  # whatever a broken connection raises
            return True

    def _start(self) -> Any:
        lake = self.ingest.lake
        name = Ids(None).digest("watch", self.dataset, *self.folders)[:16]
        stream = lake.spark.readStream.format("rate-micro-batch").option("rowsPerBatch", 1).load()
        writer = stream.writeStream.foreachBatch(self._micro_batch).option("checkpointLocation", lake.path(f"{PRIVATE}/watch/{name}"))
        beat = {"availableNow": True} if self.once else {"processingTime": f"{round(self.poll_s * 1000)} milliseconds"}
        return writer.trigger(**beat).start()

    def _micro_batch(self, frame: Any, number: int) -> None:
        """Nothing of the beat itself is read. An error ends the watch in the main thread, where it is told like any other."""
        with self._working:
            if self.stop.is_set():
                return
            run = self.ingest
            # On the stream's own thread, which the main thread's job group does not reach.
            run.lake.spark.sparkContext.setJobGroup(run.run_id, f"medspark {run.kind.job} --watch")
            try:
                if self.once:
                    self._all_at_rest()
                else:
                    self.look()
            except BaseException as error:
                self.error = error
                self.stop.set()

    def _all_at_rest(self) -> None:
        """Two looks, `settle_s` apart, and as many more as it takes where not everything that is there may wait at once."""
        self.look()
        idle = False
        while not self.stop.wait(self.settle_s):
            all_seen = self.arrivals.complete
            taken = self.look()
            if all_seen or (idle and not taken):
                return
            idle = not taken

    def look(self) -> int:
        """One look: what has settled is scanned, what is quiet is ingested. Returns the number of files ingested."""
        taken = 0
        try:
            settled = self.arrivals.look(self._unknown(), time.monotonic(), time.time())
        except OSError as error:  # a file server that is away for a moment
            if self.once:
                raise BadRequest(f"--watch {self.folders[0]}: cannot be listed ({type(error).__name__})") from None
            log.warning("the folder cannot be listed; the next look tries again", extra={"said": {"error": type(error).__name__}})
            return taken
        for chunk in self._chunks([[found] for found in settled]):
            asked = set(chunk)  # a DICOMDIR also names files that are not there yet: they are no concern of this look
            scanned = [one for one in self.ingest.scan(self.dataset, chunk) if one.found in asked and _unchanged(one.found)]
            self.arrivals.hold(scanned, self.ingest.parents(self.dataset, scanned))
            for found in asked - {one.found for one in scanned}:
                self.arrivals.put_back(found, time.monotonic())
            if self.stop.is_set():
                return taken
        for batch in self._chunks(self.arrivals.quiet(time.monotonic())):
            self.ingest.ingest(self.dataset, batch)
            taken += len(batch)
            if self.stop.is_set():
                break
        return taken

    def _unknown(self) -> Iterator[Found]:
        """What the ledger does not know, archives opened up as for ``--input``: their members are files of their own.

        A member waits for its own series, so the archive's own row may be in the ledger before those of its members.
        """
        self.ledger.refresh()
        kind, guard = self.ingest.kind, self.ingest.settings.guard
        for file in walk(self.folders, [], self.ingest.access, self.ingest.lake.spark):
            if file in self._exhausted:
                continue
            whole = True
            for found in opened_up([file], kind, guard):
                if not self.ledger.knows(self.dataset, found):
                    whole = False
                    yield found
            if whole and is_archive(file.uri):
                self._exhausted.add(file)

    def _chunks(self, groups: Sequence[Sequence[Any]]) -> Iterator[list[Any]]:
        """Batches bounded by count and bytes as everywhere, whole groups together where they fit."""
        bounds = self.ingest.settings.ingest
        batch: list[Any] = []
        size = 0
        for group in groups:
            weight = sum(_found(one).size for one in group)
            if batch and (len(batch) + len(group) > bounds.batch_sources or size + weight > bounds.batch_bytes):
                yield batch
                batch, size = [], 0
            batch = [*batch, *group]
            size += weight
            while len(batch) > bounds.batch_sources:
                yield batch[: bounds.batch_sources]
                batch = batch[bounds.batch_sources :]
        if batch:
            yield batch


def _found(one: Found | Scanned) -> Found:
    return one.found if isinstance(one, Scanned) else one


def _unchanged(found: Found) -> bool:
    """Whether the file is still the one that was listed: nobody wrote into it while it was read. A member has its archive's time.

    A member that the listing refuses (encrypted, a place outside) was not read at all.
    """
    if found.fault is not None and not found.archive:
        return True
    uri = found.uri if found.member is None else found.member.archive
    if uri.startswith("file://"):
        try:
            stat = os.stat(to_path(uri))
        except FileNotFoundError:
            return False
        size, modified_us = stat.st_size, stat.st_mtime_ns // 1000
    else:
        filesystem, path, _ = locate(uri)
        info = filesystem.get_file_info(path)
        size, modified_us = info.size, (info.mtime_ns or 0) // 1000
    return modified_us == found.modified_us and (found.member is not None or size == found.size)


def check(folder: str, once: bool, retry_rejected: bool, dry_run: bool) -> None:
    """Refuses what cannot be watched, before any Spark work."""
    if is_address(folder):
        raise BadRequest(f"--watch {folder}: expected a folder; a DICOMweb address is an --input, and asked again at every run")
    filesystem, path, _ = locate(folder)
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        raise BadRequest(f"--watch {folder}: no such folder")
    if dry_run:
        raise BadRequest("--watch and --dry-run exclude each other; --input with --dry-run shows what a folder holds")
    if retry_rejected and not once:
        raise BadRequest("--watch with --retry-rejected would try for ever; add --once")


@contextmanager
def _on_sigterm(*events: threading.Event) -> Iterator[None]:
    """SIGTERM sets the events instead of ending the process (where this is the main thread; another has no say in signals)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: [event.set() for event in events])
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
