"""Verifies a lake: every file there and readable, every payload and every file of a feed with its checksum, every mask with its size, every image
with its pixels.

Damage is listed, never repaired here. For damaged payload the list (`damage`) is kept in the lake; the next ingest of the originals under the
same settings makes just those images again (`mend`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medspark.errors import Rejected
from medspark.lake import tasks
from medspark.lake.batch import DATA, open_batches
from medspark.lake.files import locate
from medspark.lake.session import cores
from medspark.lake.store import Lake
from medspark.lake.upkeep import damage
from medspark.lake.upkeep.check import UNREADABLE, Asked, Damage, check
from medspark.lake.upkeep.feeds import checksums, feeds
from medspark.tables.work import SourceFile

TABLES_CHECKED = ("sources", *DATA)
BYTES_PER_S = 4e8  # read and checksum, one core; balances the tasks
TASK_S = 20.0
CRASH_S = 600.0  # Arrow's reader on one file of a damaged disk; it never hung in practice
MOST_UNPAIRED = 10_000  # of images without pixels that are looked at; more of them is one accident, not many
KEYS_SAID = 20  # ids of one damaged row group in the summary; the record in the lake holds all of them
IMAGES = {"slices": "source_id", "photos": "source_id", "tiles": "slide_id"}


@dataclass
class Verified:
    """files, rows, bytes : checked;  damaged : what was found;  lost : the images that are to be made again;  originals : their addresses"""

    files: int = 0
    rows: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    lost: list[damage.Lost] = field(default_factory=list)
    originals: dict[str, str] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        listed = [
            {"table": one.table, "file": one.path, "what": one.what, "n": len(one.keys), "ids": list(one.keys[:KEYS_SAID])}
            for one in self.damaged
        ]
        lost = {image for one in self.lost for image in one.images}
        return {"files": self.files, "rows": self.rows, "bytes": self.bytes, "damaged": listed, "images_lost": len(lost)}

    def table(self) -> Iterator[str]:
        """The damage as lines for people: file, what, image, the original that would mend it."""
        for one in self.damaged:
            yield f"{one.table}/{one.path}: {one.what}"
        for lost in self.lost:
            for image, sources in lost.images.items():
                origin = ", ".join(self.originals.get(source, source) for source in sources) or "an unknown source"
                yield f"{' or '.join(f'pixels/{path}' for path in lost.paths)}: image {image} from {origin}"


def listed(lake: Lake) -> list[Asked]:
    """The files of the current versions, those of feeds with the checksums that their cards list."""
    found = []
    for table in [*TABLES_CHECKED, *feeds(lake)]:
        if lake.exists(table):
            sums = checksums(lake, table) if table not in TABLES_CHECKED else {}
            found += [
                Asked(table, action["relative"], action["size_bytes"], action["num_records"], sums.get(action["relative"], ""))
                for action in lake.actions(table)
            ]
    return found


@dataclass(frozen=True)
class Checker:
    """The work of a task."""

    uri: str
    share: float
    draw: str

    def __call__(self, items: Iterable[Asked], watch: tasks.Watcher, partition: int) -> Iterator[tuple[Asked, list[Damage], int]]:
        filesystem, root, _ = locate(self.uri)
        for asked in items:
            found: list[Damage] = []
            rows = 0
            try:
                watch(SourceFile(f"{asked.table}/{asked.path}", asked.path, "", asked.size, ""))
                for one in check(filesystem, f"{root}/{asked.table}", asked, lambda group, path=asked.path: self._chosen(path, group)):
                    if isinstance(one, Damage):
                        found.append(one)
                    else:
                        rows = one
            except Rejected:
                found.append(Damage(asked.table, asked.path, "reading it ends the process"))
            yield asked, found, rows

    def _chosen(self, path: str, group: int) -> bool:
        """Whether a row group is in the sample: a function of its name and the run's, so that each run draws another one."""
        if self.share >= 1.0:
            return True
        word = hashlib.blake2b(f"{self.draw}/{path}/{group}".encode(), digest_size=8).digest()
        return int.from_bytes(word, "big") < self.share * 2**64


def verify(lake: Lake, share: float, run_id: str, progress: Callable[[str], None] = lambda text: None) -> Verified:
    """Checks all files, and of each the share of row groups; records damaged payload for `mend`."""
    files = listed(lake)
    progress(f"verify: {len(files)} files, {sum(file.size for file in files) / 1e9:.2f} GB, {share:.0%} of their row groups")
    parts = tasks.split(files, lambda file: 0.01 + share * file.size / BYTES_PER_S, TASK_S, cores(lake.spark))
    name = f"verify-{run_id}"
    found = Verified()
    try:
        for asked, damages, rows in tasks.run(lake.spark, tasks.Journal.of(lake, name), parts, Checker(lake.uri, share, run_id), CRASH_S):
            found.files += 1
            found.rows += rows
            found.bytes += asked.size
            found.damaged += damages
    finally:
        lake.filesystem_delete(lake.folder(damage.FOLDER.split("/")[0], name))
    found.damaged.sort(key=lambda one: (one.table, one.path, one.what))
    bad = [one for one in found.damaged if one.table == "pixels"]
    if share >= 1.0 and not found.damaged:
        progress("verify: every image has its pixels once")
        found.damaged += unpaired(lake)
    if bad:
        found.lost = lost_images(lake, bad)
        sources = {source for one in found.lost for source in one.sources}
        rows = lake.read("sources", ["source_id", "uri"], pc.field("source_id").isin(pa.array(sorted(sources), pa.string())))
        found.originals = dict(zip(rows.column(0).to_pylist(), rows.column(1).to_pylist(), strict=True))
        damage.write(lake, run_id, found.lost)
    return found


