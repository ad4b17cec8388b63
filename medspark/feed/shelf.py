"""A folder of blobs on the local disk with a byte budget, shared by the processes of a node and safe to kill at any instant.

An index (SQLite) says what lies there and when each blob is due next. A blob's place is reserved before it is written, so that the budget
holds at every moment; what a dead process reserved, and files that the index does not know, are cleared when the shelf is opened. A blob is
compared with its checksum whenever it is read: a damaged one is dropped, and counts as not there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c

from medspark.errors import BadRequest
from medspark.lake.owner import Owner, current

INDEX = "index.db"
OVERDUE = 0.25  # epochs: a blob that was due this long ago and not fetched belongs to a run that has gone, and leaves first
RETRY_S = 0.005  # between two tries at what SQLite does not wait for
BUSY_S = 60.0  # that a process waits for another's transaction, which takes milliseconds


def _else(otherwise: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What a method says when the index cannot be used (disk full, damaged, locked for a minute): copies cost speed then, never the run."""

    def wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Shelf, *args: Any, **named: Any) -> Any:
            try:
                return method(self, *args, **named)
            except sqlite3.Error:
                self.failed += 1
                return otherwise

        return call

    return wrapped


class Shelf:
    """``budget_bytes`` bound the blobs' sizes together, over all processes that opened the folder with the same budget."""

    def __init__(self, folder: str, budget_bytes: int) -> None:
        """Raises `BadRequest` for a folder that is not ours alone, or whose disk has no room for the budget."""
        self.evicted = 0
        self.damaged = 0
        self.failed = 0
        self._root = Path(folder).expanduser()
        self._budget = budget_bytes
        self._owner = str(current())
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        if budget_bytes <= 0:
            raise BadRequest(f"cache budget {budget_bytes}: expected a number of bytes above 0")
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._root.stat()
        except OSError as error:
            raise BadRequest(f"cache folder {folder}: {os.strerror(error.errno or 0)}; name a folder on a local disk") from None
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise BadRequest(f"cache folder {folder}: others could read patients' images there; name a new folder, or chmod 700 your own")
        with self._transaction() as index:
            index.execute(
                "CREATE TABLE IF NOT EXISTS blobs (key TEXT PRIMARY KEY, bytes INTEGER, crc INTEGER, due REAL, owner TEXT, ready INTEGER)"
            )
            index.execute("CREATE INDEX IF NOT EXISTS by_due ON blobs (ready, due)")
            self._clear(index)
            used = self._used(index)
        free = shutil.disk_usage(self._root).free
        if budget_bytes - used > free:
            raise BadRequest(
                f"cache folder {folder}: a budget of {budget_bytes} bytes needs {budget_bytes - used} more, its disk has {free} free"
            )

    @_else(None)
    def get(self, key: str, due: float | None = None) -> bytes | None:
        """The blob, or None where it is not there (or damaged: then it is dropped). due : when it is needed next after this"""
        with self._transaction() as index:
            row = index.execute("SELECT bytes, crc FROM blobs WHERE key = ? AND ready = 1", (key,)).fetchone()
            if row is not None and due is not None:
                index.execute("UPDATE blobs SET due = ? WHERE key = ?", (due, key))
        if row is None:
            return None
        try:
            data = (self._root / key).read_bytes()
        except OSError:
            data = b""  # evicted by another process since; or a disk that fails
        if len(data) == row[0] and google_crc32c.value(data) == row[1]:
            return data
        self.damaged += 1
        self.drop(key)
        return None

    @_else(False)
    def has(self, key: str, due: float, now: float) -> bool:
        """Whether the blob is there, or being written; notes that it is needed at ``due``, unless it is known to be needed before."""
        with self._transaction() as index:
            found = index.execute("SELECT 1 FROM blobs WHERE key = ?", (key,)).fetchone() is not None
            if found:
                index.execute("UPDATE blobs SET due = ? WHERE key = ? AND NOT (due >= ? AND due < ?)", (due, key, now, due))
        return found

    @_else(False)
    def room(self, size: int, due: float, now: float) -> bool:
        """Whether a blob of ``size`` bytes that is due then would be taken in, if it were offered now."""
        with self._transaction() as index:
            return self._victims(index, size, due, now) is not None

    @_else(False)
    def put(self, key: str, data: bytes, due: float, now: float) -> bool:
        """Takes the blob in, where those that leave for it are needed later than ``due``; False where not, or where the disk refuses.

        due, now : epochs    what is needed furthest from now leaves first: no other choice misses less often (Belady 1966)
        """
        with self._transaction() as index:
            if index.execute("SELECT 1 FROM blobs WHERE key = ?", (key,)).fetchone() is not None:
                return False
            victims = self._victims(index, len(data), due, now)
            if victims is None:
                return False
            index.executemany("DELETE FROM blobs WHERE key = ?", [(victim,) for victim in victims])
            index.execute("INSERT INTO blobs VALUES (?, ?, ?, ?, ?, 0)", (key, len(data), google_crc32c.value(data), due, self._owner))
        for victim in victims:
            (self._root / victim).unlink(missing_ok=True)
        self.evicted += len(victims)
        try:
            (self._root / f"{key}.part").write_bytes(data)
            os.replace(self._root / f"{key}.part", self._root / key)
        except OSError:  # a full or failing disk costs speed, not the run
            self.drop(key)
            return False
        with self._transaction() as index:
            index.execute("UPDATE blobs SET ready = 1 WHERE key = ?", (key,))
        return True

    @_else(None)
    def drop(self, key: str) -> None:
        with self._transaction() as index:
            index.execute("DELETE FROM blobs WHERE key = ?", (key,))
        for path in (self._root / key, self._root / f"{key}.part"):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes on the shelf, and reserved on it."""
        with self._transaction() as index:
            return self._used(index)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _victims(self, index: sqlite3.Connection, size: int, due: float, now: float) -> list[str] | None:
        """What must leave for ``size`` bytes: nothing, some blobs, or None where too little may leave."""
        missing = self._used(index) + size - self._budget
        victims: list[str] = []
        stale = "SELECT key, bytes FROM blobs WHERE ready = 1 AND due < ? ORDER BY due"
        later = "SELECT key, bytes FROM blobs WHERE ready = 1 AND due > ? ORDER BY due DESC"
        for query, bound in ((stale, now - OVERDUE), (later, max(due, now - OVERDUE))):
            for key, held in index.execute(query, (bound,)):
                if missing <= 0:
                    return victims
                victims.append(key)
                missing -= held
        return victims if missing <= 0 else None

    @staticmethod
    def _used(index: sqlite3.Connection) -> int:
        return int(index.execute("SELECT coalesce(sum(bytes), 0) FROM blobs").fetchone()[0])

    def _clear(self, index: sqlite3.Connection) -> None:
        me = current()
        for key, text in index.execute("SELECT key, owner FROM blobs WHERE ready = 0").fetchall():
            owner = Owner.parse(text)
            if owner.dead() or owner.boot != me.boot:  # the disk is this machine's: another boot's processes are gone
                index.execute("DELETE FROM blobs WHERE key = ?", (key,))
        known = {row[0] for row in index.execute("SELECT key FROM blobs")}
        with os.scandir(self._root) as entries:
            for entry in entries:
                if not entry.name.startswith(INDEX) and entry.name.removesuffix(".part") not in known:
                    with contextlib.suppress(FileNotFoundError):  # whoever struck it from the index removes it, too
                        os.unlink(entry.path)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One at a time over all processes; a connection for each thread."""
        index = getattr(self._local, "index", None)
        if index is None:
            index = self._open()
            self._local.index = index
            self._connections.append(index)
        index.execute("BEGIN IMMEDIATE")
        try:
            yield index
        except BaseException:
            if index.in_transaction:  # SQLite undoes some troubles by itself
                index.execute("ROLLBACK")
            raise
        index.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        path = self._root / INDEX
        try:
            index = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            _switched(index)
            index.execute("PRAGMA synchronous = NORMAL")  # a power cut may undo the last changes; checksums and `_clear` see to the rest
        except sqlite3.DatabaseError as error:
            raise BadRequest(
                f"cache folder {self._root}: its index cannot be read ({error}); delete the folder, it holds copies only"
            ) from None
        return index


def _switched(index: sqlite3.Connection) -> None:
    """Turns the write-ahead log on. Where several processes open a new index, SQLite refuses at once instead of waiting its time."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            index.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:  # the low byte is the primary code
                raise
            time.sleep(RETRY_S)
