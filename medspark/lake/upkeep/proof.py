"""Looks for traces of a subject in every file of a lake: the proof that nothing was left. Not by the tables' own lists, but by what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.lake import tasks
from medspark.lake.files import locate
from medspark.lake.session import cores
from medspark.lake.store import Lake
from medspark.lake.upkeep.check import UNREADABLE
from medspark.lake.upkeep.traces import Traces
from medspark.tables.work import SourceFile

LONG = 64  # letters: longer strings (a header as JSON, statistics in a log) are searched, shorter ones compared
MOST_WORDS = 2_000  # in one search; the images' own ids are compared, and found in long strings by their parents' ids
BATCH_ROWS = 16_384
BYTES_PER_S = 1e8
SCAN_S = 600.0
_TOKEN = re.compile(rb"[0-9A-Za-z.]+")  # ids and UIDs as wholes: 1.2.3 is not in 1.2.34
_EDGE = "[^0-9A-Za-z.]"


@dataclass(frozen=True)
class Hit:
    path: str
    what: str


@dataclass(frozen=True)
class Seeker:
    """The work of a task: which of the files hold a trace. ``exact`` : whole values (in texts: whole tokens);  ``words`` : within long strings."""

    uri: str
    exact: frozenset[str]
    words: tuple[str, ...]

    def __call__(self, items: Iterable[tuple[str, int]], watch: tasks.Watcher, partition: int) -> Iterator[Hit]:
        filesystem, _, _ = locate(self.uri)
        values = pa.array(sorted(self.exact), pa.string())
        for path, size in items:
            watch(SourceFile(path, path, "", size, ""))
            try:
                if path.endswith(".parquet"):
                    yield from self._parquet(filesystem, path, values)
                else:
                    yield from self._text(filesystem, path)
            except FileNotFoundError:
                continue  # a draft of a log entry that was there when the folder was listed
            except UNREADABLE as error:
                yield Hit(path, f"cannot be read ({type(error).__name__})")

    def _parquet(self, filesystem: pafs.FileSystem, path: str, values: pa.Array) -> Iterator[Hit]:
        with filesystem.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            columns = [field.name for field in file.schema_arrow if not pa.types.is_binary(field.type)]
            found: set[str] = set()
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                for name in set(batch.schema.names) - found:
                    if any(self._in(leaf, values) for leaf in _strings(batch.column(name))):
                        found.add(name)
            yield from (Hit(path, name) for name in sorted(found))

    def _in(self, leaf: pa.Array, values: pa.Array) -> bool:
        if pc.any(pc.is_in(leaf, value_set=values)).as_py():
            return True
        longest = pc.max(pc.utf8_length(leaf)).as_py() or 0
        if longest <= LONG:
            return False
        for start in range(0, len(self.words), MOST_WORDS):
            either = "|".join(map(re.escape, self.words[start : start + MOST_WORDS]))
            if pc.any(pc.match_substring_regex(leaf, f"(?:^|{_EDGE})(?:{either})(?:{_EDGE}|$)")).as_py():
                return True
        return False

    def _text(self, filesystem: pafs.FileSystem, path: str) -> Iterator[Hit]:
        with filesystem.open_input_stream(path) as stream:
            data = stream.read()
        tokens = {token.decode() for token in _TOKEN.findall(data)}
        if tokens & self.exact or any(json.dumps(value).encode() in data for value in self.exact if "/" in value):
            yield Hit(path, "text")


def _strings(array: pa.Array) -> Iterator[pa.Array]:
    """Every string array within an array, nested ones included."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield array
    elif pa.types.is_dictionary(kind):
        yield from _strings(array.dictionary_decode())
    elif pa.types.is_map(kind):
        yield from _strings(array.keys)
        yield from _strings(array.items)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _strings(array.flatten())
    elif pa.types.is_struct(kind):
        for place in range(kind.num_fields):
            yield from _strings(array.field(place))


def hits(lake: Lake, traces: Traces, besides: str, stage: str) -> list[Hit]:
    """Every file under the lake that holds a trace. ``besides`` : the one file that must (the list itself)."""
    files = [
        (info.path, info.size)
        for info in lake.filesystem.get_file_info(pafs.FileSelector(lake.root, recursive=True))
        if info.type == pafs.FileType.File and info.path != besides
    ]
    seeker = Seeker(lake.uri, frozenset(traces.ids | traces.images | traces.rows | traces.sources | traces.uris), tuple(sorted(traces.ids)))
    parts = tasks.split(files, lambda file: 0.002 + file[1] / BYTES_PER_S, 20.0, cores(lake.spark))
    found = tasks.run(lake.spark, tasks.Journal.of(lake, stage, "proof"), parts, seeker, SCAN_S)
    return sorted(found, key=lambda hit: (hit.path, hit.what))
