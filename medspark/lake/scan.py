"""scan: what lies under the inputs, what of it is new, and the new files' hashes and headers.

Folders are walked as a stream; past `FANOUT` folders the walk moves into Spark tasks. A file that the ledger knows by (uri, size, time) is
not read again. New files are hashed and their headers parsed in the task that reads them. An archive is a folder whose members are files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pyarrow import fs as pafs
from pyspark.sql import SparkSession

from medspark.config import Config, Guard
from medspark.errors import BadRequest, Rejected, SkippedSource, Unavailable, unexpected
from medspark.keys import Ids
from medspark.lake import archive
from medspark.lake.files import locate
from medspark.lake.store import Lake
from medspark.lake.tasks import Watcher
from medspark.series.dicomweb import Access, is_address, parse
from medspark.tables.names import basename
from medspark.tables.work import Kind, Member, SourceFile

log = logging.getLogger("medspark.scan")

TOGETHER = 8  # batches' worth of files that may become one because they belong together: some 2,000 headers with thumbnails
FANOUT = 512  # folders waiting to be listed; beyond, listing goes into tasks
RECENT = 100_000  # sources that came since the ledger was sorted: they lie beside it, 10 MB
HASH_BLOCK = 1 << 20
DICOMDIR = "dicomdir"
HIDDEN = (".", "_")  # hidden files and folders of tools (.DS_Store, _SUCCESS), as Spark and Hadoop leave them out
UNKNOWN_SIZE = -1  # of what a DICOMweb server lists: neither size nor time, so that its address alone says whether it is known
NO_TIME_US = 0  # the ledger's ``modified_at`` of such a source is the epoch


@dataclass(frozen=True)
class Found:
    """A file as the listing shows it.

    uri : str                 ``archive.zip!member`` for a member of an archive
    modified_us : int         modification time, microseconds since the epoch; of a member its archive's
    member : Member or None   where it lies, for a member
    archive : bool            an archive itself: its members stand beside it
    fault : (code, reason)    why it cannot be read, where the listing knows
    """

    uri: str
    size: int
    modified_us: int
    member: Member | None = None
    archive: bool = False
    fault: tuple[str, str] | None = None

    @property
    def load(self) -> int:
        """Bytes that the file adds to a batch; an archive's are its members'."""
        return 0 if self.archive else max(0, self.size)


@dataclass(frozen=True)
class Scanned:
    """A new file, hashed; with its header, or with why there is none (``code`` empty and ``message`` set: skipped).

    absent : it could not be brought (``message`` says why); nothing of it is written
    """

    found: Found
    sha256: str
    header: dict[str, Any] | None = None
    code: str = ""
    message: str = ""
    absent: bool = False


# ---- listing


def to_uri(filesystem: pafs.FileSystem, path: str, given: str) -> str:
    """The address that the ledger keeps: ``file:///...`` for local paths, else the given scheme."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        return "file://" + path
    scheme, rest = given.split("://", 1)
    return f"{scheme}://{path}" if scheme.startswith("s3") else f"{scheme}://{rest.split('/', 1)[0]}{path}"


def to_path(uri: str) -> str:
    return uri.removeprefix("file://")


def cuts_before(
    found: Found, batch: Sequence[Found], size: int, most: int, most_bytes: int, together: Callable[[str], str | None] | None
) -> bool:
    """Whether a batch ends before ``found``: it is full, and what it holds is whole.

    size : load of ``batch``, bytes
    together : what a file must be planned with, by its uri: neighbours of one answer share a batch (DICOM levels of one folder), None for
        a file that stands alone; up to `TOGETHER` times a batch, for a folder may hold anything
    """
    if len(batch) < most and size + found.load <= most_bytes:
        return False
    if together is None or len(batch) >= TOGETHER * most or size + found.load > TOGETHER * most_bytes:
        return True
    key = together(found.uri)
    return key is None or key != together(batch[-1].uri)


