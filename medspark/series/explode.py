"""One unit of a series -> rows of ``slices`` and ``pixels``: open a source once, measure, hash, encode, clean, yield. Knows no Spark."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pydicom

from medspark import pixels
from medspark.config import Config
from medspark.deid import header_json
from medspark.errors import Rejected, unexpected
from medspark.keys import PARENT_DIGITS, Ids
from medspark.series import attributes, decode, frames, geometry, nifti, rescale
from medspark.series.header import Head, check_image, open_head, series_instance_id, series_parts, sop_instance, subject_of
from medspark.tables.names import file_token, folder_token
from medspark.tables.rows import Rejection, Rows
from medspark.tables.verdicts import usable
from medspark.tables.work import SourceFile, Unit, Watch

WATCH_FRAMES = 64  # uncompressed frames between two calls of the watch: 0.1 s of work, so that a long cine loop is no hang
CHUNK_BYTES = 24 << 20  # payload yielded at once: several row groups of 2 to 4 MB, far below the 64 MB that a batch may hold


@dataclass
class _Chunk:
    """Rows on their way out. What a source has put in since `mark` is taken back when it fails."""

    slices: list[dict[str, Any]] = field(default_factory=list)
    payload: list[dict[str, Any]] = field(default_factory=list)
    n_bytes: int = 0

    def add(self, row: dict[str, Any], payload: dict[str, Any]) -> None:
        self.slices.append(row)
        self.payload.append(payload)
        self.n_bytes += len(payload["bytes"])

    def take_back(self, mark: int) -> list[str]:
        """Drops the rows from ``mark`` on and returns their image ids."""
        lost = [row["image_id"] for row in self.slices[mark:]]
        self.n_bytes -= sum(len(payload["bytes"]) for payload in self.payload[mark:])
        del self.slices[mark:], self.payload[mark:]
        return lost

    def flush(self) -> Iterator[Rows]:
        if self.slices:
            yield Rows.of("slices", self.slices)
            yield Rows.of("pixels", self.payload)
        self.slices, self.payload, self.n_bytes = [], [], 0


def explode(unit: Unit, ids: Ids, settings: Config, watch: Watch) -> Iterator[Rows | Rejection]:
    """Rows of ``slices`` and ``pixels``, and rejections, source by source in the unit's order.

    ``unit.work["headers"]`` : source_id -> what the plan carried of its header;  ``unit.work["known"]`` : image_id -> pixel_hash of the images that the lake already has of this series; missing counts as empty.
    ``t`` and ``k`` are placeholders (0 and null) that `medspark.series.assemble` fills.
    The frames of one source that fit in a chunk stand or fall together; of a longer one, the chunks already yielded stay.
    """
    work: dict[str, Any] = unit.work or {}
    known: dict[str, str] = work.get("known") or {}
    seen = {
        image_id[PARENT_DIGITS:]: value for image_id, value in known.items()
    }  # by (dataset, instance, frame) alone: any part of the series
    chunk = _Chunk()
    for source in unit.sources:
        header: dict[str, Any] = (work.get("headers") or {}).get(source.source_id, {})
        if header.get("kind") == "nifti":
            yield from chunk.flush()
            yield from _known_apart(nifti.explode_file(source, header, ids, settings, watch), source, seen)
        else:
            yield from _explode_file(source, header.get("frames", 0), ids, settings, watch, seen, chunk)
    yield from chunk.flush()


def _explode_file(
    source: SourceFile, count: int, ids: Ids, settings: Config, watch: Watch, seen: dict[str, str], chunk: _Chunk
) -> Iterator[Rows | Rejection]:
    mark, given = len(chunk.slices), 0
    doubled = {"DUPLICATE": 0, "SOP_CONFLICT": 0}
    try:
        watch(source, "header")
        with source.opened() as path:
            head = open_head(path, settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pydicom warns of is told by codes and verdicts
            check_image(head, settings)
            count = 1  # until the pixels bear the header out: a number that lies is one image lost
            decode.check_frames(head.dataset)
            count = frames.frame_count(head)
            instance = Instance(head, source, ids, settings)
        if "BURNED_IN" in instance.frames[0].verdict and settings.deid.burned_in == "quarantine":
            raise Rejected("BURNED_IN", "the header says that identifying text is burned into the pixels")
        for row, payload in instance.images(watch):
            name = row["image_id"][PARENT_DIGITS:]
            if name in seen:
                doubled["DUPLICATE" if seen[name] == row["pixel_hash"] else "SOP_CONFLICT"] += 1
                continue
            seen[name] = row["pixel_hash"]
            chunk.add(row, payload)
            if chunk.n_bytes >= CHUNK_BYTES:
                given += len(chunk.slices) - mark
                mark = 0
                yield from chunk.flush()
    except Exception as error:  # also what no decoder foresaw: it costs this file, not the others of the unit
        code, reason = (error.code, error.reason) if isinstance(error, Rejected) else ("DECODE_FAILED", unexpected(error))
        for image_id in chunk.take_back(mark):
            seen.pop(image_id[PARENT_DIGITS:], None)
        yield Rejection(source.source_id, source.uri, "explode", code, reason, max(count - given, 0))
        return
    if doubled["DUPLICATE"]:
        yield Rejection(
            source.source_id, source.uri, "explode", "DUPLICATE", "same instance and same pixels as another file", doubled["DUPLICATE"]
        )
    if doubled["SOP_CONFLICT"]:
        message = "same instance as another file, but other pixels"
        yield Rejection(source.source_id, source.uri, "explode", "SOP_CONFLICT", message, doubled["SOP_CONFLICT"])


def _known_apart(items: Iterator[Rows | Rejection], source: SourceFile, seen: dict[str, str]) -> Iterator[Rows | Rejection]:
    """A NIfTI file's rows without those of images met before (the same content under another name has the same image ids)."""
    doubled = 0
    for item in items:
        if isinstance(item, Rejection) or not item.columns:
            yield item
            continue
        names = [image_id[PARENT_DIGITS:] for image_id in item.columns["image_id"]]
        fresh = [place for place, name in enumerate(names) if name not in seen]
        if item.table == "slices":
            doubled += len(names) - len(fresh)
        if len(fresh) == len(names):
            yield item
        elif fresh:
            yield Rows(item.table, {name: [values[place] for place in fresh] for name, values in item.columns.items()})
    if doubled:
        yield Rejection(source.source_id, source.uri, "explode", "DUPLICATE", "same content as another file", doubled)


