"""Labels come about wherever annotations and images meet, whoever came first.

A batch that brought annotations meets all images of the lake; a batch that brought images meets all annotations. Each meeting, (annotation
file, grid of a slide) or (annotation file, series, batch of its slices), is worked once: it is claimed and closed like any other work, under
the job name ``link_labels``, so kills, second jobs and later grids or slices are covered by the same protocol. The rasterising itself is
pure (`medspark.labels.link`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medspark.config import Config
from medspark.errors import Rejected, unexpected
from medspark.keys import Ids
from medspark.lake import photo_meetings, tasks
from medspark.lake.batch import Batch
from medspark.lake.derive import drop_where
from medspark.lake.explode import StageWriter, TaskResult
from medspark.lake.files import PRIVATE, admitted_paths, locate, read_where
from medspark.lake.meetings import JOB, TRUTH, Meeting, linked, meetings_of, orphans, refs_where
from medspark.lake.pixels import PixelReader
from medspark.lake.session import cores
from medspark.lake.stage import Stage
from medspark.lake.store import Lake
from medspark.lake.truth import TruthReader
from medspark.tables.catalog import TABLES
from medspark.tables.rows import Rejection, Rows, rejected_rows
from medspark.tables.work import SourceFile

ITSELF = "the file is itself the image that it would label; a picture of few colours may look like a label image"
PLANE_BATCH = 16  # planes read at once: a mask band of a large slide may hold some MB

SLICE_COLUMNS = [column.name for column in TABLES["slices"].columns if column.name not in ("header_json", "series_attributes")]


def link(lake: Lake, ids: Ids, settings: Config, run_id: str, batch_id: str) -> dict[str, int]:
    """Works every meeting that a closed batch brought about; idempotent. Returns rows written by table."""
    settle(lake, batch_id)
    meetings = meetings_of(lake, batch_id)
    if not meetings:
        return {}
    return _work(lake, ids, settings, run_id, meetings)


def supersede(lake: Lake, batch_id: str) -> None:
    """A file read again under other settings replaces what it said before: an annotation's regions, planes and labels, a photo's classes.

    The old ledger rows go last, so that after a kill in between the rest is done again.
    """
    if lake.exists("regions"):
        again = _again(lake, "import_labels", batch_id)
        if again:
            _supersede_annotations(lake, batch_id, again)
    if lake.exists("photos"):
        again = _again(lake, "ingest_photos", batch_id)
        if again:
            _supersede_photos(lake, batch_id, again)


def _again(lake: Lake, job: str, batch_id: str) -> list[str]:
    """Sources of a batch that an earlier batch of the same job closed under other settings."""
    ledger = lake.read("sources", ["source_id", "batch_id"], pc.field("job") == job)
    batches = ledger.column("batch_id")
    mine = ledger.filter(pc.equal(batches, batch_id)).column("source_id").unique()
    if not len(mine):
        return []
    others = ledger.filter(pc.and_(pc.not_equal(batches, batch_id), pc.is_in(ledger.column("source_id"), value_set=mine)))
    return sorted(others.column("source_id").unique().to_pylist())


def _supersede_annotations(lake: Lake, batch_id: str, again: Sequence[str]) -> None:
    whose = pc.field("source_id").isin(pa.array(again, pa.string()))
    for table in ("labels", "rejected", *TRUTH):
        old = whose if table == "labels" else whose & (pc.field("batch_id") != batch_id)
        lake.rewrite(table, drop_where(old), "source_id", again)
    lake.rewrite("sources", drop_where(whose & (pc.field("job") == JOB)), "source_id", again)
    lake.rewrite(
        "sources", drop_where(whose & (pc.field("job") == "import_labels") & (pc.field("batch_id") != batch_id)), "source_id", again
    )


def _supersede_photos(lake: Lake, batch_id: str, again: Sequence[str]) -> None:
    """The photo and its pixels stay with the batch that brought them; the new ledger row takes over how many they are."""
    whose = pc.field("source_id").isin(pa.array(again, pa.string()))
    old = whose & (pc.field("batch_id") != batch_id)
    for table in ("labels", "rejected"):
        lake.rewrite(table, drop_where(old), "source_id", again)
    mine = old & (pc.field("job") == "ingest_photos")
    before: dict[str, dict[str, Any]] = {}
    for row in lake.read("sources", ["source_id", "n_images", "n_rejected", "status"], mine).to_pylist():
        if row["n_images"] >= before.get(row["source_id"], row)["n_images"]:
            before[row["source_id"]] = row

    def taken_over(rows: pa.Table) -> pa.Table:
        records, changed = rows.to_pylist(), False
        for row in records:
            was = before.get(row["source_id"])
            if was and was["n_images"] and row["batch_id"] == batch_id and row["job"] == "ingest_photos" and not row["n_images"]:
                row.update(n_images=was["n_images"], n_rejected=was["n_rejected"], status=was["status"])
                changed = True
        return pa.Table.from_pylist(records, rows.schema) if changed else rows

    lake.rewrite("sources", taken_over, "source_id", again)
    lake.rewrite("sources", drop_where(mine), "source_id", again)


# ---- the work


@dataclass(frozen=True)
class Linker:
    """The work of a link task: reads the rows of both sides by file lists and calls the pure link."""

    ids: Ids
    settings: Config
    lake_uri: str
    run_id: str
    batch_id: str
    now: datetime
    files: Mapping[str, Mapping[str, Sequence[str]]]

    def __call__(self, items: Iterable[tuple[Meeting, SourceFile]], watch: tasks.Watcher, partition: int) -> Iterator[TaskResult]:
        filesystem, root, _ = locate(self.lake_uri)
        result = TaskResult(partition)
        stage = StageWriter(filesystem, f"{root}/{PRIVATE}/{self.batch_id}", partition, result)
        truth = {table: TruthReader(filesystem, table) for table in TRUTH}
        for together in photo_meetings.together(items):
            photos = self._photos(filesystem, together) if together[0][0].shard else None
            for meeting, source in together:
                try:
                    watch(source, meeting.unit)
                    if photos is None:
                        found = self._meet(filesystem, truth, meeting, source)
                    else:
                        found = self._meet_photos(photos, meeting, source, watch)
                    for item in found:
                        if isinstance(item, Rejection):
                            result.rejections.append(item)
                        elif len(item):
                            stage.write(item.table, item.to_arrow(self.run_id, self.batch_id))
                            result.rows[item.table] += len(item)
                            result.images[f"{meeting.source_id}/{meeting.unit}"] += len(item)
                except Rejected as error:
                    result.rejections.append(Rejection(source.source_id, source.uri, "link", error.code, error.reason))
                except Exception as error:
                    result.rejections.append(Rejection(source.source_id, source.uri, "link", "LABEL_FORMAT", unexpected(error)))
        stage.close()
        yield result

    def _meet(self, filesystem: Any, truth: Mapping[str, TruthReader], meeting: Meeting, source: SourceFile) -> Iterator[Rows | Rejection]:
        from medspark.labels.link import link_slices, link_tiles

        files = self.files[f"{meeting.source_id}/{meeting.unit}"]
        mine = _belongs(meeting)
        regions = truth["regions"].whole(files["regions"], meeting.source_id, mine)
        planes = _few(truth["planes"](files["planes"], meeting.source_id, mine))
        values = PixelReader(filesystem, files["pixels"], meeting.slide_id)
        if meeting.grid_id:
            slide = read_where(filesystem, "slides", files["slides"], pc.field("slide_id") == meeting.slide_id).to_pylist()[0]
            if slide["source_id"] == meeting.source_id:
                raise Rejected("LABEL_FORMAT", ITSELF)
            grid = read_where(filesystem, "grids", files["grids"], pc.field("grid_id") == meeting.grid_id).to_pylist()[0]
            tiles = read_where(filesystem, "tiles", files["tiles"], pc.field("grid_id") == meeting.grid_id)
            regions = to_level_0(regions, slide)
            yield from link_tiles(slide, grid, tiles, regions, planes, values, source, self.ids, self.settings, self.now)
            return
        where = (pc.field("series_instance_id") == meeting.series_instance_id) & (pc.field("dataset") == meeting.dataset)
        slices = read_where(filesystem, "slices", files["slices"], where, SLICE_COLUMNS)
        if slices.column("source_id").unique().to_pylist() == [meeting.source_id]:
            raise Rejected("LABEL_FORMAT", ITSELF)
        only = set(slices.filter(pc.equal(slices.column("batch_id"), meeting.batch_id)).column("image_id").to_pylist())
        series = read_where(filesystem, "series", files["series"], where).to_pylist()
        values = PixelReader(filesystem, files["pixels"], "")
        yield from link_slices(
            series[0] if len(series) == 1 else None, slices, only, regions, planes, values, source, self.ids, self.settings, self.now
        )

    def _photos(self, filesystem: Any, together: Sequence[tuple[Meeting, SourceFile]]) -> photo_meetings.Photos:
        meetings = [meeting for meeting, _ in together]
        return photo_meetings.Photos.read(filesystem, meetings, [self.files[f"{one.source_id}/{one.unit}"] for one in meetings])

    def _meet_photos(
        self, photos: photo_meetings.Photos, meeting: Meeting, source: SourceFile, watch: tasks.Watcher
    ) -> Iterator[Rows | Rejection]:
        from medspark.labels.link import link_photos

        def values(image_ids: list[str]) -> Mapping[str, Any]:
            watch(source, f"{meeting.unit} {image_ids[0]}")
            return photos.values(image_ids)

        mine = pc.field("source_id") == meeting.source_id
        shard = (pc.field("batch_id") == meeting.batch_id) & (pc.field("dataset") == meeting.dataset)
        here = photos.photos.filter(shard & pc.starts_with(pc.field("source_id"), meeting.shard))
        if here.filter(mine).num_rows:
            yield Rejection(source.source_id, source.uri, "link", "LABEL_FORMAT", ITSELF)
            here = here.filter(~mine)
        regions, planes = photos.regions.filter(mine), photos.planes.filter(mine)
        yield from link_photos(here, regions, planes, values, source, self.ids, self.settings, self.now)


def _cost_s(meeting: Meeting) -> float:
    """Seconds, roughly: slides and series are long, a photo is decoded and measured in some hundredths."""
    return 0.05 + 0.05 * len(meeting.refs) if meeting.shard else 4.0


def _belongs(meeting: Meeting) -> pc.Expression:
    """Which rows of the file name this parent. On a series every plane and instance reference comes along: its slices sort them out."""
    named = pc.field("ref_image").isin(pa.array(meeting.refs, pa.string()))
    if not meeting.grid_id:
        named = named | pc.starts_with(pc.field("ref_image"), "sop:") | pc.starts_with(pc.field("ref_image"), "plane:")
    return named


def to_level_0(regions: pa.Table, slide: Mapping[str, Any]) -> pa.Table:
    """Regions drawn on a level of a DICOM slide (``sop:`` names the level) in level-0 pixels."""
    levels = {f"sop:{uid}": scale for uid, scale in zip(slide["level_instance_ids"] or (), slide["level_downsamples"], strict=False)}
    refs = [ref.split("#", 1)[0] for ref in regions.column("ref_image").to_pylist()]
    if all(levels.get(ref, 1.0) == 1.0 for ref in refs):
        return regions
    rings = [
        [[{**point, "x": point["x"] * levels.get(ref, 1.0), "y": point["y"] * levels.get(ref, 1.0)} for point in ring] for ring in shape]
        for ref, shape in zip(refs, regions.column("rings").to_pylist(), strict=True)
    ]
    place = regions.schema.get_field_index("rings")
    return regions.set_column(place, regions.schema.field(place), pa.array(rings, regions.schema.field(place).type))


def _few(pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The planes a few at a time."""
    for rows in pieces:
        for start in range(0, rows.num_rows, PLANE_BATCH):
            yield rows.slice(start, PLANE_BATCH)


