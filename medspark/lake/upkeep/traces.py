"""Everything by which a lake knows one subject: ids, files, addresses, annotations. Collected before anything is removed, and kept until all is.

What a subject shares with others (a file of many subjects, a study number that two patients carry) is no trace: it stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.lake.files import PRIVATE
from medspark.lake.meetings import TRUTH, Images, refs_where
from medspark.lake.store import Lake
from medspark.tables.catalog import TABLES

FOLDER = f"{PRIVATE}/forget"
IMAGE_TABLES = ("slices", "tiles", "photos")
IDS = {
    "series": ("series_id", "study_id", "series_instance_id", "frame_of_reference_id"),
    "slices": ("series_id", "study_id", "series_instance_id", "sop_instance_id"),
    "slides": ("slide_id", "specimen_key", "series_instance_id"),
}
"""Columns whose values name the subject's images, where nobody else has them."""
IMAGE_JOBS = ("tile_slides", "explode_series", "ingest_photos")
SET_FIELDS = ("images", "holders", "ids", "sources", "uris", "runs", "rows", "feeds", "trained", "evaluated", "shown", "models")


@dataclass
class Traces:
    """images : image ids;  holders : slides, series and sources that hold them (maybe others' images, too);  ids : of the subject alone
    (subject key, series, slides, studies, instances);  sources : files that concern the subject alone, with their uris;  refs : annotation
    source -> its references to the subject's images;  runs : that wrote its rows

    And what has used it (`learnt`): rows : row_id of feeds;  feeds : name@version that held it;  trained, evaluated : runs on those;  shown : runs of a
    tracking store whose pictures may show it;  models : that learnt from it, predicted it or were measured on it
    """

    subject: str
    images: set[str] = field(default_factory=set)
    holders: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    uris: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    rows: set[str] = field(default_factory=set)
    feeds: set[str] = field(default_factory=set)
    trained: set[str] = field(default_factory=set)
    evaluated: set[str] = field(default_factory=set)
    shown: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    refs: dict[str, set[str]] = field(default_factory=dict)

    def add(self, other: Traces) -> None:
        for name in SET_FIELDS:
            getattr(self, name).update(getattr(other, name))
        for source, refs in other.refs.items():
            self.refs.setdefault(source, set()).update(refs)


# ---- kept until all is removed


def path_of(lake: Lake, subject: str) -> str:
    return lake.folder(FOLDER, hashlib.blake2b(subject.encode(), digest_size=16).hexdigest() + ".parquet")


def save(lake: Lake, traces: Traces) -> None:
    """So that a run that was killed half-way can be completed when the rows that told the traces are gone."""
    pairs = [(name, value) for name in SET_FIELDS for value in sorted(getattr(traces, name))]
    pairs += [(f"ref {source}", ref) for source, refs in sorted(traces.refs.items()) for ref in sorted(refs)]
    path = path_of(lake, traces.subject)
    lake.filesystem.create_dir(lake.folder(FOLDER), recursive=True)
    table = pa.table({"what": [name for name, _ in pairs], "value": pa.array([value for _, value in pairs], pa.string())})
    with lake.filesystem.open_output_stream(f"{path}.tmp") as stream:
        pq.write_table(table, stream, compression="zstd")
    lake.filesystem.move(f"{path}.tmp", path)


def load(lake: Lake, subject: str) -> Traces | None:
    path = path_of(lake, subject)
    if lake.filesystem.get_file_info(path).type == pafs.FileType.NotFound:
        return None
    found = Traces(subject)
    with lake.filesystem.open_input_file(path) as stream:
        for what, value in zip(*pq.read_table(stream).to_pydict().values(), strict=True):
            if what.startswith("ref "):
                found.refs.setdefault(what[4:], set()).add(value)
            else:
                getattr(found, what).add(value)
    return found


# ---- collecting


def known(lake: Lake, subject: str) -> bool:
    """Whether any table has a row of the subject, or an unfinished run left its traces. Needs no session."""
    if load(lake, subject) is not None:
        return True
    return any(
        next((True for batch in lake.scan(table, ["subject_key"], pc.field("subject_key") == subject) if batch.num_rows), False)
        for table, definition in TABLES.items()
        if "subject_key" in definition.names
    )