class Instance:
    """One opened DICOM instance: everything that its frames share, computed from the header before it is cleaned. Final."""

    def __init__(self, head: Head, source: SourceFile, ids: Ids, settings: Config) -> None:
        self.head, self.source, self.ids, self.settings = head, source, ids, settings
        dataset = source.dataset
        self.frames = frames.frames(head, settings)
        uid, folder = series_parts(head, source.uri)
        self.series_name = uid or "folder:" + folder
        self.sop = sop_instance(head)
        study = head.text(0x0020000D)
        self.subject_key, nameless = subject_of(head.text(0x00100020), head.text(0x00100021), study, folder, source, ids)
        self.series_instance_id = series_instance_id(ids, dataset, uid, folder)
        self.frame_of_reference = head.text(0x00200052) or ""
        self.syntax = decode.syntax_of(head.dataset)
        verdict = []
        if decode.is_lossy(head.dataset):
            verdict.append("LOSSY")
        if not uid or not self.sop:
            verdict.append("NO_UID")
        if nameless:
            verdict.append("NO_SUBJECT")
        if head.assumed:
            verdict.append("SYNTAX_ASSUMED")
        self.verdict = tuple(verdict)
        self.common = {
            "t": 0,
            "k": None,
            "source_id": source.source_id,
            "dataset": dataset,
            "subject_key": self.subject_key,
            "study_id": ids.uid(study) if study else ids.digest("study", dataset, self.subject_key),
            "sop_instance_id": ids.uid(self.sop) if self.sop else None,
            "series_instance_id": self.series_instance_id,
            "transfer_syntax": self.syntax.uid,
            "file_token": file_token(ids, source.uri),
            "folder_token": folder_token(ids, source.uri),
            "series_attributes": attributes.series_attributes(head, ids, settings, self.subject_key, self.series_instance_id),
        }

    def images(self, watch: Watch) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(row of slices, row of pixels) of each frame; raises `Rejected`."""
        dataset = self.head.dataset
        keep = self.settings.series.store == "as_received" and decode.keeps_as_received(dataset)
        received = decode.raw_frames(dataset) if keep else None
        params = decode.layout_of(dataset).params() if keep else {}
        arrays = decode.read_frames(dataset, lambda index: watch(self.source, f"frame {index + 1}"), self.settings.guard)
        per_frame = dataset[frames.PER_FRAME].value if self.head.items(frames.PER_FRAME) else None  # broken ones count as absent
        cleaned, series_ids = "", dict[tuple[Any, ...], str]()
        count = 0
        for index, (frame, stored) in enumerate(zip(self.frames, arrays, strict=False)):
            count += 1
            if count % WATCH_FRAMES == 0:
                watch(self.source, f"frame {count}")
            columns = frame.columns
            key = (geometry.orientation_key(frame.orientation), columns["rows"], columns["cols"])
            series_id = series_ids.get(key)
            if series_id is None:
                size = f"{columns['rows']}x{columns['cols']}"
                series_id = self.ids.series(self.source.dataset, self.series_name, self.frame_of_reference, key[0], size)
                series_ids[key] = series_id
            name = ("sop", self.sop) if self.sop else ("uri", self.source.uri)
            image_id = self.ids.image(series_id, self.source.dataset, *name, columns["frame_number"])
            stats = rescale.statistics(
                stored, columns["rescale_slope"], columns["rescale_intercept"], frame.padding, frame.lut, frame.lut_first
            )
            if index == 0 or per_frame is not None:
                if per_frame is not None and index < len(per_frame):  # of the per-frame groups a row keeps its own
                    dataset[frames.PER_FRAME] = pydicom.DataElement(frames.PER_FRAME, "SQ", pydicom.Sequence([per_frame[index]]))
                cleaned = header_json(dataset, self.ids, self.subject_key, self.settings.deid.profile)
            verdict = [*frame.verdict, *self.verdict]
            row = {
                "image_id": image_id,
                "series_id": series_id,
                **self.common,
                **columns,
                "channels": 1 if stored.ndim == 2 else stored.shape[2],
                "pixel_hash": decode.pixel_hash(stored),
                "value_min": stats.value_min,
                "value_max": stats.value_max,
                "value_mean": stats.value_mean,
                "value_std": stats.value_std,
                "verdict": verdict,
                "usable": usable(verdict, self.settings.verdicts),
                "header_json": cleaned,
            }
            payload = {
                "image_id": image_id,
                "dataset": self.source.dataset,
                "parent_id": series_id,
                "codec": f"dicom:{self.syntax.uid}" if keep else "blosc2",
                "dtype": stored.dtype.name,
                "shape": list(stored.shape),
                "params": params,
                "bytes": next(received) if received is not None else pixels.encode(stored, "blosc2"),
            }
            yield row, payload
        if count < len(self.frames):
            raise Rejected("PIXEL_LENGTH", "there are fewer frames than the header says")