def _work(lake: Lake, ids: Ids, settings: Config, run_id: str, meetings: Sequence[Meeting]) -> dict[str, int]:
    fingerprint = settings.fingerprint("labels", "deid", extra=(ids.fingerprint,))
    batch = Batch(lake, run_id, JOB, fingerprint, settings.ingest.lease_s)
    names = {f"{meeting.source_id}/{meeting.unit}": meeting for meeting in meetings}

    def done(claimed: Sequence[str]) -> set[str]:
        over = linked(lake)
        return {name for name in claimed if tuple(name.split("/", 1)) in over}

    left = batch.claim(names, {}, done=done)
    if not left:
        return {}
    with batch.worked():
        annotations = pa.array(sorted({names[name].source_id for name in left}), pa.string())
        where = (pc.field("job") == "import_labels") & pc.field("source_id").isin(annotations)
        rows = lake.read("sources", ["source_id", "uri", "dataset", "size_bytes", "sha256", "modified_at"], where)
        about = {row["source_id"]: row for row in rows.to_pylist()}
        items = []
        for name in left:
            source = about[names[name].source_id]
            items.append((names[name], SourceFile(source["source_id"], source["uri"], "", source["size_bytes"], source["dataset"])))
        work = Linker(ids, settings, lake.uri, run_id, batch.batch_id, datetime.now(UTC), _file_lists(lake, [names[name] for name in left]))
        parts = tasks.split(items, lambda item: _cost_s(item[0]), 12.0, cores(lake.spark))
        results = tasks.run(lake.spark, tasks.Journal.of(lake, batch.batch_id), parts, work, 10 * settings.guard.decode_s)
        return _commit(lake, batch, run_id, left, names, about, results)