def collect(lake: Lake, subject: str) -> Traces:
    """What the tables say of a subject now, and what an unfinished run had found."""
    found = Traces(subject, ids={subject})
    mine, others = pc.field("subject_key") == subject, pc.field("subject_key") != subject
    own_sources: set[str] = set()
    for table in IMAGE_TABLES:
        whose = "slide_id" if table == "tiles" else "source_id"
        for row in _rows(lake, table, ["image_id", whose, *(["series_id"] if table == "slices" else [])], mine):
            found.images.add(row["image_id"])
            found.holders.add(row.get("series_id") or row[whose])
            if table != "tiles":
                own_sources.add(row["source_id"])
    own_sources.update(row["source_id"] for row in _rows(lake, "slides", ["source_id"], mine))
    for column in sorted({column for columns in IDS.values() for column in columns}):
        tables = [table for table, columns in IDS.items() if column in columns]
        values = {row[column] for table in tables for row in _rows(lake, table, [column], mine)} - {None}
        for table in tables:
            values -= _held_by(lake, table, column, values, others)
        found.ids |= values
    levels = {uid for row in _rows(lake, "slides", ["level_instance_ids"], mine) for uid in row["level_instance_ids"] or ()}
    found.ids |= levels - {uid for row in _rows(lake, "slides", ["level_instance_ids"], others) for uid in row["level_instance_ids"] or ()}
    for table in (*IMAGE_TABLES, "slides"):
        if table != "tiles":
            own_sources -= _held_by(lake, table, "source_id", own_sources, others)
    found.sources = own_sources | _beside(lake, own_sources, IMAGE_JOBS)
    _annotations(lake, found, mine, others)
    found.sources |= _beside(lake, found.sources, (*IMAGE_JOBS, "import_labels"))
    for table, definition in TABLES.items():
        if "subject_key" in definition.names:
            found.runs.update(row["run_id"] for row in _rows(lake, table, ["run_id"], mine))
    for table in ("sources", "rejected"):
        found.uris.update(row["uri"] for row in _rows(lake, table, ["uri"], _among("source_id", found.sources)))
    before = load(lake, subject)
    if before is not None:
        found.add(before)
    return found


def _rows(lake: Lake, table: str, columns: Sequence[str], where: pc.Expression) -> Iterator[dict[str, Any]]:
    for batch in lake.scan(table, columns, where):
        yield from batch.to_pylist()


