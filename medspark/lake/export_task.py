"""One task of an export: label rows sorted by parent in, files out, one parent at a time. Runs on the executors and holds no key."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from medspark.errors import Rejected, unexpected
from medspark.keys import Ids
from medspark.labels.export import coco, geojson, nifti, png, seg, values
from medspark.labels.export.rows import Mask, Reader, by_reader, suffix
from medspark.labels.export.stitch import Canvas
from medspark.lake.export_files import Lists, replaced
from medspark.lake.files import admitted_paths, locate, read_where
from medspark.lake.link import to_level_0


@dataclass
class Result:
    """What an export wrote, or a task's part of it."""

    files: int = 0
    label_rows: int = 0
    parents: int = 0
    rejected: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, part: Mapping[str, Any]) -> None:
        """Takes the fields of another one in, as JSON brings them."""
        for name, value in part.items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine + value)

    def said(self) -> dict[str, Any]:
        """What the summary adds: reasons of rejections by code, rows that the format cannot say, how shapes came about."""
        counts = {name: count for name, count in sorted(self.counts.items()) if count}
        optional = {"rejections": dict(sorted(self.reasons.items())), "left_out": dict(sorted(self.left_out.items()))}
        return {**counts, **{name: value for name, value in optional.items() if value}}


@dataclass
class Part:
    """What a task has made: totals, and lists in files of the stage. ``first`` : its first parent."""

    first: str
    made: Result = field(default_factory=Result)
    lists: dict[str, str] = field(default_factory=dict)

    def refuse(self, parent_id: str, code: str, reason: str, lists: Lists) -> None:
        self.made.rejected += 1
        self.made.reasons[code] += 1
        lists.row("rejected", (parent_id, code, reason))


@dataclass(frozen=True)
class Item:
    """One file. ``image``: what ``--pairs`` calls its image; ``reader``: whose labels it holds, None for several."""

    name: str
    image: str
    reader: Reader | None
    label_rows: int
    write: Callable[[IO[bytes]], None]


@dataclass(frozen=True)
class Exporter:
    """The work of an export task; travels to the executors by closure. Holds no key.

    values : label -> number;  regions : files of ``regions`` with their statistics (`Lake.actions`)
    staged : files go into the stage, not into ``out``: the driver still has to work on them
    """

    format: str
    lake_uri: str
    out: str
    stage: str
    values: Mapping[str, int]
    regions: Sequence[dict[str, Any]]
    staged: bool

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filesystem, root, _ = locate(self.out)
        part: Part | None = None
        lists = Lists(filesystem, self.stage)
        for parent_id, rows in groupby(_rows(batches), key=lambda row: row["parent_id"]):
            part = part or Part(parent_id)
            part.made.parents += 1
            try:
                parent = Parent.of(parent_id, list(rows))
                for item in self._items(parent, lists, part):
                    self._write(filesystem, root, item, parent, lists, part)
            except Rejected as error:
                part.refuse(parent_id, error.code, error.reason, lists)
            except OSError:
                raise  # the disk's fault, not the labels'
            except Exception as error:  # what no writer foresaw costs its parent, not the export
                part.refuse(parent_id, "LABEL_FORMAT", unexpected(error), lists)
        if part is not None:
            part.lists = lists.close()
            yield pa.RecordBatch.from_pydict({"said": [json.dumps({**part.__dict__, "made": part.made.__dict__})]})

    def _items(self, parent: Parent, lists: Lists, part: Part) -> Iterator[Item]:
        if self.format == "coco":
            for line in coco.entries(parent.masks, self.values):
                lists.text("coco", line + "\n")
            part.made.label_rows += len(parent.masks)
            part.made.counts["thresholded"] += sum(mask.fractional for mask in parent.masks)
            return
        makers = {"seg": self._seg, "nifti": self._nifti, "png": self._png, "geojson": self._geojson}
        yield from makers[self.format](parent, part)

    def _write(self, filesystem: pafs.FileSystem, root: str, item: Item, parent: Parent, lists: Lists, part: Part) -> None:
        with replaced(filesystem, f"{self.stage if self.staged else root}/{item.name}") as stream:
            item.write(stream)
        part.made.files += 1
        part.made.label_rows += item.label_rows
        reader = item.reader
        whose = (reader.source, reader.source_id, reader.annotator, reader.round) if reader else ("", "", "", "")
        lists.row("pairs", (item.image, item.name, *whose))
        if self.staged:
            assert parent.series is not None
            lists.row("staged", (item.name, parent.series["series_instance_id"]))

    def _seg(self, parent: Parent, part: Part) -> Iterator[Item]:
        series = parent.must_be_series("a segmentation refers to the instances of a DICOM series; use geojson, coco or png")
        readers = by_reader(parent.masks)
        for reader, masks in readers.items():
            for number, written in enumerate(seg.write(series, masks, Ids(None))):
                name = f"{parent.parent_id}{suffix(reader, list(readers))}{f'-{number + 1}' if number else ''}.dcm"
                part.made.counts["fractional"] += written.fractional
                yield Item(name, parent.parent_id, reader, written.label_rows, _giving(written.data()))

    def _nifti(self, parent: Parent, part: Part) -> Iterator[Item]:
        series = parent.must_be_series("a NIfTI volume is made of the slices of a series; use geojson, coco or png")
        part.made.counts["thresholded"] += sum(mask.fractional for mask in parent.masks)
        readers = by_reader(parent.masks)
        for reader, masks in readers.items():
            for volume in nifti.write(series, masks, self.values):
                t = f"-t{volume.t}" if series["n_volumes"] > 1 else ""
                one = "" if volume.label is None else f"-v{self.values[volume.label]}"
                name = f"{parent.parent_id}{suffix(reader, list(readers))}{t}{one}.nii.gz"
                yield Item(name, parent.parent_id, reader, volume.label_rows, _giving(volume.data))

    def _png(self, parent: Parent, part: Part) -> Iterator[Item]:
        part.made.counts["thresholded"] += sum(mask.fractional for mask in parent.masks)
        bits = 8 * values.value_type(self.values)().itemsize

        def drawn(rows: int, cols: int, stripes: Iterator[Any]) -> Callable[[IO[bytes]], None]:
            return lambda stream: png.write(stream, rows, cols, stripes, bits)

        for image, name, masks, canvas in parent.pictures():
            readers = by_reader(masks)
            for reader, mine in readers.items():
                stem = f"{name}{suffix(reader, list(readers))}"
                if canvas is not None:
                    for label in png.slide_labels(mine):
                        one = "" if label is None else f"-v{self.values[label]}"
                        count = sum(label in (None, mask.label) for mask in mine)
                        stripes = png.stripes(canvas, mine, self.values, label)
                        yield Item(f"{stem}{one}.png", image, reader, count, drawn(canvas.rows, canvas.cols, stripes))
                    continue
                for label, array in png.images(mine, self.values):
                    one = "" if label is None else f"-v{self.values[label]}"
                    count = sum(label in (None, mask.label) for mask in mine)
                    yield Item(f"{stem}{one}.png", image, reader, count, drawn(*array.shape, iter([array])))

    def _geojson(self, parent: Parent, part: Part) -> Iterator[Item]:
        if parent.series is not None:
            raise Rejected("UNKNOWN_KIND", "GeoJSON is in pixels of one picture, not of a series; use seg, nifti, coco or png")
        part.made.counts["thresholded"] += sum(mask.fractional for mask in parent.masks)
        for image, name, masks, canvas in parent.pictures():
            regions = self._regions(parent.slide, masks) if parent.slide is not None else None
            place = canvas or Canvas(masks[0].rows, masks[0].cols)

            def write(stream: IO[bytes], place: Canvas = place, masks: list[Mask] = masks, regions: pa.Table | None = regions) -> None:
                def counted() -> Iterator[geojson.Feature]:
                    for feature in geojson.features(place, masks, regions):
                        part.made.counts["as_drawn" if feature.drawn else "traced"] += 1
                        yield feature

                for piece in geojson.document(counted()):
                    stream.write(piece)

            yield Item(f"{name}.geojson", image, None, len(masks), write)

    def _regions(self, slide: Mapping[str, Any], masks: Sequence[Mask]) -> pa.Table | None:
        """What was drawn on the slide by the sources of the masks, in level-0 px."""
        sources = sorted({mask.reader.source_id for mask in masks} - {""})
        files = admitted_paths(self.regions, "source_id", sources)
        if not files:
            return None
        refs = [f"name:{slide['file_token']}", f"folder:{slide['folder_token']}", f"image:{slide['slide_id']}"]
        refs.append(f"path:{slide['folder_token']}/{slide['file_token']}")
        refs += [f"sop:{uid}#0" for uid in slide["level_instance_ids"] or ()]
        where = pc.field("source_id").isin(pa.array(sources)) & pc.field("ref_image").isin(pa.array(refs))
        filesystem, _, _ = locate(self.lake_uri)
        return to_level_0(read_where(filesystem, "regions", files, where), slide)


