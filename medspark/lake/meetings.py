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
SLICE_NAMES = {"sop": ["sop_instance_id"], "name": ["file_token"], "folder": ["folder_token"], "image": ["series_id", "image_id"]}
PHOTO_NAMES = {"name": ["file_token"], "image": ["source_id", "image_id"]}
"""Kind of a reference -> columns of ``slices`` and ``photos`` that it may name."""
SHARD_DIGITS = 1  # a batch's photos in 16 parts: a table of labels for 20,000 photos is then 16 meetings of a minute each


@dataclass(frozen=True)
class Ref:
    """What an annotation file says it belongs to."""

    source_id: str
    ref_image: str
    ref_dataset: str | None

    @property
    def key(self) -> tuple[str, str]:
        """(kind, what it names); an instance without its frame."""
        kind, _, rest = self.ref_image.partition(":")
        return kind, rest.split("#", 1)[0] if kind == "sop" else rest


@dataclass(frozen=True)
class Meeting:
    """One annotation file and one set of images.

    slide_id, grid_id : for slides;  dataset, series_instance_id and batch_id (the slices that this batch brought) : for series
    dataset, batch_id and shard : for photos, those of a batch whose source_id begins with this digit: one file may annotate very many
    refs : the file's references that name this parent (one file may annotate many images)
    """

    source_id: str
    slide_id: str = ""
    grid_id: str = ""
    dataset: str = ""
    series_instance_id: str = ""
    batch_id: str = ""
    shard: str = ""
    refs: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        parts = [self.grid_id, self.dataset, self.series_instance_id, self.batch_id]
        if self.shard:
            parts.append("photos:" + self.shard)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def orphans(lake: Lake, refs: Iterable[Ref]) -> set[str]:
    """Annotation files of which at least one reference finds no image in the lake."""
    refs = list(refs)
    images = Images.answering(lake, refs)
    return {ref.source_id for ref in refs if not images.parents(ref)}


def any_of(wanted: Mapping[str, set[str]], columns: Mapping[str, list[str]]) -> pc.Expression | None:
    """Condition on the images' table that the references put; None where none can name an image. A path is looked up by its name."""
    keys = {kind: set(listed) for kind, listed in wanted.items() if kind in columns}
    keys.setdefault("name", set()).update(path.split("/")[-1] for path in wanted.get("path", ()))
    where = None
    for kind, listed in keys.items():
        for column in columns[kind] if listed else ():
            condition = pc.field(column).isin(pa.array(sorted(listed), pa.string()))
            where = condition if where is None else where | condition
    return where


def refs_in(rows: pa.Table) -> set[Ref]:
    """The references of rows of ``regions`` or ``planes``."""
    columns = [rows.column(name).to_pylist() for name in ("source_id", "ref_image", "ref_dataset")]
    return {Ref(*values) for values in zip(*columns, strict=True)}


def refs_where(lake: Lake, where: pc.Expression, named: Mapping[str, Iterable[str]] | None = None) -> set[Ref]:
    """Distinct references of annotations in the lake, read piece by piece.

    named : kind -> keys; only references that one of them answers (a lake's annotations may outgrow memory, a batch's images do not)
    """
    wanted = None
    if named is not None:
        wanted = pa.array(sorted({f"{kind}:{key}" for kind, keys in named.items() for key in keys}), pa.string())
    found: set[Ref] = set()
    for table in TRUTH:
        for piece in lake.scan(table, ["source_id", "ref_image", "ref_dataset"], where):
            if wanted is not None:
                said = pc.replace_substring_regex(piece.column("ref_image"), r"^(sop:[^#]*)#.*$", r"\1")
                piece = piece.filter(pc.is_in(said, value_set=wanted))
            if piece.num_rows:
                found |= refs_in(pa.Table.from_batches([piece]).group_by(piece.schema.names).aggregate([]))
    return found


