"""One unit -> rows of ``photos``, ``pixels``, ``labels`` and ``subjects``: open a file once, decode, hash, encode, yield. Knows no Spark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from medspark import pixels
from medspark.config import Config
from medspark.errors import Rejected, unexpected
from medspark.keys import Ids
from medspark.photos import arrays, read
from medspark.photos.classes import Class, Classes
from medspark.photos.plan import subject_row
from medspark.pixels.equal import pixel_hash
from medspark.tables.names import file_token, folder_token
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import SourceFile, Unit, Watch

CHUNK_BYTES = 24 << 20  # payload yielded at once: several row groups, far below the 64 MB that a batch may hold
CHUNK_ROWS = 4096  # and at most so many images: 28 x 28 px are 1 KB each
WATCH_IMAGES = 256  # images of an array between two calls of the watch
LABEL_SOURCE = "annotation"
LABEL_ROUND = 0


@dataclass
class _Chunk:
    """Rows on their way out, by table."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    n_bytes: int = 0

    def add(self, table: str, row: dict[str, Any]) -> None:
        self.rows.setdefault(table, []).append(row)
        self.n_bytes += len(row.get("bytes", b""))

    @property
    def full(self) -> bool:
        return self.n_bytes >= CHUNK_BYTES or max(map(len, self.rows.values()), default=0) >= CHUNK_ROWS

    def flush(self) -> Iterator[Rows]:
        for table, rows in self.rows.items():
            yield Rows.of(table, rows)
        self.rows, self.n_bytes = {}, 0


def explode(unit: Unit, ids: Ids, settings: Config, watch: Watch, classes: Classes) -> Iterator[Rows | Rejection]:
    """Rows and rejections, source by source in the unit's order.

    ``unit.work``: "formats" of photos, or "part", "start" and "stop" of an array; "classes": source_id -> labels of all its images;
    "known": image_ids that the lake has already: only their labels are made anew (the options may give others now).
    """
    work: dict[str, Any] = unit.work
    chunk, now = _Chunk(), datetime.now(UTC)
    for source in unit.sources:
        image = _Image(source, ids, frozenset(work.get("known") or ()), now)
        given: tuple[Class, ...] = work["classes"][source.source_id]
        try:
            if "part" in work:
                yield from _array(image, work["part"], work["start"], work["stop"], given, classes, watch, chunk)
            else:
                watch(source, "photo")
                with source.opened() as path:
                    for index, photo in read.photos(path, work["formats"][source.source_id], settings.guard):
                        image.add(chunk, index, photo, given)
                        if unit.images > len(unit.sources):  # pages of a TIFF: each has its own time
                            watch(source, f"page {index + 1}")
                        if chunk.full:
                            yield from chunk.flush()
        except Exception as error:  # also what no decoder foresaw: it costs what is left of this file, not the others of the unit
            code, reason = (error.code, error.reason) if isinstance(error, Rejected) else ("DECODE_FAILED", unexpected(error))
            lost = max(unit.images - image.made, 0) if len(unit.sources) == 1 else 1
            yield Rejection(source.source_id, source.uri, "explode", code, reason, lost)
    yield from chunk.flush()


def _array(
    image: _Image,
    part: arrays.Part,
    start: int,
    stop: int,
    given: tuple[Class, ...],
    classes: Classes,
    watch: Watch,
    chunk: _Chunk,
) -> Iterator[Rows]:
    what = f"{part.name} {start}"
    watch(image.source, what)
    with image.source.opened() as path:
        own: Sequence[tuple[Class, ...]] = [()] * (stop - start)
        if part.labels:
            own = classes.of_labels(arrays.labels(path, part)[start:stop])
        for place, array in enumerate(arrays.images(path, part, start, stop)):
            if place % WATCH_IMAGES == 0:
                watch(image.source, what)
            native = array.astype(array.dtype.newbyteorder("="), copy=False)
            plain = read.plain(native)
            photo = read.Photo(plain, 8 * plain.itemsize)
            image.add(chunk, part.first + start + place, photo, (*given, *own[place]), part.part or None, alone=True)
            if chunk.full:
                yield from chunk.flush()


@dataclass
class _Image:
    """Makes the rows of a source's images. ``made``: how many so far."""

    source: SourceFile
    ids: Ids
    known: frozenset[str]
    now: datetime
    made: int = 0

    def add(
        self, chunk: _Chunk, index: int, photo: read.Photo, classes: tuple[Class, ...], part: str | None = None, alone: bool = False
    ) -> None:
        """``alone``: each image of the source is a subject of its own, unless the file's subject was given."""
        source, ids, array = self.source, self.ids, photo.array
        image_id = ids.image(source.source_id, source.source_id, index)
        domain = source.domain or source.dataset
        if source.subject:
            subject = ids.subject(domain, source.subject)
        else:
            subject = ids.subject(domain, f"source:{source.source_id}" + (f":{index}" if alone else ""))
        self.made += 1
        for one in {(item.label, item.role): item for item in classes}.values():
            chunk.add("labels", self._label(image_id, subject, one))
        if image_id in self.known:
            return
        if not source.subject and (alone or self.made == 1):
            chunk.add("subjects", subject_row(subject, source.dataset))
        codec, data = _encoded(photo)
        chunk.add(
            "pixels",
            {
                "image_id": image_id,
                "dataset": source.dataset,
                "parent_id": source.source_id,
                "codec": codec,
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "params": [],
                "bytes": data,
            },
        )
        chunk.add(
            "photos",
            {
                "image_id": image_id,
                "source_id": source.source_id,
                "dataset": source.dataset,
                "subject_key": subject,
                "rows": array.shape[0],
                "cols": array.shape[1],
                "channels": 1 if array.ndim == 2 else array.shape[2],
                "bits": photo.bits,
                "mean": np.atleast_1d(array.mean(axis=(0, 1), dtype=np.float64)).astype(np.float32),
                "source_part": part,
                "pixel_hash": pixel_hash(array),
                "file_token": file_token(ids, source.uri),
                "folder_token": folder_token(ids, source.uri),
            },
        )

    def _label(self, image_id: str, subject: str, one: Class) -> dict[str, Any]:
        source_id = self.source.source_id
        return {
            "label_row_id": self.ids.label_row(image_id, one.label, None, LABEL_SOURCE, None, LABEL_ROUND, source_id, one.role),
            "target": "image",
            "target_id": image_id,
            "image_id": image_id,
            "parent_id": source_id,
            "dataset": self.source.dataset,
            "subject_key": subject,
            "label": one.label,
            "role": one.role,
            "source": LABEL_SOURCE,
            "round": LABEL_ROUND,
            "class_value": one.value,
            "source_id": source_id,
            "created_at": self.now,
        }


def _encoded(photo: read.Photo) -> tuple[str, bytes]:
    """(codec, payload): the received JPEG, PNG for whole numbers of 8 and 16 bits, blosc2 for everything else."""
    if photo.jpeg is not None:
        return "jpeg", photo.jpeg
    codec = "png" if photo.array.dtype in (np.uint8, np.uint16) else "blosc2"
    return codec, pixels.encode(photo.array, codec)