def _commit(
    lake: Lake,
    batch: Batch,
    run_id: str,
    left: Sequence[str],
    names: Mapping[str, Meeting],
    about: Mapping[str, dict[str, Any]],
    results: Sequence[TaskResult],
) -> dict[str, int]:
    now = datetime.now(UTC)
    stage = Stage.of(lake, run_id, batch.batch_id, results)
    made: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    rejections = sorted(
        {item for result in results for item in result.rejections}, key=lambda item: (item.source_id, item.code, item.message)
    )
    for result in results:
        made.update(result.images)
    for item in rejections:
        lost[item.source_id] += max(1, item.images)
    if rejections:
        stage.add(rejected_rows(rejections, lambda item: about[item.source_id]["dataset"], str, now))
    files = {table: stage.files(table, _unlabelled(lake, stage) if table == "labels" else None) for table in stage.tables()}
    batch.append(files)
    ledger = []
    for name in left:
        source = about[names[name].source_id]
        count, bad = made[name], lost[source["source_id"]]
        ledger.append(
            {
                **{key: source[key] for key in ("source_id", "dataset", "uri", "size_bytes", "modified_at", "sha256")},
                "kind": "annotation",
                "job": JOB,
                "settings": f"{batch.settings}:{names[name].unit}",
                "status": "ok" if not bad else ("partial" if count else "rejected"),
                "n_images": count,
                "n_rejected": bad,
                "ingested_at": now,
            }
        )
    batch.close(Rows.of("sources", ledger))
    settle(lake, batch.batch_id)
    batch.release()
    stage.clear()
    written = {table: sum(file.rows for file in listed) for table, listed in files.items()}
    rejected = {row["source_id"] for row in ledger if row["status"] == "rejected"}
    return {**written, "linked_rejections": sum(lost.values()), "linked_rejected_sources": len(rejected)}


