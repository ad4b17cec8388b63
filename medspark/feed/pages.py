"""A feed's files as bytes on a mounted disk: where payloads lie, so that the thread that decodes one reads it, just before, into memory that it used before.

Arrow copies a binary column twice on its way into new memory, long before it is decoded, and its ways are long for a row group of sixteen slices:
at 190 kB a slice, a fifth of the decoding. Read at the last moment into a buffer that stays in the core's cache, a payload costs nothing that could
be measured (docs/decisions/0024). `write` leaves what batches are made from as it is (no compression, no dictionary, no nulls), so that a column
chunk is a row of pages, each a header and then its values. Other files are Arrow's: `plain` says which.

Page headers are Thrift's compact protocol (Apache Parquet: parquet.thrift, Encodings.md; Apache Thrift: thrift-compact-protocol.md).
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

BLOCK = 256 << 10  # read at once while lengths are looked for
SPARSE_BLOCK = 4 << 10  # the same where values are long: their lengths are all that is read
HEADER = 1 << 10  # bytes that hold a page header as `write` makes it; with statistics it holds two payloads
_LENGTH = struct.Struct("<I")
_DATA_PAGE, _PLAIN = 0, 0
_DATA_PAGE_AT, _DATA_PAGE_V2_AT, _ENCODING_AT, _ENCODING_V2_AT = 5, 8, 2, 4  # fields; without nulls and lists no levels precede the values
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12  # of the compact protocol


class OpenedFile:
    """A file of a mounted disk, closed when nobody holds it any more."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # it was never opened
            os.close(self._descriptor)

    def read(self, start: int, into: memoryview) -> int:
        """Bytes read: fewer than asked for at the file's end. Other threads run meanwhile."""
        return os.preadv(self._descriptor, [into], start)

    def soon(self, start: int, size: int) -> None:
        """The kernel begins to read these bytes from the disk, if the last one is not in memory (telling it costs as much as five slices' reading)."""
        try:
            if size and os.preadv(self._descriptor, [bytearray(1)], start + size - 1, os.RWF_NOWAIT) == 1:
                return
        except (AttributeError, OSError):  # not in memory; or a system, or a file system, that cannot say
            pass
        with contextlib.suppress(AttributeError, OSError):  # a hint
            os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_WILLNEED)


class Stored(NamedTuple):
    """A payload that still lies in its file. opened : gives the open file of a path, from those at hand"""

    opened: Callable[[str], OpenedFile]
    path: str
    start: int
    size: int

    def read(self, into: memoryview) -> memoryview:
        """The payload in the first ``size`` bytes of ``into``; ValueError where the file ends before it does, OSError where the disk fails."""
        view = into[: self.size]
        if self.opened(self.path).read(self.start, view) != self.size:
            raise ValueError(f"{self.path} ends within a payload")
        return view

    def __bytes__(self) -> bytes:
        return bytes(self.read(memoryview(bytearray(self.size))))


def leaves(metadata: pq.FileMetaData) -> Mapping[str, int]:
    """column -> the place of its only leaf; one with several has none"""
    names = [metadata.schema.column(at).path.split(".")[0] for at in range(metadata.num_columns)]
    return {name: at for at, name in enumerate(names) if names.count(name) == 1}


def plain(metadata: pq.FileMetaData, at: int) -> bool:
    """Whether every chunk of a leaf of binary values, strings, floats or lists of floats lies in the file as this module reads it."""
    column = metadata.schema.column(at)
    chunks = [metadata.row_group(group).column(at) for group in range(metadata.num_row_groups)]
    return (
        column.physical_type in ("BYTE_ARRAY", "FLOAT")
        and column.max_definition_level == column.max_repetition_level  # no nulls: levels only say where lists end
        and not any(chunk.has_dictionary_page for chunk in chunks)
        and all(chunk.compression == "UNCOMPRESSED" and set(chunk.encodings) <= {"PLAIN", "RLE"} for chunk in chunks)
    )


def extent(metadata: pq.FileMetaData, group: int, at: int) -> tuple[int, int]:
    """(first byte, number of bytes) of a leaf's chunk in its file."""
    column = metadata.row_group(group).column(at)
    return column.data_page_offset, column.total_compressed_size


