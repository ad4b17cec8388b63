"""Who owns a batch, and whether that process still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache


def _read(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot (field 22 of /proc/<pid>/stat); empty when there is none or it is a zombie."""
    stat = _read(f"/proc/{pid}/stat")
    fields = stat.rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in ("Z", "X") else fields[19]


@dataclass(frozen=True)
class Owner:
    """A process, told apart from any other that had or will have its number."""

    host: str
    boot: str
    space: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.host}/{self.boot}/{self.space}/{self.pid}/{self.started}"

    @classmethod
    def parse(cls, text: str) -> Owner:
        host, boot, space, pid, started = text.rsplit("/", 4)
        return cls(host, boot, space, int(pid), started)

    def dead(self) -> bool:
        """True only when it is certain: same machine, same boot, same process namespace, and the process is gone. Else the lease decides."""
        me = current()
        if (self.host, self.boot, self.space) != (me.host, me.boot, me.space):
            return False
        return _started(self.pid) != self.started


@lru_cache(maxsize=1)
def _identity(pid: int) -> Owner:
    try:
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        space = "-"
    boot = _read("/proc/sys/kernel/random/boot_id") or "-"
    return Owner(socket.gethostname().replace("/", "_"), boot, space, pid, _started(pid))


def current() -> Owner:
    return _identity(os.getpid())