def _unlabelled(lake: Lake, stage: Stage) -> Callable[[pa.Table], pa.Table] | None:
    """Labels of a whole slide or series come with each of its grids or batches: the patch that keeps the first of each."""
    rows = stage.narrow("labels", ["label_row_id", "target"])
    whole = rows.filter(pc.not_equal(rows.column("target"), "image")).column("label_row_id").combine_chunks()
    if not len(whole):
        return None
    there = set(lake.read("labels", ["label_row_id"], pc.field("label_row_id").isin(whole)).column(0).to_pylist())

    def patch(piece: pa.Table) -> pa.Table:
        keep = []
        for target, row_id in zip(piece.column("target").to_pylist(), piece.column("label_row_id").to_pylist(), strict=True):
            keep.append(target == "image" or row_id not in there)
            if target != "image":
                there.add(row_id)
        return piece.filter(pa.array(keep, pa.bool_()))

    return patch


def _file_lists(lake: Lake, meetings: Sequence[Meeting]) -> dict[str, dict[str, list[str]]]:
    """Per meeting, the files of each table whose statistics admit its rows: tasks then need neither the log nor Spark."""
    lists: dict[str, dict[str, list[str]]] = {}
    actions = {
        table: lake.actions(table) for table in ("regions", "planes", "slides", "grids", "tiles", "slices", "series", "photos", "pixels")
    }
    series_ids: dict[tuple[str, str], list[str]] = {}
    of_photos: dict[tuple[str, str], dict[str, list[str]]] = {}
    instances = pa.array(sorted({meeting.series_instance_id for meeting in meetings if meeting.series_instance_id}), pa.string())
    if len(instances):
        rows = lake.read("series", ["dataset", "series_instance_id", "series_id"], pc.field("series_instance_id").isin(instances))
        for row in rows.to_pylist():
            series_ids.setdefault((row["dataset"], row["series_instance_id"]), []).append(row["series_id"])
    for meeting in meetings:
        source, slide = [meeting.source_id], [meeting.slide_id]
        series = series_ids.get((meeting.dataset, meeting.series_instance_id), [])
        truth = {table: admitted_paths(actions[table], "source_id", source) for table in TRUTH}
        if meeting.grid_id:
            images = {table: admitted_paths(actions[table], "slide_id", slide) for table in ("slides", "grids", "tiles")}
            images["pixels"] = admitted_paths(actions["pixels"], "parent_id", slide)
        elif meeting.shard:
            images = photo_meetings.files_of(actions, meeting.batch_id, meeting.shard, of_photos)
        else:
            images = {table: admitted_paths(actions[table], "series_id", series) for table in ("slices", "series")}
            images["pixels"] = admitted_paths(actions["pixels"], "parent_id", series)
        lists[f"{meeting.source_id}/{meeting.unit}"] = {**truth, **images}
    return lists


