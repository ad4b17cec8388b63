"""What the engine and the kinds of data hand each other: files with headers, units of work, a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from medspark.config import Config
from medspark.keys import Ids
from medspark.tables.rows import Rejection, Rows


@dataclass(frozen=True)
class Member:
    """Where in an archive a file's bytes lie.

    archive : str       its address
    offset : int        of the member's local header, from the archive's first byte
    packed, size : int  bytes in the archive, and inflated
    method : int        0 stored, 8 deflated
    crc : int           CRC-32 of the inflated bytes
    """

    archive: str
    offset: int
    packed: int
    size: int
    method: int
    crc: int


@dataclass(frozen=True)
class SourceFile:
    """One new input file, hashed and with its header read.

    path : str                       local path of the bytes (the original, or a copy brought from a remote store); see `opened`
    header : Mapping                 what the kind's ``scan`` returned
    subject : str or None            PatientID given by ``--subjects`` or ``--subject-pattern``
    domain : str                     subject domain (``--subject-domain``, else the data set); an issuer in the header comes before it
    member : Member or None          where it lies, for a file within an archive
    bring : callable or None         within a task: brings a member's bytes into memory for as long as they are used
    """

    source_id: str
    uri: str
    path: str
    size_bytes: int
    dataset: str
    header: Mapping[str, Any] = field(default_factory=dict)
    subject: str | None = None
    domain: str = ""
    member: Member | None = None
    bring: Callable[[], AbstractContextManager[str]] | None = None

    def bare(self) -> SourceFile:
        """Without its header: what travels to the tasks."""
        return SourceFile(self.source_id, self.uri, self.path, self.size_bytes, self.dataset, {}, self.subject, self.domain, self.member)

    @contextmanager
    def opened(self) -> Iterator[str]:
        """A local path of the bytes, good for as long as it is open: one file of a unit at a time may lie in memory."""
        if self.bring is None:
            yield self.path
        else:
            with self.bring() as path:
                yield path


@dataclass(frozen=True)
class Unit:
    """Work for one task: a band of tiles of one slide, a run of slices of one series. Pointers, never pixels.

    cost : float        seconds on one core, roughly; balances the partitions
    images : int        how many images it should yield
    work : Any          picklable, the kind's own
    """

    parent_id: str
    sources: tuple[SourceFile, ...]
    cost: float
    images: int
    work: Any = None


@dataclass(frozen=True)
class Plan:
    """A batch's work.

    rows : narrow rows that need no pixels (slides, grids, subjects); the engine keeps those of parents that yield images
    rejections : files that cannot be planned
    locks : source_id -> parent that only one batch may touch at a time (a series, a slide)
    """

    units: tuple[Unit, ...] = ()
    rows: tuple[Rows, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    locks: Mapping[str, str] = field(default_factory=dict)


class Watch(Protocol):
    """Called before each piece of foreign decoding: journals the open source, re-arms the timer of ``guard.decode_s``."""

    def __call__(self, source: SourceFile, what: str = "") -> None: ...


class Kind(Protocol):
    """One kind of data: pure functions, no Spark.

    What a kind may have besides: ``fingerprint`` (what changes its rows besides ``sections``), ``batch_sources`` (files of one batch at most),
    ``archives`` (True: zip files are read member by member), ``listed`` (path, settings) -> the files that a DICOMDIR names.
    """

    job: str
    """Job name, as in the ledger."""
    source_kind: str
    """``sources.kind`` of its files."""
    sections: tuple[str, ...]
    """Config sections that change its rows."""

    def scan(self, path: str, uri: str, ids: Ids, settings: Config) -> dict[str, Any]:
        """A file's header; raises `Rejected` or `SkippedSource`."""
        ...

    def plan(self, files: list[SourceFile], ids: Ids, settings: Config) -> Plan: ...

    def explode(self, unit: Unit, ids: Ids, settings: Config, watch: Watch) -> Iterator[Rows | Rejection]: ...
