"""Files of an export: complete or not there, and lists that many tasks write parts of."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from pyarrow import fs as pafs


@contextmanager
def replaced(filesystem: pafs.FileSystem, path: str) -> Iterator[IO[bytes]]:
    """A stream whose bytes are at ``path`` once all of them are written, and not before; a file that was there is replaced."""
    folder, _, name = path.rpartition("/")
    filesystem.create_dir(folder, recursive=True)
    draft = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
    try:
        with filesystem.open_output_stream(draft) as stream:
            yield stream  # type: ignore[misc]
        filesystem.move(draft, path)
    except BaseException:
        if filesystem.get_file_info(draft).type != pafs.FileType.NotFound:
            filesystem.delete_file(draft)
        raise


class Lists:
    """A task's lists, each a file in the stage that is made with its first line."""

    def __init__(self, filesystem: pafs.FileSystem, stage: str) -> None:
        self._filesystem, self._stage = filesystem, stage
        self._open: dict[str, tuple[str, Any]] = {}

    def text(self, name: str, line: str) -> None:
        if name not in self._open:
            path = f"{self._stage}/{name}-{uuid.uuid4().hex[:12]}"
            self._open[name] = path, self._filesystem.open_output_stream(path)
        self._open[name][1].write(line.encode())

    def row(self, name: str, values: Sequence[object]) -> None:
        self.text(name, csv_line(values))

    def close(self) -> dict[str, str]:
        """Name -> path."""
        for _, stream in self._open.values():
            stream.close()
        return {name: path for name, (path, _) in self._open.items()}


def csv_line(values: Sequence[object]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()


def lines_of(filesystem: pafs.FileSystem, parts: Sequence[Mapping[str, Any]], name: str) -> Iterator[bytes]:
    """The lines of all tasks' lists of one name."""
    for part in parts:
        if name in part["lists"]:
            with filesystem.open_input_stream(part["lists"][name]) as stream:
                yield from io.BufferedReader(stream)  # type: ignore[arg-type]
