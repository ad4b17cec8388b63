"""Zip archives as folders: members are listed from the directory at the archive's end, and read in place, each into memory alone.

APPNOTE.TXT 6.3.10 (PKWARE), as far as archives of files need it: stored and deflated members, zip64, a prefix before the archive. A member that is
encrypted, names a place outside, is an archive itself, or inflates beyond reason is refused by itself; the others are read.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from medspark.config import Guard
from medspark.errors import BadRequest, Rejected
from medspark.lake.files import locate
from medspark.tables.work import Member

SUFFIX = ".zip"
STORED, DEFLATED = 0, 8
MAX_MEMBERS = 1 << 20  # of one archive: its list is held in memory, some 300 bytes each
MAX_RATIO = 200  # inflated / packed, above RATIO_FREE_BYTES; CT and photos reach 10, an empty slice 1000
RATIO_FREE_BYTES = 64 << 20  # up to this size any ratio is harmless
BLOCK = 1 << 20
HIDDEN = (".", "_")  # as in folders: __MACOSX, .DS_Store

_END = struct.Struct("<4s4H2LH")  # 4.3.16 end of central directory record
_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15 zip64 end of central directory locator
_END_64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_ENTRY = struct.Struct("<4s6H3L5H2L")  # 4.3.12 central directory header
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7 local file header
_MAX_COMMENT = 0xFFFF
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF  # "the number stands in the zip64 field"
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # 4.4.4: bits 0, 6, 13
_UTF8 = 0x800
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Entry:
    """One member as the directory says it: where it lies, or why it is refused (``reason`` not empty)."""

    name: str
    size: int
    member: Member | None = None
    reason: str = ""


def is_archive(uri: str) -> bool:
    return uri.lower().endswith(SUFFIX)


def entries(uri: str, guard: Guard) -> list[Entry]:
    """Files of the archive in the order of its directory; folders and hidden names are left out.

    Raises Rejected where the archive as a whole cannot be read: EMPTY_FILE, TRUNCATED (no directory), TOO_LARGE (too many members).
    """
    filesystem, path, _ = locate(uri)
    with filesystem.open_input_file(path) as stream:
        size = stream.size()
        if size == 0:
            raise Rejected("EMPTY_FILE", "the archive has 0 bytes")
        start, length, shift = _directory(stream, size)
        listed = list(_parse(_slice(stream, start, length), shift, uri))
    limits = _limits([offset for _, _, offset, _, _ in listed], start)
    seen: set[str] = set()
    found = []
    for name, flags, offset, head, member in listed:
        if name.endswith("/") or (any(part.startswith(HIDDEN) for part in name.split("/")) and not _outside(name)):
            continue
        reason = _refusal(name, flags, member, guard)
        if not reason and name in seen:
            reason = "the archive holds a second member of this name"
        if not reason and offset + head + member.packed > limits[offset]:
            reason = "the member lies over another one, or beyond the archive's end"
        seen.add(name)
        found.append(Entry(name, member.size, None if reason else member, reason))
    return found


def _refusal(name: str, flags: int, member: Member, guard: Guard) -> str:
    if _outside(name):
        return "the member names a place outside of the archive"
    if flags & _ENCRYPTED:
        return "the member is encrypted"
    if member.method not in (STORED, DEFLATED):
        return "the member is packed in another way than stored or deflated"
    if is_archive(name):
        return "an archive within an archive: unpack the outer one"
    if member.size > guard.max_file_bytes:
        return "the member is larger than guard.max_file_bytes"
    if member.size > RATIO_FREE_BYTES and member.size > MAX_RATIO * member.packed:
        return f"the member inflates more than {MAX_RATIO} times"
    if member.method == STORED and member.size != member.packed:
        return "the member says two sizes"
    return ""


def _outside(name: str) -> bool:
    return name.startswith(("/", "\\")) or bool(_DRIVE.match(name)) or "\0" in name or ".." in re.split(r"[/\\]", name)


def _limits(offsets: list[int], end: int) -> dict[int, int]:
    """Offset of a member -> where the next one begins, or the directory; members that share an offset end where they begin."""
    times = Counter(offsets)
    ordered = sorted(times)
    return {offset: offset if times[offset] > 1 else limit for offset, limit in zip(ordered, [*ordered[1:], end], strict=True)}


# ---- the directory


def _read_at(stream: Any, place: int, size: int) -> bytes:
    stream.seek(place)
    return bytes(stream.read(size))


def _directory(stream: Any, size: int) -> tuple[int, int, int]:
    """(offset, length) of the central directory, and by how much its offsets are off (a prefix before the archive)."""
    tail_at = max(0, size - _END.size - _MAX_COMMENT)
    tail = _read_at(stream, tail_at, size - tail_at)
    place = tail.rfind(b"PK\x05\x06")
    while place >= 0:
        if place + _END.size <= len(tail):
            _, disk, first_disk, _, count, length, offset, comment = _END.unpack_from(tail, place)
            if place + _END.size + comment <= len(tail):
                break
        place = tail.rfind(b"PK\x05\x06", 0, place)
    if place < 0:
        raise Rejected("TRUNCATED", "the archive ends before its directory")
    end = tail_at + place
    if end >= _LOCATOR.size:
        signature, _, _, _ = _LOCATOR.unpack(_read_at(stream, end - _LOCATOR.size, _LOCATOR.size))
        if signature == b"PK\x06\x07":
            end -= _LOCATOR.size + _END_64.size
            record = _read_at(stream, max(end, 0), _END_64.size)
            if end < 0 or not record.startswith(b"PK\x06\x06"):
                raise Rejected("TRUNCATED", "the archive's zip64 record is not where it should be")
            _, _, _, _, disk, first_disk, _, count, length, offset = _END_64.unpack(record)
    if disk or first_disk:
        raise Rejected("TRUNCATED", "a part of an archive of several volumes")
    if count > MAX_MEMBERS:
        raise Rejected("TOO_LARGE", f"an archive of more than {MAX_MEMBERS} members")
    start = end - length
    if start < 0 or offset > start:
        raise Rejected("TRUNCATED", "the archive's directory is cut off")
    return start, length, start - offset


def _slice(stream: Any, start: int, length: int) -> IO[bytes]:
    """The directory, read in blocks."""
    return _Window(stream, start, length)  # type: ignore[return-value]


class _Window:
    def __init__(self, stream: Any, start: int, length: int) -> None:
        self._stream, self._left, self._buffer, self._at = stream, length, b"", 0
        stream.seek(start)

    def read(self, size: int) -> bytes:
        while len(self._buffer) - self._at < size and self._left:
            block = bytes(self._stream.read(min(max(BLOCK, size), self._left)))
            if not block:
                break
            self._left -= len(block)
            self._buffer, self._at = self._buffer[self._at :] + block, 0
        found = self._buffer[self._at : self._at + size]
        self._at += len(found)
        return found


def _parse(directory: IO[bytes], shift: int, uri: str) -> Iterator[tuple[str, int, int, int, Member]]:
    """(name, flags, offset, least length of the local header, member) of each entry."""
    count = 0
    while record := directory.read(_ENTRY.size):
        if len(record) < _ENTRY.size or not record.startswith(b"PK\x01\x02"):
            raise Rejected("TRUNCATED", "the archive's directory is damaged")
        count += 1
        if count > MAX_MEMBERS:  # whatever the record at the end has said
            raise Rejected("TOO_LARGE", f"an archive of more than {MAX_MEMBERS} members")
        _, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, _, _, _, offset = _ENTRY.unpack(record)
        raw, extra = directory.read(n_name), directory.read(n_extra)
        if len(raw) < n_name or len(extra) < n_extra or len(directory.read(n_comment)) < n_comment:
            raise Rejected("TRUNCATED", "the archive's directory is damaged")
        size, packed, offset = _zip64(extra, size, packed, offset)
        name = raw.decode("utf-8" if flags & _UTF8 else "cp437", "backslashreplace")
        offset += shift
        yield name, flags, offset, _LOCAL.size + n_name, Member(uri, offset, packed, size, method, crc)


def _zip64(extra: bytes, *given: int) -> tuple[int, ...]:
    """Sizes and offset (in this order), those that are full taken from the zip64 field (4.5.3)."""
    place, wide = 0, b""
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            wide = extra[place + 4 : place + 4 + length]
            break
        place += 4 + length
    found = []
    for value in given:
        if value == _FULL_32:
            if len(wide) < 8:
                raise Rejected("TRUNCATED", "the archive's directory is damaged")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        found.append(value)
    return tuple(found)


# ---- members


def inflated(stream: Any, member: Member) -> Iterator[bytes]:
    """The member's bytes in blocks; raises Rejected(ARCHIVE_MEMBER) where they are not exactly what the directory says."""
    head = _read_at(stream, member.offset, _LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(b"PK\x03\x04"):
        raise Rejected("ARCHIVE_MEMBER", "the member is not where the archive's directory says")
    _, _, flags, method, _, _, _, _, _, n_name, n_extra = _LOCAL.unpack(head)
    if method != member.method or flags & _ENCRYPTED:
        raise Rejected("ARCHIVE_MEMBER", "the member and the archive's directory contradict each other")
    stream.seek(member.offset + _LOCAL.size + n_name + n_extra)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == DEFLATED else None
    left, made, crc, pending = member.packed, 0, 0, b""
    while True:
        if not pending and left:
            pending = bytes(stream.read(min(BLOCK, left)))
            left = left - len(pending) if pending else 0
        if inflater is None:
            block, pending, ended = pending, b"", not left
        else:
            try:  # one byte more than it may have: what would be longer shows
                block = inflater.decompress(pending, min(BLOCK, member.size - made + 1))
            except zlib.error:
                raise Rejected("ARCHIVE_MEMBER", "the member cannot be inflated") from None
            pending, ended = inflater.unconsumed_tail, inflater.eof
        made, crc = made + len(block), zlib.crc32(block, crc)
        if made > member.size:
            raise Rejected("ARCHIVE_MEMBER", "the member inflates beyond the size that the archive's directory says")
        yield block
        if ended or not (block or pending or left):
            break
    if made != member.size:
        raise Rejected("ARCHIVE_MEMBER", "the member ends early")
    if crc != member.crc:
        raise Rejected("ARCHIVE_MEMBER", "the member's checksum is wrong")


@contextmanager
def in_memory(member: Member) -> Iterator[str]:
    """A path of the member's bytes, which lie in an anonymous file of memory: nothing is unpacked to a disk, and it is gone when closed."""
    if not hasattr(os, "memfd_create"):
        raise BadRequest("archives are read in place on Linux only; unpack them here")
    filesystem, path, _ = locate(member.archive)
    descriptor = os.memfd_create("medspark-member", os.MFD_CLOEXEC)
    try:
        with filesystem.open_input_file(path) as stream, os.fdopen(os.dup(descriptor), "wb") as memory:
            for block in inflated(stream, member):
                memory.write(block)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def sha256_of(uri: str) -> str:
    """Of the archive itself, streamed from where it lies."""
    filesystem, path, _ = locate(uri)
    digest = hashlib.sha256()
    with filesystem.open_input_file(path) as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