@dataclass(frozen=True)
class Parent:
    """A series, a slide, or (both None) a photo's source, with its masks by image."""

    parent_id: str
    masks: list[Mask]
    series: Mapping[str, Any] | None
    slide: Mapping[str, Any] | None

    @classmethod
    def of(cls, parent_id: str, rows: Sequence[Mapping[str, Any]]) -> Parent:
        masks = []
        for row in rows:
            tile, slice = (row[table] or {} for table in ("tiles", "slices"))
            image = tile if tile.get("image_id") else (slice if slice.get("series_id") else {})
            masks.append(Mask.of(row, image))
        series, slide = ((rows[0][table] or {}) for table in ("series", "slides"))
        return cls(parent_id, masks, series if series.get("series_id") else None, slide if slide.get("slide_id") else None)

    def must_be_series(self, reason: str) -> Mapping[str, Any]:
        if self.series is None:
            raise Rejected("UNKNOWN_KIND", reason)
        return self.series

    def pictures(self) -> Iterator[tuple[str, str, list[Mask], Canvas | None]]:
        """(image as ``--pairs`` names it, file name without its ending, masks, canvas of a slide's grid): one per grid or image."""
        if self.slide is None:
            for image_id, masks in groupby(self.masks, key=lambda mask: mask.image_id):
                yield image_id, f"{self.parent_id}/{image_id}", list(masks), None
            return
        grids: dict[str, list[Mask]] = {}
        for mask in self.masks:
            grids.setdefault(mask.image["grid_id"], []).append(mask)
        for grid_id, masks in sorted(grids.items()):
            name = self.parent_id if len(grids) == 1 else f"{self.parent_id}-{grid_id[:8]}"
            yield self.parent_id, name, masks, Canvas.of_grid(self.slide, masks[0].image)


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The rows one by one; a parent's own columns only with its first row of a batch."""
    for batch in batches:
        narrow = batch.select([name for name in batch.schema.names if name not in ("series", "slides")])
        series, slides = batch.column("series"), batch.column("slides")
        last = None
        for place, row in enumerate(narrow.to_pylist()):
            first = row["parent_id"] != last
            last = row["parent_id"]
            yield {**row, "series": series[place].as_py() if first else None, "slides": slides[place].as_py() if first else None}


def _giving(data: bytes) -> Callable[[IO[bytes]], None]:
    def write(stream: IO[bytes]) -> None:
        stream.write(data)

    return write
