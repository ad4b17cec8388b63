"""One task of a prediction: planned images in, files of rows out, a piece at a time. Runs on the executors."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from medspark.errors import Rejected, unexpected
from medspark.keys import Ids
from medspark.labels.label_rows import Group, LabelRows, cropped
from medspark.labels.link_slices import pixel_mm2, rescaled
from medspark.labels.link_tiles import UM_PER_MM
from medspark.lake.files import admitted_paths, locate, write_parquet
from medspark.lake.pixels import PixelReader
from medspark.scores.threshold import present
from medspark.tables.catalog import TABLES
from medspark.tables.rows import Rows

if TYPE_CHECKING:
    from medspark.lake.predict import Model

AT_ONCE = 16  # images that are asked about together: 8 MB of 512-px CT as stored, 70 MB of float32 probabilities of four labels
NOT_STORED = "its stored pixels, or those of a slice that it is seen with, are missing or damaged"
FILE_BYTES = 64 << 20  # rows of a file, packed


@dataclass(frozen=True)
class Worker:
    """The work of a task; travels by closure. pixels : files of ``pixels`` with the statistics of their parents."""

    model: Model
    lake_uri: str
    table: str
    run_id: str
    batch_id: str
    round: int
    pixels: Sequence[Mapping[str, Any]]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filesystem, root, _ = locate(self.lake_uri)
        out = _Out(self, filesystem, f"{root}/{self.table}")
        for _, piece in groupby(_rows(batches), key=lambda row: row["piece"]):
            rows = list(piece)
            reader = PixelReader(
                filesystem, admitted_paths(map(dict, self.pixels), "parent_id", [rows[0]["parent_id"]]), rows[0]["parent_id"]
            )
            (self._volume if self.model.depth else self._piece)(rows, reader, out)
        if out.worked:
            yield pa.RecordBatch.from_pydict({"said": [json.dumps(out.close())]})

    def _piece(self, rows: list[dict[str, Any]], reader: PixelReader, out: _Out) -> None:
        """The wanted images of a piece, in the order of k; stored planes are kept for as long as neighbours may need them."""
        ks = [row["k"] for row in rows]
        wanted = [place for place, row in enumerate(rows) if row["wanted"]]
        stored: dict[int, np.ndarray] = {}
        for start in range(0, len(wanted), AT_ONCE):
            here = wanted[start : start + AT_ONCE]
            seen = {place: self._seen(place, ks) for place in here}
            needed = sorted({other for places in seen.values() for other in places})
            stored = {place: stored[place] for place in needed if place in stored}
            found = _read(reader, [rows[place]["image_id"] for place in needed if place not in stored])
            stored |= {place: found[rows[place]["image_id"]] for place in needed if rows[place]["image_id"] in found}
            out.worked = True
            ready = []
            for place in here:
                if all(other in stored for other in seen[place]):
                    ready.append(place)
                else:
                    out.reasons[NOT_STORED] += 1
            for place, probabilities in self._asked(ready, seen, stored, rows, out):
                out.add(rows[place], stored[place], probabilities)

    def _volume(self, rows: list[dict[str, Any]], reader: PixelReader, out: _Out) -> None:
        """A volume is predicted as a whole. Masks: each wanted slice gets those of the plane nearest to it. Classes: one answer, at the middle slice."""
        wanted = [place for place, row in enumerate(rows) if row["wanted"]]
        if not wanted:
            return
        out.worked = True
        places = [place if place >= 0 else len(rows) - 1 for place in self.model.planes(len(rows))]
        found = _read(reader, {rows[place]["image_id"] for place in places})
        if any(rows[place]["image_id"] not in found for place in places):
            out.reasons[NOT_STORED] += len(wanted)
            return
        try:
            probabilities = self.model.volume([found[rows[place]["image_id"]] for place in places], [rows[place] for place in places])
        except Exception as error:
            out.reasons[error.reason if isinstance(error, Rejected) else unexpected(error)] += len(wanted)
            return
        if probabilities.ndim == 1:
            out.add(rows[len(rows) // 2], np.zeros((1, 1)), probabilities, images=len(wanted))
            return
        for start in range(0, len(wanted), AT_ONCE):
            here = wanted[start : start + AT_ONCE]
            stored = _read(reader, [rows[place]["image_id"] for place in here])
            for place in here:
                if (image_id := rows[place]["image_id"]) in stored:
                    nearest = int(np.argmin(np.abs(np.array(places) - place)))
                    out.add(rows[place], stored[image_id], probabilities[nearest])
                else:
                    out.reasons[NOT_STORED] += 1

    def _seen(self, place: int, ks: Sequence[int | None]) -> list[int]:
        """Places of the planes that an image is seen with; one without a position stands alone."""
        if not self.model.context:
            return [place]
        if ks[place] is None:
            return [place] * (2 * self.model.context + 1)
        known = [other for other, k in enumerate(ks) if k is not None]
        return [known[other] for other in self.model.neighbours(known.index(place), [ks[other] or 0 for other in known])]

    def _asked(
        self,
        ready: list[int],
        seen: Mapping[int, list[int]],
        stored: Mapping[int, np.ndarray],
        rows: Sequence[Mapping[str, Any]],
        out: _Out,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(place, probabilities); where the model refuses one of several, each is asked alone and the reason counted."""

        def stack(place: int) -> tuple[list[np.ndarray], list[Mapping[str, Any]]]:
            return [stored[other] for other in seen[place]], [rows[other] for other in seen[place]]

        try:
            yield from zip(ready, self.model.probabilities([stack(place) for place in ready]), strict=True)
        except Exception as error:
            if len(ready) == 1:
                out.reasons[error.reason if isinstance(error, Rejected) else unexpected(error)] += 1
                return
            for place in ready:
                yield from self._asked([place], seen, stored, rows, out)