def places(file: OpenedFile, start: int, size: int, rows: int) -> list[tuple[int, int]]:
    """(first byte, number of bytes) of every value of a binary column's chunk; ValueError where the bytes are no `plain` chunk of ``rows`` values."""
    window = _Window(file, start + size, BLOCK if size < rows * BLOCK // 4 else SPARSE_BLOCK)
    found: list[tuple[int, int]] = []
    for at, stop, count, _ in _pages(window, start, rows):
        for _ in range(count):
            length = _length(window, at)
            found.append((at + 4, length))
            at += 4 + length
            if at > stop:
                raise ValueError("a value beyond its page")
        if at != stop:
            raise ValueError("a page with more than its values")
    return found


def strings(file: OpenedFile, start: int, size: int, rows: int) -> list[str]:
    """The values of a short string column's chunk; errors as `places`."""
    found = places(file, start, size, rows)
    memory = bytearray(size)
    file.read(start, memoryview(memory))
    return [memory[first - start : first - start + length].decode() for first, length in found]


def floats(file: OpenedFile, start: int, size: int, count: int, lists: bool = False) -> np.ndarray:
    """The ``count`` values of a chunk of floats, or of lists of floats of which none is empty; float32; errors as `places`."""
    window = _Window(file, start + size, size)
    found = []
    for at, stop, values, levels in _pages(window, start, count):
        first = stop - 4 * values
        if lists and levels is None:  # each kind of levels behind its length
            repetition = _length(window, at)
            levels = 8 + repetition + _length(window, at + 4 + repetition)
        if first != at + (levels or 0):
            raise ValueError("a page with more than its values")
        found.append(np.frombuffer(window.bytes(first, 4 * values), "<f4", values))
    return np.concatenate(found) if found else np.empty(0, np.float32)


def _length(window: _Window, at: int) -> int:
    try:
        return int(_LENGTH.unpack_from(window.bytes(at, 4))[0])
    except struct.error:
        raise ValueError("the file ends within a page") from None


def _pages(window: _Window, start: int, values: int) -> Iterator[tuple[int, int, int, int | None]]:
    """(first byte behind the header, place behind the page, values, bytes of levels where the header says them) of a chunk's pages."""
    at, seen = start, 0
    while seen < values:
        try:
            header, at = _header(window, at)
            kind, stop = header[1], at + header[3]
            data = header[_DATA_PAGE_AT] if kind == _DATA_PAGE else header[_DATA_PAGE_V2_AT]
            plainly = data[_ENCODING_AT if kind == _DATA_PAGE else _ENCODING_V2_AT] == _PLAIN
            levels = None if kind == _DATA_PAGE else data[5] + data[6]
            count = data[1]
            fits = at <= stop <= window.end and 0 <= count <= values - seen
        except (KeyError, IndexError, TypeError):
            raise ValueError("a page header that cannot be read") from None
        if not plainly or not fits:
            raise ValueError("a page of another kind")
        yield at, stop, count, levels
        at, seen = stop, seen + count
    if at != window.end:
        raise ValueError(f"{window.end - at} bytes behind its {values} values")


def _header(window: _Window, at: int) -> tuple[Mapping[int, Any], int]:
    """(fields of the page's header, place behind it)."""
    size = HEADER
    while True:
        data = window.bytes(at, size)
        try:
            fields, used = _struct(data, 0)
            return fields, at + used
        except IndexError:
            if len(data) < size:  # the chunk ends here
                raise
            size *= 16


class _Window:
    """A file's bytes from a place on, a block at a time."""

    def __init__(self, file: OpenedFile, end: int, block: int) -> None:
        self._file, self.end = file, end
        self._memory = memoryview(bytearray(block))
        self._first = self._stop = 0

    def bytes(self, start: int, size: int) -> memoryview:
        """Up to ``size`` bytes, fewer where the chunk ends."""
        size = min(size, self.end - start)
        if start < self._first or start + size > self._stop:
            if size > len(self._memory):
                self._memory = memoryview(bytearray(size))
            self._first = start
            self._stop = start + self._file.read(start, self._memory[: self.end - start])
        return self._memory[start - self._first : min(start + size, self._stop) - self._first]


def _struct(data: Sequence[int], at: int) -> tuple[Mapping[int, Any], int]:
    """(field number -> value, place behind it). Raises IndexError at the end of the bytes, ValueError for an unknown type."""
    fields: dict[int, Any] = {}
    number = 0
    while True:
        byte = data[at]
        at += 1
        kind, step = byte & 15, byte >> 4
        if not kind:
            return fields, at
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, kind)


def _value(data: Sequence[int], at: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):  # a field's value is in its type
        return kind == _TRUE, at
    if kind in (_I16, _I32, _I64):
        return _integer(data, at)
    if kind == _BINARY:
        length, at = _varint(data, at)
        return None, at + length
    if kind == _STRUCT:
        return _struct(data, at)
    if kind in (_BYTE, _DOUBLE):
        return None, at + (1 if kind == _BYTE else 8)
    raise ValueError("a page header that cannot be read")  # it has no lists or maps


def _varint(data: Sequence[int], at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _integer(data: Sequence[int], at: int) -> tuple[int, int]:
    """A zigzag integer."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