def settle(lake: Lake, batch_id: str) -> None:
    """Annotations that waited and have met all their images now: their ledger row says ok, their ORPHAN_LABEL goes."""
    rows = lake.read("sources", ["source_id", "job", "batch_id"], (pc.field("batch_id") == batch_id) & (pc.field("job") == JOB))
    linked = sorted(set(rows.column("source_id").to_pylist()))
    if not linked:
        return
    where = pc.field("source_id").isin(pa.array(linked)) & (pc.field("status") == "waiting")
    waiting = set(lake.read("sources", ["source_id"], where).column(0).to_pylist())
    if not waiting:
        return
    there = waiting - orphans(lake, refs_where(lake, pc.field("source_id").isin(pa.array(sorted(waiting), pa.string()))))
    if not there:
        return
    mine = pc.field("source_id").isin(pa.array(sorted(there), pa.string()))

    def ok(rows: pa.Table) -> pa.Table:
        states = zip(rows.column("source_id").to_pylist(), rows.column("status").to_pylist(), strict=True)
        after = ["ok" if source in there and state == "waiting" else state for source, state in states]
        if after == rows.column("status").to_pylist():
            return rows
        place = rows.schema.get_field_index("status")
        return rows.set_column(place, rows.schema.field(place), pa.array(after, pa.string()))

    lake.rewrite("sources", ok, "source_id", there)
    lake.rewrite("rejected", drop_where(mine & (pc.field("code") == "ORPHAN_LABEL")), "source_id", there)
