"""scan: what lies under the inputs, what of it is new, and the new files' hashes and headers.

Folders are walked as a stream; past `FANOUT` folders the walk moves into Spark tasks. A file that the ledger knows by (uri, size, time) is
not read again. New files are hashed and their headers parsed in the task that reads them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pyarrow import fs as pafs
from pyspark.sql import SparkSession

from medspark.config import Config
from medspark.errors import BadRequest, Rejected, SkippedSource, Unavailable, unexpected
from medspark.keys import Ids
from medspark.lake.files import locate
from medspark.lake.store import Lake
from medspark.lake.tasks import Watcher
from medspark.series.dicomweb import Access, is_address, parse
from medspark.tables.work import Kind, SourceFile

log = logging.getLogger("medspark.scan")

FANOUT = 512  # folders waiting to be listed; beyond, listing goes into tasks
RECENT = 100_000  # sources that came since the ledger was sorted: they lie beside it, 10 MB
HIDDEN = (".", "_")  # hidden files and folders of tools (.DS_Store, _SUCCESS), as Spark and Hadoop leave them out
UNKNOWN_SIZE = -1  # of what a DICOMweb server lists: neither size nor time, so that its address alone says whether it is known
NO_TIME_US = 0  # the ledger's ``modified_at`` of such a source is the epoch


@dataclass(frozen=True)
class Found:
    """A file as the listing shows it. ``modified_us``: modification time, microseconds since the epoch."""

    uri: str
    size: int
    modified_us: int


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


class Ledger:
    """What the ledger knows of a job under its settings, as sorted 128-bit digests: 16 bytes a source, 340 MB at 21 million."""

    def __init__(self, lake: Lake, job: str, settings: str, retry_rejected: bool, address: Callable[[str], str]) -> None:
        """``address`` : uri -> what the ledger keeps of it."""
        self.lake, self.job, self.settings, self.retry_rejected, self.address = lake, job, settings, retry_rejected, address
        self.known = np.empty(0, "V16")
        self._read: set[str] = set()
        self._recent: set[bytes] = set()
        self.refresh()

    def refresh(self) -> None:
        """Reads what has come into the table since the last time."""
        digests: list[np.ndarray] = []
        for path in self.lake.files("sources"):
            if path in self._read:
                continue
            self._read.add(path)
            with self.lake.filesystem.open_input_file(path) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(
                    batch_size=65_536, columns=["dataset", "uri", "size_bytes", "modified_at", "job", "settings", "status"]
                ):
                    rows = batch.to_pydict()
                    mine = [
                        (dataset, uri, size, round(at.timestamp() * 1e6))
                        for dataset, uri, size, at, by, under, status in zip(*rows.values(), strict=True)
                        if by == self.job and under == self.settings and not (self.retry_rejected and status == "rejected")
                    ]
                    known = [self.digest(*one) for one in mine]
                    known += [self.digest(*one[:2], UNKNOWN_SIZE, NO_TIME_US) for one in mine if one[3] == NO_TIME_US]
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
def local_copy(uri: str, access: Access) -> Iterator[str]:
    """A local path of the file's bytes: itself, or a temporary copy of a remote one. Raises `Unavailable` for what a server does not give."""
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
    """The work of a scan task: hash, then header. Every file yields exactly one `Scanned`."""

    def read(files: Iterable[Found], watch: Watcher, partition: int) -> Iterator[Scanned]:
        for found in files:
            sha256 = ""
            if not found.uri.startswith("file://"):
                watch.done()  # bringing it may take longer than a decoder may
            try:
                with local_copy(found.uri, access) as path:
                    if found.size == UNKNOWN_SIZE:
                        found = replace(found, size=os.path.getsize(path))
                    sha256 = sha256_of(path)
                    if found.size == 0:
                        raise Rejected("EMPTY_FILE", "the file has 0 bytes")
                    watch(SourceFile(ids.source(dataset, found.uri, sha256), found.uri, path, found.size, dataset), "header")
                    yield Scanned(found, sha256, header=kind.scan(path, found.uri, ids, settings))
            except Rejected as error:
                yield Scanned(found, sha256, code=error.code, message=error.reason)
            except SkippedSource as error:
                yield Scanned(found, sha256, message=error.hint)
            except Unavailable as error:
                yield Scanned(found, sha256, message=str(error), absent=True)
            except OSError as error:
                if not sha256:  # gone since it was listed, not ours to read, a file server away: nothing is wrong with the file itself
                    yield Scanned(found, sha256, message=f"a file could not be read ({type(error).__name__})", absent=True)
                    continue
                yield Scanned(found, sha256, code="UNKNOWN_KIND", message=f"the file cannot be read ({type(error).__name__})")
            except Exception as error:  # a file that no parser foresaw must not stop the job; its kind and place are kept
                yield Scanned(found, sha256, code="DECODE_FAILED", message=unexpected(error))

    return read


__all__ = ["Found", "Ledger", "Scanned", "local_copy", "reader", "resolve", "walk"]
