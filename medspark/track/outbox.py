"""Sends what a run says, in order, from a thread of its own: a server that is away for a while delays the sending and nothing else.

Knows no MLflow: `runs` gives it a function that sends. What could not be sent when the run ends is kept in a folder, for `runs.deliver`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

log = logging.getLogger("medspark.track")

FLUSH_S = 1.0  # metrics are gathered for so long: a run that makes 20 steps a second sends once, not 20 times
PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # after the first failure; doubles up to the second
PATIENCE_S = 60.0  # for a server that is away when the run ends
HOPELESS = 3  # failures of one entry while the server answers other questions: the fault lies in the entry
MOST_POINTS = 200_000  # metric values that wait: about 50 MB; later ones are lost and counted
MOST_STAGED_BYTES = 4 << 30  # files that wait
BATCH_POINTS, BATCH_WORDS = 1000, 100  # MLflow's limits for one request
LEFT = "entries.jsonl"

Kind = Literal["params", "tags", "metrics", "file", "inputs", "end"]


class Refused(Exception):
    """The server is there and does not take this entry: no use in trying again."""


@dataclass(frozen=True)
class Entry:
    """params, tags : {name: text};  metrics : [[name, value, ms, step], ...];  file : {"name" within the staging folder, "folder" of the run};
    inputs : {name: text};  end : {"status", "ms"}"""

    kind: Kind
    content: Any = field(default_factory=dict)

    @property
    def points(self) -> int:
        return len(self.content) if self.kind == "metrics" else 0


class Outbox:
    """A queue with one sender.

    send : sends an entry, or raises `Refused`; any other error means that the server is away
    alive : whether the server answers; asked after a failure
    folder : where copies of files wait (made anew, mode 0700, removed when empty)
    """

    def __init__(self, send: Callable[[Entry, Path], None], alive: Callable[[], bool], folder: Path) -> None:
        folder.mkdir(parents=True, mode=0o700)
        self._send, self._alive, self.folder = send, alive, folder
        self._entries: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._closing = self._abandoned = False
        self._points = self._staged = 0
        self.lost = self.refused = 0
        self._thread = threading.Thread(target=self._work, name="medspark tracker", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        with self._changed:
            if self._abandoned:  # closed: a bug of the caller's, and no reason to stop what it does
                log.warning("said after the tracker was closed, and not sent: %s", entry.kind)
                return
            if self._points + entry.points > MOST_POINTS:
                if not self.lost:
                    log.warning("the tracking server has been away for long: metrics are being lost")
                self.lost += entry.points
                return
            self._points += entry.points
            last = self._entries[-1] if self._entries else None  # where it is on its way, `_sent` leaves what was added
            if last is not None and last.kind == entry.kind == "metrics" and last.points + entry.points <= BATCH_POINTS:
                last.content.extend(entry.content)
            else:
                self._entries.append(entry)
            self._changed.notify_all()

    def put_file(self, file: Path, folder: str) -> None:
        """A copy of a file or folder; the caller may change or remove its own at once."""
        size = sum(item.stat().st_size for item in ([file] if file.is_file() else file.rglob("*")) if item.is_file())
        if self._staged + size > MOST_STAGED_BYTES:
            log.warning("the tracking server has been away for long: %s is not kept", file.name)
            self.lost += 1
            return
        place = Path(tempfile.mkdtemp(dir=self.folder)) / file.name
        if file.is_dir():
            shutil.copytree(file, place)
        else:
            shutil.copyfile(file, place)
        with self._changed:
            self._staged += size
        self.put(Entry("file", {"name": str(place.relative_to(self.folder)), "folder": folder, "bytes": size}))

    def close(self, patience_s: float = PATIENCE_S) -> bool:
        """Sends the rest; False where that was not possible and what is left lies in `folder`. A second call does nothing."""
        with self._changed:
            if self._abandoned:
                return not self._entries
            self._closing = True
            self._changed.notify_all()
        self._thread.join(patience_s)
        with self._changed:
            self._abandoned = True
            left = list(self._entries)
        if left:
            try:
                keep(self.folder, left)
                log.warning("the tracking server does not answer; what it lacks is kept and sent by a later run")
            except OSError as error:
                log.warning("the tracking server does not answer, and what it lacks cannot be kept (%s)", error.strerror)
            return False
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def flush(self, patience_s: float = PATIENCE_S) -> bool:
        """Waits until everything said so far is sent; False where the patience ended first."""
        ends = time.monotonic() + patience_s
        with self._changed:
            self._changed.wait_for(lambda: not self._entries, max(0.0, ends - time.monotonic()))
            return not self._entries

    # ---- the sender

    def _work(self) -> None:
        pause, failures = PAUSE_S, 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing)
                if not self._entries:
                    return
                if self._entries[0].kind == "metrics":
                    self._changed.wait_for(lambda: self._closing or len(self._entries) > 1, FLUSH_S)
                entry = self._entries[0]
                entry = Entry(entry.kind, list(entry.content) if entry.kind == "metrics" else entry.content)
            try:
                self._send(entry, self.folder)
            except Refused as error:
                self.refused += 1
                log.warning("the tracking server refuses %s: %s", entry.kind, error)
            except Exception as error:  # whatever a client raises where its server is away
                failures += self._alive()
                if failures < HOPELESS:
                    log.warning("the tracking server does not take %s (%s); again in %.0f s", entry.kind, type(error).__name__, pause)
                    with self._changed:
                        if self._changed.wait_for(lambda: self._abandoned, pause):
                            return
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                    continue
                self.refused += 1
                log.warning("the tracking server never takes this %s (%s); it is left out", entry.kind, type(error).__name__)
            self._sent(entry)
            pause, failures = PAUSE_S, 0

    def _sent(self, entry: Entry) -> None:
        with self._changed:
            if self._abandoned:  # it is in the list of what is left, too; sent twice it is the same
                return
            if entry.kind == "file":
                shutil.rmtree((self.folder / entry.content["name"]).parent, ignore_errors=True)
            first = self._entries[0]
            self._points -= entry.points
            if entry.kind == "metrics" and first.points > entry.points:  # more came in while it was on its way
                self._entries[0] = Entry("metrics", first.content[entry.points :])
            else:
                self._entries.popleft()
            self._staged -= entry.content["bytes"] if entry.kind == "file" else 0
            self._changed.notify_all()


def keep(folder: Path, entries: Sequence[Entry]) -> None:
    """Writes entries that were not sent beside their files."""
    lines = [json.dumps([entry.kind, entry.content]) for entry in entries]
    temporary = folder / f".{LEFT}.{os.getpid()}"
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(folder / LEFT)


def kept(folder: Path) -> list[Entry]:
    """Inverse of `keep`."""
    return [Entry(*json.loads(line)) for line in (folder / LEFT).read_text().splitlines()]