def unpaired(lake: Lake) -> list[Damage]:
    """Images without pixels, and pixels that are there twice. One shuffle of ids.

    Images are looked at before pixels, which every batch appends first; batches that are still open are left out.
    """
    if not lake.exists("pixels"):
        return []
    open_now = list(open_batches(lake))
    images = None
    for table in IMAGES:
        if lake.exists(table):
            frame = lake.frame(table)
            frame = frame.where("pixel_source <> 'none'") if table == "tiles" else frame
            frame = frame.where(~frame.batch_id.isin(open_now)).selectExpr("image_id", "1 AS image", "0 AS payload")
            images = frame if images is None else images.unionAll(frame)
    payload = lake.frame("pixels").selectExpr("image_id", "0 AS image", "1 AS payload")
    both = payload if images is None else images.unionAll(payload)
    odd = both.groupBy("image_id").agg({"image": "sum", "payload": "sum"}).toDF("image_id", "images", "payloads")
    wrong = odd.where("images > payloads OR payloads > 1").limit(MOST_UNPAIRED).collect()
    missing = tuple(sorted(row.image_id for row in wrong if row.images > row.payloads))
    doubled = tuple(sorted(row.image_id for row in wrong if row.payloads > 1))
    said = ((missing, "images have no pixels"), (doubled, "images have their pixels more than once"))
    return [Damage("pixels", "", f"{len(keys)} {what}", keys) for keys, what in said if keys]


# ---- whose images were lost


def lost_images(lake: Lake, damages: Sequence[Damage]) -> list[damage.Lost]:
    """Which images were lost with which files. Files that do not tell take, together, those of their batch that no readable file holds."""
    actions = {action["relative"]: action for action in lake.actions("pixels")}
    told: dict[str, set[str]] = {}
    silent: dict[str, set[str]] = {}
    for one in damages:
        told.setdefault(one.path, set()).update(one.keys)
        if not one.keys:
            silent.setdefault(actions[one.path]["min.batch_id"], set()).add(one.path)
    groups: list[tuple[tuple[str, ...], set[str]]] = [
        ((path,), images) for path, images in sorted(told.items()) if not any(path in paths for paths in silent.values())
    ]
    for batch, mute in sorted(silent.items()):
        readable: set[str] = set()
        for path, action in actions.items():
            if action["min.batch_id"] == batch:
                readable |= _readable(lake, action["path"]) - told.get(path, set())
        stored = {image for image, _ in _stored(lake, pc.field("batch_id") == batch)}
        groups.append((tuple(sorted(mute)), stored - readable))
    wanted = pa.array(sorted({image for _, images in groups for image in images}), pa.string())
    sources = dict(_stored(lake, pc.field("image_id").isin(wanted)))
    lost = []
    for paths, images in groups:
        batch = actions[paths[0]]["min.batch_id"]
        by = lake.read("sources", ["job", "settings"], pc.field("batch_id") == batch).slice(0, 1).to_pylist()[0]
        lost.append(damage.Lost(paths, by["job"], by["settings"], {image: sources.get(image, []) for image in sorted(images)}))
    return lost


def _readable(lake: Lake, path: str) -> set[str]:
    """Image ids of a payload file, of the row groups that can be read."""
    found: set[str] = set()
    try:
        with lake.filesystem.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                try:
                    found.update(file.read_row_group(group, columns=["image_id"]).column(0).to_pylist())
                except UNREADABLE:
                    continue
    except UNREADABLE:
        pass
    return found


def _stored(lake: Lake, where: pc.Expression) -> Iterator[tuple[str, list[str]]]:
    """(image_id, source_ids) of images that have pixels."""
    slides: dict[str, list[str]] = {}
    for table, whose in IMAGES.items():
        if not lake.exists(table):
            continue
        stored = where & (pc.field("pixel_source") != "none") if table == "tiles" else where
        columns = ["image_id", whose, "batch_id"] if table == "tiles" else ["image_id", whose]
        for batch in lake.scan(table, columns, stored):
            if table != "tiles":
                yield from ((image, [source]) for image, source in zip(*(column.to_pylist() for column in batch.columns), strict=True))
                continue
            for image, slide, batch_id in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if slide not in slides:
                    slides[slide] = _files_of_slide(lake, slide, batch_id)
                yield image, slides[slide]


def _files_of_slide(lake: Lake, slide_id: str, batch_id: str) -> list[str]:
    """Source ids of a slide's files: its file; for a DICOM slide, whose levels are files of their own, all DICOM files of its batch."""
    first = lake.read("slides", ["source_id"], pc.field("slide_id") == slide_id).column(0).to_pylist()
    rows = lake.read("sources", ["source_id", "kind"], (pc.field("batch_id") == batch_id) & (pc.field("job") == "tile_slides")).to_pylist()
    if any(row["source_id"] in first and row["kind"] == "dicom" for row in rows):
        return sorted(row["source_id"] for row in rows if row["kind"] == "dicom")
    return first