class Images:
    """Images of the lake (or of one batch) by what references may call them."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.by: dict[str, dict[str, set[tuple[str, ...]]]] = {}

    @classmethod
    def answering(cls, lake: Lake, refs: Iterable[Ref], photos: pc.Expression | None = None) -> Images:
        """Those of the whole lake that one of the references may mean. ``photos`` : of the photos only such rows."""
        images, wanted = cls(lake), {}  # type: Images, dict[str, set[str]]
        for ref in refs:
            kind, key = ref.key
            wanted.setdefault(kind, set()).add(key)
        if wanted.keys() & {"name", "path", "image", "sop"}:
            images._slides(None)
        where = images._admits(wanted)
        if where is not None:
            images._slices(where)
        where = any_of(wanted, PHOTO_NAMES)
        if where is not None:
            images._photos(where if photos is None else where & photos)
        return images

    @classmethod
    def of_batch(cls, lake: Lake, batch_id: str) -> Images:
        """Those that a batch brought."""
        images = cls(lake)
        mine = pc.field("batch_id") == batch_id
        images._slides(mine)
        images._slices(mine)
        images._photos(mine)
        return images

    def _put(self, kind: str, key: str | None, parent: tuple[str, ...]) -> None:
        if key:
            self.by.setdefault(kind, {}).setdefault(key, set()).add(parent)

    def _slides(self, where: pc.Expression | None) -> None:
        columns = ["slide_id", "dataset", "file_token", "folder_token", "level_instance_ids"]
        grids = self.lake.read("grids", ["grid_id", "slide_id"], where).to_pylist() if self.lake.exists("grids") else []
        if not grids:
            return
        ids = pa.array(sorted({grid["slide_id"] for grid in grids}), pa.string())
        slides = {row["slide_id"]: row for row in self.lake.read("slides", columns, pc.field("slide_id").isin(ids)).to_pylist()}
        for grid in grids:
            slide = slides.get(grid["slide_id"])
            if slide is None:
                continue
            parent = ("slide", slide["dataset"], slide["slide_id"], grid["grid_id"])
            self._put("name", slide["file_token"], parent)
            self._put("path", f"{slide['folder_token']}/{slide['file_token']}", parent)
            self._put("image", slide["slide_id"], parent)
            for instance in slide["level_instance_ids"] or ():
                self._put("sop", instance, parent)

    def _admits(self, wanted: Mapping[str, set[str]]) -> pc.Expression | None:
        """Condition on ``slices`` that the references put; None where none can name a slice."""
        where = any_of(wanted, SLICE_NAMES)
        if wanted.get("plane"):
            frames = pc.field("frame_of_reference_id").isin(pa.array(sorted(wanted["plane"]), pa.string()))
            series = self.lake.read("series", ["series_id"], frames) if self.lake.exists("series") else None
            if series is not None and series.num_rows:
                placed = pc.field("series_id").isin(series.column(0).combine_chunks())
                where = placed if where is None else where | placed
        return where

    def _slices(self, where: pc.Expression) -> None:
        if not self.lake.exists("slices"):
            return
        columns = ["dataset", "series_instance_id", "batch_id", "series_id", "image_id", "sop_instance_id", "file_token", "folder_token"]
        rows = self.lake.read("slices", columns, where)
        if not rows.num_rows:
            return
        series = self.lake.read(
            "series", ["series_id", "frame_of_reference_id"], pc.field("series_id").isin(rows.column("series_id").unique())
        )
        frames = dict(zip(series.column(0).to_pylist(), series.column(1).to_pylist(), strict=True))
        for row in rows.to_pylist():
            parent = ("series", row["dataset"], row["series_instance_id"], row["batch_id"])
            self._put("sop", row["sop_instance_id"], parent)
            self._put("name", row["file_token"], parent)
            self._put("folder", row["folder_token"], parent)
            self._put("path", f"{row['folder_token']}/{row['file_token']}", parent)
            self._put("image", row["series_id"], parent)
            self._put("image", row["image_id"], parent)
            self._put("plane", frames.get(row["series_id"]), parent)

    def _photos(self, where: pc.Expression) -> None:
        if not self.lake.exists("photos"):
            return
        for rows in self.lake.scan("photos", ["dataset", "batch_id", "source_id", "image_id", "file_token", "folder_token"], where):
            for row in rows.to_pylist():
                parent = ("photo", row["dataset"], row["batch_id"], row["source_id"][:SHARD_DIGITS])
                self._put("name", row["file_token"], parent)
                self._put("path", f"{row['folder_token']}/{row['file_token']}", parent)
                self._put("image", row["source_id"], parent)
                self._put("image", row["image_id"], parent)

    def parents(self, ref: Ref) -> set[tuple[str, ...]]:
        kind, key = ref.key
        found = self.by.get(kind, {}).get(key, set())
        return {parent for parent in found if ref.ref_dataset is None or parent[1] == ref.ref_dataset}


def meetings_of(lake: Lake, batch_id: str) -> list[Meeting]:
    """What a batch brought about and is not worked yet: its annotations with all images, or its images with all annotations."""
    if not any(lake.exists(table) for table in TRUTH):
        return []
    mine = refs_where(lake, pc.field("batch_id") == batch_id)
    if mine:
        images = Images.answering(lake, mine)
    else:
        images = Images.of_batch(lake, batch_id)
        mine = refs_where(lake, pc.scalar(True), images.by) if images.by else set()
    found: dict[tuple[str, str], Meeting] = {}
    for ref in sorted(mine, key=lambda ref: (ref.source_id, ref.ref_image)):
        for parent in images.parents(ref):
            if parent[0] == "slide":
                meeting = Meeting(ref.source_id, slide_id=parent[2], grid_id=parent[3])
            elif parent[0] == "photo":
                meeting = Meeting(ref.source_id, dataset=parent[1], batch_id=parent[2], shard=parent[3])
            else:
                meeting = Meeting(ref.source_id, dataset=parent[1], series_instance_id=parent[2], batch_id=parent[3])
            key = (meeting.source_id, meeting.unit)
            before = found[key].refs if key in found else ()
            found[key] = dataclasses.replace(meeting, refs=(*before, ref.ref_image))
    if not found:
        return []
    done = linked(lake)
    return [meeting for key, meeting in sorted(found.items()) if key not in done]


def linked(lake: Lake) -> set[tuple[str, str]]:
    """(annotation source_id, unit) of the meetings that were worked."""
    rows = lake.read("sources", ["source_id", "settings"], pc.field("job") == JOB)
    return {
        (source, settings.rpartition(":")[2])
        for source, settings in zip(rows.column(0).to_pylist(), rows.column(1).to_pylist(), strict=True)
    }
