"""The photos' side of meetings: many small ones, so both sides of several are read at once.

A mask of a photo is some KB in a file of tens of MB; read alone, each meeting would read the whole file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from medspark.lake.files import admitted, admitted_paths, read_where
from medspark.lake.meetings import PHOTO_NAMES, TRUTH, Meeting, any_of
from medspark.lake.pixels import PixelReader
from medspark.tables.work import SourceFile

REFS_TOGETHER = 64  # photos whose masks are read at once: some MB


@dataclass(frozen=True)
class Photos:
    """What several meetings of photos have to do with: annotations, photos, and their pixels."""

    regions: pa.Table
    planes: pa.Table
    photos: pa.Table
    values: PixelReader

    @classmethod
    def read(cls, filesystem: pafs.FileSystem, meetings: Sequence[Meeting], lists: Sequence[Mapping[str, Sequence[str]]]) -> Photos:
        """``lists`` : files of each table, for each meeting."""
        files = {table: sorted({path for one in lists for path in one[table]}) for table in (*TRUTH, "photos", "pixels")}
        wanted: dict[str, set[str]] = {}
        for meeting in meetings:
            for ref in meeting.refs:
                kind, _, key = ref.partition(":")
                wanted.setdefault(kind, set()).add(key)
        named = any_of(wanted, PHOTO_NAMES)
        assert named is not None  # photos are met by name, path or id alone
        said = _among("source_id", (meeting.source_id for meeting in meetings))
        said &= _among("ref_image", (ref for meeting in meetings for ref in meeting.refs))
        return cls(
            read_where(filesystem, "regions", files["regions"], said),
            read_where(filesystem, "planes", files["planes"], said),
            read_where(filesystem, "photos", files["photos"], named & _among("batch_id", (meeting.batch_id for meeting in meetings))),
            PixelReader(filesystem, files["pixels"], ""),
        )


def _among(column: str, values: Iterable[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(sorted(set(values)), pa.string()))


def together(items: Iterable[tuple[Meeting, SourceFile]]) -> Iterator[list[tuple[Meeting, SourceFile]]]:
    """Runs of meetings of photos of at most `REFS_TOGETHER` references; every other meeting alone."""
    run: list[tuple[Meeting, SourceFile]] = []
    refs = 0
    for item in items:
        if run and (not item[0].shard or not run[0][0].shard or refs + len(item[0].refs) > REFS_TOGETHER):
            yield run
            run, refs = [], 0
        run.append(item)
        refs += len(item[0].refs)
    if run:
        yield run


def files_of(
    actions: Mapping[str, list[dict[str, Any]]], batch_id: str, shard: str, known: dict[tuple[str, str], dict[str, list[str]]]
) -> dict[str, list[str]]:
    """Files of ``photos`` and ``pixels`` that may hold a batch's photos whose ids begin with ``shard``; worked out once for many meetings."""
    if (batch_id, shard) not in known:
        files = {}
        for table in ("photos", "pixels"):
            of_batch = admitted(actions[table], "batch_id", [batch_id])
            # An id between shard000... and shardfff...: the file's own lower bound is moved to that of its shard.
            ranged = [{**action, "min.image_id": (action.get("min.image_id") or shard)[: len(shard)]} for action in of_batch]
            files[table] = admitted_paths(ranged, "image_id", [shard])
        known[(batch_id, shard)] = files
    return known[(batch_id, shard)]
