"""Who meets whom: which annotation files belong to which images, by what the files say and what the images are called."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from medspark.lake.store import Lake

JOB = "link_labels"
TRUTH = ("regions", "planes")


@dataclass(frozen=True)
class Ref:
    """What an annotation file says it belongs to."""

    source_id: str
    ref_image: str
    ref_dataset: str | None


@dataclass(frozen=True)
class Meeting:
    """One annotation file and one set of images.

    slide_id, grid_id : for slides;  dataset, series_instance_id and batch_id (the slices that this batch brought) : for series
    refs : the file's references that name this parent (one file may annotate many images)
    """

    source_id: str
    slide_id: str = ""
    grid_id: str = ""
    dataset: str = ""
    series_instance_id: str = ""
    batch_id: str = ""
    refs: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        parts = (self.grid_id, self.dataset, self.series_instance_id, self.batch_id)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def orphans(lake: Lake, refs: Iterable[Ref]) -> set[str]:
    """Annotation files of which at least one reference finds no image in the lake."""
    refs = list(refs)
    images = Images(lake, refs, None)
    return {ref.source_id for ref in refs if not images.parents(ref)}


def refs_in(rows: pa.Table) -> set[Ref]:
    """The references of rows of ``regions`` or ``planes``."""
    columns = [rows.column(name).to_pylist() for name in ("source_id", "ref_image", "ref_dataset")]
    return {Ref(*values) for values in zip(*columns, strict=True)}


def all_refs(lake: Lake) -> set[Ref]:
    """Every reference of every annotation in the lake."""
    found: set[Ref] = set()
    for table in TRUTH:
        if lake.exists(table):
            found |= refs_in(lake.read(table, ["source_id", "ref_image", "ref_dataset"]))
    return found


def sources_of(lake: Lake, batch_id: str) -> set[str]:
    """Annotation files that a batch brought."""
    found: set[str] = set()
    for table in TRUTH:
        if lake.exists(table):
            found |= set(lake.read(table, ["source_id"], pc.field("batch_id") == batch_id).column(0).to_pylist())
    return found


class Images:
    """Images of the lake (or of one batch) by what references may call them."""

    def __init__(self, lake: Lake, refs: Iterable[Ref], batch_id: str | None) -> None:
        self.lake, self.batch_id = lake, batch_id
        self.by: dict[str, dict[str, set[tuple[str, ...]]]] = {}
        wanted: dict[str, set[str]] = {}
        for ref in refs:
            kind, _, rest = ref.ref_image.partition(":")
            wanted.setdefault(kind, set()).add(rest.split("#", 1)[0] if kind == "sop" else rest)
        self._slides(wanted)
        self._series(wanted)

    def _put(self, kind: str, key: str | None, parent: tuple[str, ...]) -> None:
        if key:
            self.by.setdefault(kind, {}).setdefault(key, set()).add(parent)

    def _slides(self, wanted: Mapping[str, set[str]]) -> None:
        if not self.lake.exists("slides") or not wanted.keys() & {"name", "path", "folder", "image", "sop"}:
            return
        columns = ["slide_id", "dataset", "file_token", "folder_token", "level_instance_ids"]
        slides = {row["slide_id"]: row for row in self.lake.read("slides", columns).to_pylist()}
        where = None if self.batch_id is None else pc.field("batch_id") == self.batch_id
        for grid in self.lake.read("grids", ["grid_id", "slide_id"], where).to_pylist():
            slide = slides.get(grid["slide_id"])
            if slide is None:
                continue
            parent = ("slide", slide["dataset"], slide["slide_id"], grid["grid_id"])
            self._put("name", slide["file_token"], parent)
            self._put("path", f"{slide['folder_token']}/{slide['file_token']}", parent)
            self._put("image", slide["slide_id"], parent)
            for instance in slide["level_instance_ids"] or ():
                self._put("sop", instance, parent)

    def _series(self, wanted: Mapping[str, set[str]]) -> None:
        if not self.lake.exists("slices"):
            return
        fields = {"sop": "sop_instance_id", "name": "file_token", "folder": "folder_token"}
        conditions = [
            pc.field(column).isin(pa.array(sorted(wanted[kind]), pa.string())) for kind, column in fields.items() if wanted.get(kind)
        ]
        if wanted.get("path"):
            conditions.append(pc.field("file_token").isin(pa.array(sorted({path.split("/")[-1] for path in wanted["path"]}), pa.string())))
        if wanted.get("image"):
            names = pa.array(sorted(wanted["image"]), pa.string())
            conditions += [pc.field("series_id").isin(names), pc.field("image_id").isin(names)]
        if wanted.get("plane"):
            frames = pa.array(sorted(wanted["plane"]), pa.string())
            series = self.lake.read("series", ["series_id", "frame_of_reference_id"], pc.field("frame_of_reference_id").isin(frames))
            self.frames = dict(zip(series.column(0).to_pylist(), series.column(1).to_pylist(), strict=True))
            conditions.append(pc.field("series_id").isin(series.column(0).combine_chunks()))
        else:
            self.frames = {}
        if not conditions:
            return
        where = conditions[0]
        for condition in conditions[1:]:
            where = where | condition
        if self.batch_id is not None:
            where = where & (pc.field("batch_id") == self.batch_id)
        columns = ["dataset", "series_instance_id", "batch_id", "series_id", "image_id", "sop_instance_id", "file_token", "folder_token"]
        for row in self.lake.read("slices", columns, where).to_pylist():
            parent = ("series", row["dataset"], row["series_instance_id"], row["batch_id"])
            self._put("sop", row["sop_instance_id"], parent)
            self._put("name", row["file_token"], parent)
            self._put("folder", row["folder_token"], parent)
            self._put("path", f"{row['folder_token']}/{row['file_token']}", parent)
            self._put("image", row["series_id"], parent)
            self._put("image", row["image_id"], parent)
            self._put("plane", self.frames.get(row["series_id"]), parent)

    def parents(self, ref: Ref) -> set[tuple[str, ...]]:
        kind, _, rest = ref.ref_image.partition(":")
        found = self.by.get(kind, {}).get(rest.split("#", 1)[0] if kind == "sop" else rest, set())
        return {parent for parent in found if ref.ref_dataset is None or parent[1] == ref.ref_dataset}


def meetings_of(lake: Lake, refs: set[Ref], batch_id: str | None, own: set[str]) -> list[Meeting]:
    """What is to be worked: meetings of a batch of images with all annotations, or of the files ``own`` with all images."""
    mine = [ref for ref in refs if not own or ref.source_id in own]
    images = Images(lake, mine, batch_id)
    found: dict[tuple[str, str], Meeting] = {}
    for ref in mine:
        for parent in images.parents(ref):
            if parent[0] == "slide":
                meeting = Meeting(ref.source_id, slide_id=parent[2], grid_id=parent[3])
            else:
                # All batches of a series that has one matching slice: a volume's contours may lie on any of its slices.
                meeting = Meeting(ref.source_id, dataset=parent[1], series_instance_id=parent[2], batch_id=parent[3])
            key = (meeting.source_id, meeting.unit)
            before = found[key].refs if key in found else ()
            found[key] = dataclasses.replace(meeting, refs=(*before, ref.ref_image))
    done = linked(lake)
    return [meeting for key, meeting in sorted(found.items()) if key not in done]


def linked(lake: Lake) -> set[tuple[str, str]]:
    """(annotation source_id, unit) of the meetings that were worked."""
    rows = lake.read("sources", ["source_id", "settings"], pc.field("job") == JOB)
    return {
        (source, settings.rpartition(":")[2])
        for source, settings in zip(rows.column(0).to_pylist(), rows.column(1).to_pylist(), strict=True)
    }