@dataclass
class _Out:
    """Rows on their way into files."""

    work: Worker
    filesystem: Any
    folder: str
    worked: bool = False
    images: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _files: list[dict[str, Any]] = field(default_factory=list)
    _batches: list[pa.RecordBatch] = field(default_factory=list)
    _records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Plain hashes: what goes in is a pseudonym already (target_id), so no key is needed on the executors.
        self._labels = LabelRows(Ids(None), None, self.now, "model", self.work.round)

    def add(self, row: Mapping[str, Any], stored: np.ndarray, probabilities: np.ndarray, images: int = 1) -> None:
        """``images`` : how many the row speaks for"""
        if self.work.table == "labels":
            self._masks(row, stored, probabilities)
            for rows in self._labels.take(256):
                self._keep(rows)
        else:
            self._classes(row, probabilities)
            if len(self._records) >= 4096:
                self._keep(Rows.of("predictions", self._records))
                self._records = []
        self.images += images

    def _masks(self, row: Mapping[str, Any], stored: np.ndarray, probabilities: np.ndarray) -> None:
        """A row for every label, of area 0 where the model sees none: what it has looked at is known."""
        model = self.work.model
        thresholds = [model.thresholds.get(label, 0.5) for label in model.labels]
        inside = present(probabilities, thresholds, model.exclusive, background=True)
        values = rescaled(stored, row["rescale_slope"], row["rescale_intercept"], row["modality_lut"])
        rows, cols = stored.shape[:2]
        counted = (row["valid_height_px"] or rows) * (row["valid_width_px"] or cols)
        area = (row["mpp_um"] / UM_PER_MM) ** 2 if row["mpp_um"] else pixel_mm2(row["pixel_spacing_mm"], row["pixel_spacing_source"])
        for number, label in enumerate(model.labels):
            mask, probability = inside[..., number], probabilities[..., number]
            mask = _on_slide(mask, row)
            group = Group(label, None, model.name, "positive", confidence=confidence(mask, probability))
            self._labels.add_mask(group, row["image_id"], row, cropped(mask), (rows, cols), counted, area, values)

    def _classes(self, row: Mapping[str, Any], probabilities: np.ndarray) -> None:
        model = self.work.model
        rank = np.argsort(np.argsort(-probabilities, kind="stable"), kind="stable")
        for number, label in enumerate(model.labels):
            self._records.append(
                {
                    "image_id": row["image_id"],
                    "target": "image",
                    "target_id": row["image_id"],
                    "model_uri": model.uri,
                    "task": model.task,
                    "label": label,
                    "probability": float(probabilities[number]),
                    "rank": int(rank[number]),
                    "threshold": None if model.exclusive else model.thresholds.get(label, 0.5),
                    "predicted_at": self.now,
                }
            )

    def _keep(self, rows: Rows) -> None:
        self._batches.append(rows.to_arrow(self.work.run_id, self.work.batch_id))
        if sum(batch.nbytes for batch in self._batches) >= FILE_BYTES:
            self._write()

    def _write(self) -> None:
        if not self._batches:
            return
        from medspark.lake.predict import said

        data = pa.Table.from_batches(self._batches).sort_by([(name, "ascending") for name in TABLES[self.work.table].cluster_by])
        name = f"part-{self.work.batch_id}-{uuid.uuid4().hex[:8]}.parquet"
        self.filesystem.create_dir(self.folder, recursive=True)
        self._files.append(said(write_parquet(self.filesystem, f"{self.folder}/{name}", data, name, TABLES[self.work.table].names)))
        self._batches = []

    def close(self) -> dict[str, Any]:
        for rows in self._labels.take():
            self._keep(rows)
        if self._records:
            self._keep(Rows.of("predictions", self._records))
        self._write()
        return {"files": self._files, "images": self.images, "reasons": dict(self.reasons)}


def _read(reader: PixelReader, image_ids: Iterable[str]) -> dict[str, np.ndarray]:
    """Stored arrays by id, less those that cannot be decoded: damage costs its image, not the run (``maintain_lake --verify`` finds it)."""
    wanted = sorted(image_ids)
    try:
        return reader(wanted)
    except OSError:
        raise  # the store's fault, which passes
    except Exception:
        found: dict[str, np.ndarray] = {}
        for image_id in wanted:
            with contextlib.suppress(Exception):
                found |= reader([image_id])
        return found


def confidence(mask: np.ndarray, probability: np.ndarray) -> float:
    """How sure the model is of a row: the mean probability inside its mask; of an empty one, 1 - the largest probability anywhere."""
    return float(probability[mask].mean(dtype=np.float64)) if mask.any() else float(1.0 - probability.max(initial=0.0))


def _on_slide(mask: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    """Without what lies beyond the slide (a tile's padding)."""
    height, width = row["valid_height_px"], row["valid_width_px"]
    if height is None or (height, width) == mask.shape:
        return mask
    kept = np.zeros_like(mask)
    kept[:height, :width] = mask[:height, :width]
    return kept


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()