def _among(column: str, values: Iterable[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(sorted(values), pa.string()))


def _held_by(lake: Lake, table: str, column: str, values: set[str], whom: pc.Expression) -> set[str]:
    """Those of the values that rows of ``whom`` have."""
    return {row[column] for row in _rows(lake, table, [column], _among(column, values) & whom)} if values else set()


def _beside(lake: Lake, sources: set[str], jobs: Sequence[str]) -> set[str]:
    """Files that brought nothing and can only be the subject's: copies of its files, and whatever lies in folders of its alone.

    jobs : whose files of others make a folder theirs, too: images; where the subject's annotations lie apart, annotations as well
    A rejected file has no subject, but an address that may hold a name. Taking one too many out of the ledger costs a second look at it.
    """
    own = list(_rows(lake, "sources", ["uri", "sha256"], _among("source_id", sources)))
    copies = _among("sha256", {row["sha256"] for row in own}) & (pc.field("status") == "duplicate")
    found = {row["source_id"] for row in _rows(lake, "sources", ["source_id"], copies)}
    folders = {row["uri"].rpartition("/")[0] for row in own if not row["uri"].startswith("token:")}
    seen: set[str] = set()
    while folders:
        folder = folders.pop()
        if folder in seen or not folder.strip("/") or folder.endswith(("//", "/")):
            continue  # the root
        seen.add(folder)
        theirs = _of_nobody_else(lake, folder + "/", sources, jobs)
        if theirs is not None:
            found |= theirs
            folders.add(folder.rpartition("/")[0])
    for archive in _rows(lake, "sources", ["source_id", "uri"], _among("uri", _archives(own)) & (pc.field("kind") == "archive")):
        theirs = _of_nobody_else(lake, archive["uri"] + "!", sources, jobs)
        found |= set() if theirs is None else {archive["source_id"], *theirs}
    return found


def _of_nobody_else(lake: Lake, below: str, sources: set[str], jobs: Sequence[str]) -> set[str] | None:
    """Files whose address begins so and that are nobody else's; None where something that one of the jobs made is somebody else's."""
    under = list(_rows(lake, "sources", ["source_id", "job", "n_images"], pc.starts_with(pc.field("uri"), below)))
    if any(row["n_images"] and row["job"] in jobs and row["source_id"] not in sources for row in under):
        return None
    return {row["source_id"] for row in under if row["job"] in IMAGE_JOBS or not row["n_images"]}


def _archives(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Addresses of the archives that files may be members of: ``archive.zip!member``, and a name may hold a "!" of its own."""
    return {row["uri"][:place] for row in rows for place, letter in enumerate(row["uri"]) if letter == "!"}


def _annotations(lake: Lake, found: Traces, mine: pc.Expression, others: pc.Expression) -> None:
    """References that name the subject's images alone, and annotation files of which nothing else is left."""
    named: dict[str, set[str]] = {kind: set() for kind in ("sop", "name", "path", "folder", "image", "plane")}
    datasets: set[str] = set()
    for table, instance in (("slices", "sop_instance_id"), ("photos", None), ("slides", None)):
        columns = ["dataset", "file_token", "folder_token", *([instance] if instance else [])]
        for row in _rows(lake, table, columns, mine):
            datasets.add(row["dataset"])
            named["name"].add(row["file_token"])
            named["path"].add(f"{row['folder_token']}/{row['file_token']}")
            if table == "slices":  # the only images that are named by their folder
                named["folder"].add(row["folder_token"])
            named["sop"].add(row[instance] if instance else None)
    named["image"] |= found.ids | found.images | found.holders
    named["sop"] |= found.ids
    named["plane"] |= found.ids
    named = {kind: {key for key in keys if key} for kind, keys in named.items()}
    refs = refs_where(lake, pc.scalar(True), named) if found.images else set()
    # Slides and series answer by their ids, among them the subject's; photos have none of their own, so that only other people's are asked.
    images = Images.answering(lake, refs, photos=others) if refs else None
    for ref in refs:
        if ref.ref_dataset is not None and ref.ref_dataset not in datasets:
            continue  # it waits for an image of that name in another data set
        parents = images.parents(ref) if images is not None else set()
        if all(found.ids & set(parent) for parent in parents):
            found.refs.setdefault(ref.source_id, set()).add(ref.ref_image)
    for table in TRUTH:
        for row in _rows(lake, table, ["source_id", "ref_image"], _among("ref_series_id", found.ids)):
            found.refs.setdefault(row["source_id"], set()).add(row["ref_image"])
    for source, said in found.refs.items():
        whole = pc.field("source_id") == source
        if all(row["ref_image"] in said for table in TRUTH for row in _rows(lake, table, ["ref_image"], whole)):
            found.sources.add(source)


def condition(table: str, traces: Traces) -> pc.Expression | None:
    """Which rows of a table are the subject's; None where it cannot hold any."""
    names = set(TABLES[table].names)
    if table in ("claims", "kpi"):
        return None
    if "subject_key" in names:
        return pc.field("subject_key") == traces.subject
    if table in ("sources", "rejected"):
        return _among("source_id", traces.sources)
    if table in TRUTH:
        where = _among("source_id", traces.sources)
        for source, refs in sorted(traces.refs.items()):
            where = where | ((pc.field("source_id") == source) & _among("ref_image", refs))
        return where
    every = traces.ids | traces.images | traces.rows
    where = None
    for column in ("image_id", "slide_id", "series_id", "unit_key", "target_id", "unit_id"):
        if column in names:
            term = _among(column, every)  # false where the value is null
            where = term if where is None else where | term
    return where


EVERY_FILE = ""
"""In place of a column for `Lake.rewrite`: no file has statistics of it, so each is looked into."""


def admitting(table: str, traces: Traces) -> tuple[str, list[str]]:
    """(column, values) whose statistics say which files of a table may hold the subject's rows."""
    if "subject_key" in TABLES[table].names:
        return "subject_key", [traces.subject]
    if table in ("sources", "rejected", *TRUTH):
        return "source_id", sorted(traces.sources | set(traces.refs))
    return EVERY_FILE, []


def models(lake: Lake, traces: Traces) -> set[str]:
    """Models that predicted on the subject or were evaluated on it, where the lake has such tables."""
    found: set[str] = set()
    for table, definition in TABLES.items():
        where = condition(table, traces)
        if "model_uri" in definition.names and where is not None:
            found.update(row["model_uri"] for row in _rows(lake, table, ["model_uri"], where))
    return found


def mapping(traces: Traces) -> Mapping[str, int]:
    """How much there is, for the summary."""
    return {"images": len(traces.images), "sources": len(traces.sources), "annotations": len(traces.refs)}
