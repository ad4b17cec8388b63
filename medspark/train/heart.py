"""How a rank says that it lives, and how the driver hears it: small files in the run's folder, so that it works wherever the lake lies.

A rank's main thread names what it is doing; another thread writes that down every few seconds, with the time since it last changed. The driver
ends a run of which one rank does nothing for too long, or whose files stop changing: a rank that sleeps in a read, or that was stopped by a
signal, would keep the others waiting for ever, and Horovod's own check lives within the ranks.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medspark.errors import BadRequest, MedsparkError
from medspark.train import checkpoint

log = logging.getLogger("medspark.train")

SHARE = 5  # a beat this many times within the time that a rank may be silent ...
SLOWEST_S, FASTEST_S = 15.0, 0.5  # ... within these bounds: a store is not to be flooded
LATE = 3  # beats that may be missed before a rank counts as gone
WAITING = ("waiting for the other ranks", "training")
"""How a rank's phase begins where it may be waiting for another one."""


def interval(stall_s: float) -> float:
    return min(SLOWEST_S, max(FASTEST_S, stall_s / SHARE))


@dataclass
class Heart:
    """One rank's. ``beat`` is called by the loop; `stop` ends the thread."""

    folder: str
    attempt: str
    rank: int
    stall_s: float
    phase: str = "starting"
    since: float = field(default_factory=time.monotonic)
    _count: int = 0
    _gone: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Heart:
        self._say()
        threading.Thread(target=self._work, name="heart", daemon=True).start()
        return self

    def beat(self, phase: str) -> None:
        self.phase, self.since = phase, time.monotonic()

    def stop(self) -> None:
        self._gone.set()

    def failed(self, error: BaseException) -> None:
        """Writes down what ended this rank, for the driver's message."""
        said = {
            "rank": self.rank,
            "kind": type(error).__name__,
            "message": str(error),
            "ours": isinstance(error, MedsparkError),
            "refused": isinstance(error, BadRequest),
            "phase": self.phase,
            "trace": "".join(traceback.format_exception(error))[-20_000:],
        }
        try:
            checkpoint.put(self.folder, f"ranks/{self.attempt}/{self.rank}.failed.json", json.dumps(said).encode())
        except OSError:
            log.error("rank %d failed and could not write down why", self.rank, extra={"said": said})

    def _work(self) -> None:
        while not self._gone.wait(interval(self.stall_s)):
            self._say()

    def _say(self) -> None:
        self._count += 1
        said = {"beat": self._count, "phase": self.phase, "idle_s": time.monotonic() - self.since, "pid": os.getpid()}
        try:
            checkpoint.put(self.folder, f"ranks/{self.attempt}/{self.rank}.json", json.dumps(said).encode())
        except OSError as error:  # the next beat may come through
            log.warning("rank %d could not write its beat: %s", self.rank, error)


@dataclass
class Listener:
    """The driver's ear on all ranks of one attempt. ``verdict`` is asked again and again."""

    folder: str
    attempt: str
    ranks: int
    stall_s: float
    _heard: dict[int, tuple[int, float]] = field(default_factory=dict)

    def verdict(self) -> str:
        """Why the run must be ended; empty while it need not be."""
        stuck: list[tuple[float, int, str]] = []
        for rank in range(self.ranks):
            said = self._read(f"{rank}.json")
            if said is None:
                continue  # not there yet: Horovod itself waits for ranks to start, and not for ever
            now = time.monotonic()
            beat, at = self._heard.get(rank, (-1, now))
            if said["beat"] != beat:
                self._heard[rank] = (said["beat"], now)
            elif now - at > self.stall_s + LATE * interval(self.stall_s):
                stuck.append((now - at, rank, "silent altogether"))
            if said["idle_s"] > self.stall_s:
                stuck.append((said["idle_s"], rank, said["phase"]))
        # Whoever waits for others, or steps into an average that others don't reach, does so because of one that hangs. It is taken for
        # the one itself only after the others had the time to be found silent.
        late = self.stall_s + (LATE + 2) * interval(self.stall_s)
        guilty = [item for item in stuck if not item[2].startswith(WAITING)] or [item for item in stuck if item[0] > late]
        if not guilty:
            return ""
        seconds, rank, phase = max(guilty)
        return f"rank {rank} made no progress for {seconds:.0f} s ({phase})"

    def failures(self) -> Sequence[dict[str, Any]]:
        """What ranks wrote down before they ended; the ones that say why first, those that only missed a partner last."""
        found = [said for rank in range(self.ranks) if (said := self._read(f"{rank}.failed.json")) is not None]
        return sorted(found, key=lambda said: (not said["ours"], "Horovod" in said["kind"] or "Horovod" in said["message"], said["rank"]))

    def forget(self) -> None:
        """Removes what this attempt wrote."""
        from medspark.lake.files import locate

        filesystem, root, _ = locate(self.folder)
        if checkpoint.names(self.folder, f"ranks/{self.attempt}"):
            filesystem.delete_dir(f"{root}/ranks/{self.attempt}")

    def _read(self, name: str) -> dict[str, Any] | None:
        data = checkpoint.get(self.folder, f"ranks/{self.attempt}/{name}")
        return None if data is None else json.loads(data)
