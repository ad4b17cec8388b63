"""A local disk that behaves like a far store: so many bytes a second over all its readers, a delay for each request; it counts both."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pafs


class _File(io.RawIOBase):
    def __init__(self, file: Any, store: SlowStore) -> None:
        self._file = file
        self._store = store

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._store.charge(len(data))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


class SlowStore(LocalFileSystem):
    """bytes_per_s : None: as fast as the disk"""

    cachable = False

    def __init__(self, bytes_per_s: float | None = None, latency_s: float = 0.0) -> None:
        super().__init__()
        self.bytes_read = 0
        self.requests = 0
        self._rate = bytes_per_s
        self._latency_s = latency_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def arrow(self) -> pafs.FileSystem:
        return pafs.PyFileSystem(pafs.FSSpecHandler(self))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> _File:
        return _File(open(path, mode), self)

    def charge(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size
            self.requests += 1
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + (size / self._rate if self._rate else 0.0)
            wait = self._free_at - now + self._latency_s
        if wait > 0:
            time.sleep(wait)
