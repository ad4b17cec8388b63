"""Which files of a watched folder may be taken: those that stand still, and whose series is quiet. Looks in, decisions out; pure.

All state is here and in memory: after a restart everything that the ledger does not know is looked at anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medspark.lake.scan import Found, Scanned

LONGEST_DOUBLING = 7  # of the time that an unreadable file waits: an hour, at 30 seconds to begin with
MOST = 200_000  # files that may wait at once, some 100 MB; the others are not looked at until there is room


@dataclass
class _Entry:
    """A file that waits. Seconds are the caller's monotonic clock.

    since_s : the first look that showed this size and time;  arrived_s : when it came, as far as can be told
    """

    found: Found
    since_s: float
    arrived_s: float
    scanned: Scanned | None = None
    parent: str = ""
    failures: int = 0


class Arrivals:
    """What waits between two looks. Final.

    settle_s : a file is scanned when two looks so far apart showed the same size and time, and its time is no more recent
    quiet_s : a parent (series) is taken when nothing of it has come for so long
    """

    def __init__(self, settle_s: float, quiet_s: float, most: int = MOST) -> None:
        self.settle_s, self.quiet_s, self.most = settle_s, quiet_s, most
        self.complete = False  # whether the last look saw everything: only then a file that it did not show has come since
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def look(self, files: Iterable[Found], now_s: float, clock_s: float) -> list[Found]:
        """Takes in one look (all files that the ledger does not know) and returns those that have come to rest, each until it is held.

        now_s : monotonic clock; clock_s : wall clock, which file times are compared with. A time in the future tells nothing, so that a file
        server whose clock is fast delays no file.
        """
        entries: dict[str, _Entry] = {}
        complete = True
        for found in files:
            old = self._entries.get(found.uri)
            if old is not None and old.found == found:
                entries[found.uri] = old
            elif old is not None or len(entries) < self.most:
                seen_coming = old is not None or self.complete
                age_s = 0.0 if seen_coming else max(0.0, clock_s - found.modified_us / 1e6)
                entries[found.uri] = _Entry(found, now_s, now_s - age_s)
            else:
                complete = False
        self._entries, self.complete = entries, complete
        return [entry.found for entry in entries.values() if entry.scanned is None and self._settled(entry, now_s, clock_s)]

    def _settled(self, entry: _Entry, now_s: float, clock_s: float) -> bool:
        return now_s - entry.since_s >= self.settle_s and not 0.0 <= clock_s - entry.found.modified_us / 1e6 < self.settle_s

    def hold(self, scanned: Iterable[Scanned], parents: Mapping[str, str]) -> None:
        """Files that were scanned, with the parent of each (uri -> parent; none for what has no header)."""
        for one in scanned:
            entry = self._entries[one.found.uri]
            entry.scanned, entry.parent = one, parents.get(one.found.uri, "")

    def put_back(self, found: Found, now_s: float) -> None:
        """A file that could not be read settles anew, for twice as long each time: one that nobody may open must not keep the job busy."""
        entry = self._entries[found.uri]
        entry.failures += 1
        entry.since_s = now_s + self.settle_s * (2 ** min(entry.failures - 1, LONGEST_DOUBLING) - 1)

    @property
    def unread(self) -> int:
        """Files that wait because they could not be read."""
        return sum(entry.failures > 0 and entry.scanned is None for entry in self._entries.values())

    def quiet(self, now_s: float) -> list[list[Scanned]]:
        """Held files whose parent is quiet, parent by parent; they wait no longer. What has no parent waits for nobody."""
        groups: dict[str, list[_Entry]] = {}
        for entry in self._entries.values():
            if entry.scanned is not None:
                groups.setdefault(entry.parent, []).append(entry)
        taken: list[list[Scanned]] = []
        for parent, members in groups.items():
            if parent and now_s - max(entry.arrived_s for entry in members) < self.quiet_s:
                continue
            taken.append([entry.scanned for entry in members if entry.scanned is not None])
            for entry in members:
                del self._entries[entry.found.uri]
        return taken