def list_folder(folder: str, access: Access) -> tuple[list[str], list[Found]]:
    """Sub-folders and files of a folder (``file://...`` or another URI), in the order of their names; symbolic links to folders are not followed."""
    folders, files = [], []
    if is_address(folder):
        from medspark.lake import dicomweb  # brings its HTTP library, which few runs need

        below, instances = dicomweb.listing(folder, access)
        return below, [Found(uri, UNKNOWN_SIZE, NO_TIME_US) for uri in instances]
    if folder.startswith("file://"):
        with os.scandir(to_path(folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(HIDDEN):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{entry.name}")
                elif entry.is_file():
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:  # renamed or removed since the folder was read
                        continue
                    files.append(Found(f"{folder}/{entry.name}", stat.st_size, stat.st_mtime_ns // 1000))
        return folders, files
    filesystem, path, _ = locate(folder)
    for info in sorted(filesystem.get_file_info(pafs.FileSelector(path)), key=lambda info: info.path):
        if info.base_name.startswith(HIDDEN):
            continue
        uri = to_uri(filesystem, info.path, folder)
        if info.type == pafs.FileType.Directory:
            folders.append(uri)
        else:
            files.append(Found(uri, info.size, (info.mtime_ns or 0) // 1000))
    return folders, files


def resolve(inputs: Sequence[str]) -> tuple[list[str], list[Found]]:
    """Folders to walk and single files of ``--input``; `BadRequest` names what does not exist."""
    folders, files = [], []
    for given in inputs:
        if is_address(given):
            folders.append(parse(given).uri)
            continue
        filesystem, path, _ = locate(given)
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise BadRequest(f"--input {given}: no such file or folder")
        if info.type == pafs.FileType.Directory:
            folders.append(to_uri(filesystem, path, given))
        else:
            files.append(Found(to_uri(filesystem, path, given), info.size, (info.mtime_ns or 0) // 1000))
    return folders, files


def walk(
    folders: Sequence[str], files: Sequence[Found], access: Access, spark: SparkSession | None = None, given: bool = True
) -> Iterator[Found]:
    """Every file below, once, folder by folder in depth-first order of names (so that a series' files come together).

    given : whether ``folders`` are what the user named: one of those that cannot be listed is a `BadRequest`. Further down a folder that has
        gone is left out, and an address that a server does not list is passed on as if it were a file, so that the scan counts it as absent.
    """
    roots = set(folders) if given else set()
    seen: set[str] = set()
    for file in files:
        if file.uri not in seen:
            seen.add(file.uri)
            yield file
    stack = sorted(set(folders), reverse=True)
    while stack:
        if spark is not None and len(stack) > FANOUT:
            todo = sorted(stack)
            slices = min(len(todo), 4 * spark.sparkContext.defaultParallelism)
            listed = spark.sparkContext.parallelize(todo, slices).flatMap(lambda folder: walk([folder], [], access, given=False))
            for file in listed.toLocalIterator():
                if file.uri not in seen:
                    yield file
            return
        folder = stack.pop()
        try:
            inner, found = list_folder(folder, access)
        except FileNotFoundError:
            if folder in roots:
                raise
            continue
        except Unavailable as error:
            if folder in roots:
                raise BadRequest(f"--input {folder}: {error}") from None
            log.warning("an address could not be listed: %s", error)
            inner, found = [], [Found(folder, UNKNOWN_SIZE, NO_TIME_US)]
        stack.extend(reversed(inner))
        for file in found:
            if file.uri not in seen:
                yield file


def opened_up(files: Iterable[Found], kind: Kind, guard: Guard) -> Iterator[Found]:
    """The files, archives followed by their members where the kind reads archives.

    The directory of an archive is read at every run: members that an earlier run did not reach, or another job lost, are found again.
    """
    if not getattr(kind, "archives", False):
        yield from files
        return
    for found in files:
        if not archive.is_archive(found.uri):
            yield found
            continue
        fault, members = None, []
        try:
            members = archive.entries(found.uri, guard)
        except Rejected as error:
            fault = error.code, error.reason
        except OSError as error:
            fault = "UNKNOWN_KIND", f"the archive cannot be read ({type(error).__name__})"
        for entry in members:
            bad = ("ARCHIVE_MEMBER", entry.reason) if entry.reason else None
            yield Found(f"{found.uri}!{entry.name}", entry.size, found.modified_us, entry.member, fault=bad)
        yield dataclasses.replace(found, archive=True, fault=fault)


def is_dicomdir(found: Found, kind: Kind) -> bool:
    return hasattr(kind, "listed") and found.member is None and basename(found.uri).lower() == DICOMDIR


def listed_by(found: Found, names: Iterable[tuple[str, ...]]) -> Iterator[Found]:
    """The files that a DICOMDIR names, those that are not there with a fault. Media mounted elsewhere may have their names in lower case."""
    base = found.uri[: len(found.uri) - len(basename(found.uri))]
    for parts in names:
        uri = base + "/".join(parts)
        if any(part in (".", "..") or "/" in part or "\0" in part for part in parts):
            yield Found(uri, 0, found.modified_us, fault=("ARCHIVE_MEMBER", "the DICOMDIR names a place outside of its folder"))
            continue
        for candidate in dict.fromkeys((uri, base + "/".join(parts).lower())):
            filesystem, path, _ = locate(candidate)
            info = filesystem.get_file_info(path)
            if info.type == pafs.FileType.File:
                yield Found(candidate, info.size, (info.mtime_ns or 0) // 1000)
                break
        else:
            yield Found(uri, 0, found.modified_us, fault=("ARCHIVE_MEMBER", "the DICOMDIR names it, and it is not there"))


def with_listed(files: Sequence[Found], kind: Kind, settings: Config, access: Access) -> list[Found]:
    """Single files of ``--input``, and after each DICOMDIR among them the files that it names and that are there."""
    found: list[Found] = []
    for file in files:
        found.append(file)
        if is_dicomdir(file, kind):
            with contextlib.suppress(Exception), local_copy(file, access) as path:  # whatever is wrong with it: the scan says it, in a task
                found += [one for one in listed_by(file, kind.listed(path, settings)) if one.fault is None]  # type: ignore[attr-defined]
    return found


class Ledger:
    """What the ledger knows of a job under its settings, as sorted 128-bit digests: 16 bytes a source, 340 MB at 21 million."""

    def __init__(
        self,
        lake: Lake,
        job: str,
        settings: str,
        retry_rejected: bool,
        address: Callable[[str], str],
        damaged: Collection[str] = (),
    ) -> None:
        """``address`` : uri -> what the ledger keeps of it.  ``damaged`` : source_ids whose pixels are to be made again."""
        self.lake, self.job, self.settings, self.retry_rejected, self.address = lake, job, settings, retry_rejected, address
        self.known = np.empty(0, "V16")
        self._wanted, self._damaged = frozenset(damaged), set[bytes]()
        self._read: set[str] = set()
        self._recent: set[bytes] = set()
        self.refresh()

    def refresh(self) -> None:
        """Reads what has come into the table since the last time."""
        columns = ["dataset", "uri", "size_bytes", "modified_at", "job", "settings", "status", *(["source_id"] if self._wanted else [])]
        digests: list[np.ndarray] = []
        for path in self.lake.files("sources"):
            if path in self._read:
                continue
            self._read.add(path)
            with self.lake.filesystem.open_input_file(path) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(batch_size=65_536, columns=columns):
                    rows = batch.to_pydict()
                    sources = rows.pop("source_id", [""] * batch.num_rows)
                    known: list[bytes] = []
                    for source, dataset, uri, size, at, by, under, status in zip(sources, *rows.values(), strict=True):
                        if by == self.job and under == self.settings:
                            mine = self._row_digests(dataset, uri, size, round(at.timestamp() * 1e6))
                            known += mine if not (self.retry_rejected and status == "rejected") else []
                            self._damaged.update(mine if source in self._wanted else [])
                    digests.append(np.frombuffer(b"".join(known), "V16") if known else np.empty(0, "V16"))
        fresh = np.concatenate(digests) if digests else np.empty(0, "V16")
        if len(self.known) and len(self._recent) + len(fresh) < RECENT:  # sorting all of them anew for a few would take seconds
            self._recent.update(fresh.tolist())
        elif len(fresh):
            recent = np.frombuffer(b"".join(self._recent), "V16") if self._recent else np.empty(0, "V16")
            self.known = np.unique(np.concatenate([self.known, recent, fresh]))
            self._recent.clear()

    @staticmethod
    def digest(dataset: str, uri: str, size: int, modified_us: int) -> bytes:
        return hashlib.blake2b(f"{dataset}\0{uri}\0{size}\0{modified_us}".encode("utf-8", "surrogateescape"), digest_size=16).digest()

    @classmethod
    def _row_digests(cls, dataset: str, uri: str, size: int, modified_us: int) -> list[bytes]:
        """What a row of the ledger is recognised by; what came from a server also by its address alone."""
        found = [cls.digest(dataset, uri, size, modified_us)]
        return [*found, cls.digest(dataset, uri, UNKNOWN_SIZE, NO_TIME_US)] if modified_us == NO_TIME_US else found

    def damaged(self, dataset: str, found: Found) -> bool:
        """Whether pixels that came from this very file are damaged in the lake."""
        return bool(self._damaged) and self.digest(dataset, self.address(found.uri), found.size, found.modified_us) in self._damaged

    def knows(self, dataset: str, found: Found) -> bool:
        digest = self.digest(dataset, self.address(found.uri), found.size, found.modified_us)
        if digest in self._recent:
            return True
        if not len(self.known):
            return False
        wanted = np.frombuffer(digest, "V16")
        place = int(np.searchsorted(self.known, wanted)[0])
        return place < len(self.known) and bool(self.known[place] == wanted[0])


# ---- reading


@contextmanager
def local_copy(file: Found | SourceFile, access: Access) -> Iterator[str]:
    """A local path of the file's bytes: itself, a temporary copy of a remote one, or a member of an archive brought into memory.

    Raises `Unavailable` for what a server does not give.
    """
    uri = file.uri
    if file.member is not None:
        with archive.in_memory(file.member) as path:
            yield path
        return
    if uri.startswith("file://"):
        yield to_path(uri)
        return
    if is_address(uri):
        from medspark.lake import dicomweb

        with dicomweb.brought(uri, access) as path:
            yield path
        return
    filesystem, path, _ = locate(uri)
    with tempfile.NamedTemporaryFile(prefix="medspark-", suffix=os.path.basename(path)) as copy:
        pafs.copy_files(path, copy.name, source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem())
        yield copy.name


def sha256_of(path: str) -> str:
    with open(path, "rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def reader(
    kind: Kind, ids: Ids, settings: Config, dataset: str, access: Access
) -> Callable[[Iterable[Found], Watcher, int], Iterator[Scanned]]:
    """The work of a scan task: hash, then header. Every file yields one `Scanned`; a DICOMDIR also one for each file that it lacks."""

    def read(files: Iterable[Found], watch: Watcher, partition: int) -> Iterator[Scanned]:
        for found in files:
            sha256 = ""
            if not found.uri.startswith("file://"):
                watch.done()  # bringing it may take longer than a decoder may
            try:
                if found.archive:
                    sha256 = archive.sha256_of(found.uri)
                if found.fault is not None:
                    raise Rejected(*found.fault)
                if found.archive:
                    yield Scanned(found, sha256, header={"kind": "archive"})
                    continue
                with local_copy(found, access) as path:
                    if found.size == UNKNOWN_SIZE:
                        found = replace(found, size=os.path.getsize(path))
                    sha256 = sha256_of(path)
                    if found.size == 0:
                        raise Rejected("EMPTY_FILE", "the file has 0 bytes")
                    watch(SourceFile(ids.source(dataset, found.uri, sha256), found.uri, path, found.size, dataset), "header")
                    if is_dicomdir(found, kind):
                        yield from _missing(found, kind.listed(path, settings))  # type: ignore[attr-defined]
                    yield Scanned(found, sha256, header=kind.scan(path, found.uri, ids, settings))
            except Rejected as error:
                yield Scanned(found, sha256, code=error.code, message=error.reason)
            except SkippedSource as error:
                yield Scanned(found, sha256, message=error.hint)
            except Unavailable as error:
                yield Scanned(found, sha256, message=str(error), absent=True)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):  # this machine's disk, no fault of the file
                    raise
                if not sha256:  # gone since it was listed, not ours to read, a file server away: nothing is wrong with the file itself
                    yield Scanned(found, sha256, message=f"a file could not be read ({type(error).__name__})", absent=True)
                    continue
                yield Scanned(found, sha256, code="UNKNOWN_KIND", message=f"the file cannot be read ({type(error).__name__})")
            except Exception as error:  # a file that no parser foresaw must not stop the job; its kind and place are kept
                yield Scanned(found, sha256, code="DECODE_FAILED", message=unexpected(error))

    return read


def _missing(found: Found, names: Iterable[tuple[str, ...]]) -> Iterator[Scanned]:
    for one in listed_by(found, names):
        if one.fault is not None:
            yield Scanned(one, "", code=one.fault[0], message=one.fault[1])


__all__ = ["Found", "Ledger", "Scanned", "local_copy", "opened_up", "reader", "resolve", "walk", "with_listed"]
