"""What has learnt from a subject: the feeds that held it, the runs and evaluations on them, what those keep that shows it.

A run names its feed and version in ``_medspark/runs/<run>/run.json``, an evaluation in its rows. Whether a version held the subject is read from the files
that its log names; where log or files are gone it counts as having held it: a picture too many goes, none too few. Weights are numbers: models are named
and stay.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow import fs as pafs

from medspark.lake.files import PRIVATE
from medspark.lake.owner import Owner, current
from medspark.lake.pins import FEEDS
from medspark.lake.store import Lake
from medspark.lake.upkeep import feeds
from medspark.lake.upkeep.traces import Traces

RUNS = f"{PRIVATE}/runs"
RECORD, OWNER, PICTURES = "run.json", "owner", "pictures"  # in a run's folder
EVALUATION = "evaluate-"  # begins the name of an evaluation's folder; the rest is its run_id


class Tracked(Protocol):
    """What a tracking server keeps besides (`medspark.track.forget`)."""

    @property
    def unreached(self) -> Collection[str]:
        """Stores that did not answer."""
        ...

    def runs(self) -> Mapping[str, str]:
        """run id -> feed@version, of runs that can only be this lake's."""
        ...

    def runs_of(self, models: Collection[str]) -> set[str]:
        """The runs that trained the models."""
        ...

    def models(self, runs: Collection[str]) -> set[str]:
        """Models that the runs have trained."""
        ...

    def clear(self, runs: Collection[str]) -> int:
        """Removes the pictures of the runs; returns how many files went."""
        ...


@dataclass(frozen=True)
class Record:
    """A run of training in the lake. feed : name@version, empty where it never said; uri : its tracking store, empty for the lake's own or none"""

    run: str
    feed: str
    uri: str
    training: bool


def records(lake: Lake) -> Iterator[Record]:
    """Every run of training that has left something."""
    for run in _folders(lake):
        if not run.startswith(EVALUATION):
            said = json.loads(_read(lake, run, RECORD) or b"{}")
            owner = (_read(lake, run, OWNER) or b"").decode()
            yield Record(run, str(said.get("feed") or ""), str(said.get("tracking_uri") or ""), _alive(owner))


def _folders(lake: Lake) -> list[str]:
    found = lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(RUNS), allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)


def _read(lake: Lake, *names: str) -> bytes | None:
    try:
        with lake.filesystem.open_input_stream(lake.folder(RUNS, *names)) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        return None


def _alive(owner: str) -> bool:
    """Whether that process certainly lives and is another one: on this machine, since this boot."""
    if not owner:
        return False
    said, me = Owner.parse(owner), current()
    return (said.host, said.boot, said.space) == (me.host, me.boot, me.space) and said != me and not said.dead()


# ---- which


def note(lake: Lake, found: Traces, tracked: Tracked | None) -> None:
    """Adds to the traces: rows of feeds, feeds@versions, runs, evaluations and models that the subject is in."""
    holding: dict[str, set[str]] = {}
    for path in feeds.feeds(lake):
        name = path.removeprefix(f"{FEEDS}/")
        rows, files = _held(lake, name, found)
        found.rows |= rows
        holding[name] = files
    trained = {record.run: record.feed for record in records(lake)}
    trained |= tracked.runs() if tracked is not None else {}
    evaluated = _evaluations(lake)
    told = {run for run, _, _ in evaluated}
    for feed in sorted({*trained.values(), *(feed for _, _, feed in evaluated)}):
        if _shows(lake, feed, holding):
            found.feeds.add(feed)
    found.trained |= {run for run, feed in trained.items() if feed in found.feeds}
    found.evaluated |= {run for run, _, feed in evaluated if feed in found.feeds}
    untold = (run.removeprefix(EVALUATION) for run in _folders(lake) if run.startswith(EVALUATION))
    found.evaluated |= {
        run for run in untold if run not in told
    }  # its rows were replaced by a later evaluation's: of which feed it was is lost
    models = {model for _, model, feed in evaluated if feed in found.feeds}
    found.models |= models
    if tracked is not None:
        found.models |= tracked.models(found.trained)
        found.shown |= found.trained | tracked.runs_of(models)  # an evaluation's pictures lie with the run that trained its model


def _held(lake: Lake, name: str, found: Traces) -> tuple[set[str], set[str]]:
    """(row_id of the subject's rows, names of the files that hold them), of all versions whose files are there."""
    rows, files = set[str](), set[str]()
    where = (pc.field("subject_key") == found.subject) | pc.field("image_id").isin(pa.array(sorted(found.images), pa.string()))
    for info in lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(FEEDS, name), allow_not_found=True)):
        if info.type == pafs.FileType.File and info.base_name.endswith(".parquet"):
            batches = pads.dataset(info.path, format="parquet", filesystem=lake.filesystem).to_batches(columns=["row_id"], filter=where)
            there = {row for batch in batches for row in batch.column(0).to_pylist()}
            rows |= there
            files |= {info.base_name} if there else set()
    return rows, files


def _shows(lake: Lake, feed: str, holding: Mapping[str, Set[str]]) -> bool:
    """Whether a version of a feed holds the subject, or can no longer tell."""
    name, _, version = feed.partition("@")
    if name not in holding or not version.isdigit():
        return True
    try:
        actions = lake.actions(f"{FEEDS}/{name}", int(version))
    except Exception:  # deltalake's errors share no base class; a version that the log no longer tells
        return True
    listed = {action["relative"]: action["path"] for action in actions}
    if holding[name] & listed.keys() or not listed:
        return True
    infos = lake.filesystem.get_file_info(list(listed.values()))
    return any(info.type == pafs.FileType.NotFound for info in infos)


def _evaluations(lake: Lake) -> set[tuple[str, str, str]]:
    """(run id, model, feed@version) of every evaluation that has rows."""
    columns = ["run_id", "model_uri", "feed", "feed_version"]
    found: set[tuple[str, str, str]] = set()
    for batch in lake.scan("evaluations", columns):
        for row in pa.Table.from_batches([batch]).group_by(columns).aggregate([]).to_pylist():
            found.add((row["run_id"], row["model_uri"], f"{row['feed']}@{row['feed_version']}"))
    return found


def training_on(lake: Lake, found: Traces) -> list[str]:
    """Runs that are at work on one of the feeds: it can't be changed under them."""
    return [record.run for record in records(lake) if record.training and record.feed in found.feeds]


# ---- removed


def clear(lake: Lake, found: Traces, tracked: Tracked | None) -> int:
    """Removes what runs and evaluations show of the subject or say of its rows; returns the number of pictures that went."""
    gone = 0
    folders = [(run, PICTURES) for run in sorted(found.trained)] + [(EVALUATION + run,) for run in sorted(found.evaluated)]
    for names in folders:
        inside = lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(RUNS, *names), allow_not_found=True, recursive=True))
        gone += sum(info.type == pafs.FileType.File for info in inside)
        lake.filesystem_delete(lake.folder(RUNS, *names))
    for run in _folders(lake):
        _unname(lake, run, found.rows)
    return gone + (0 if tracked is None else tracked.clear(found.shown))


def _unname(lake: Lake, run: str, rows: Set[str]) -> None:
    """Rows of a feed that a run could not use: by name in ``bad_rows``, and in the last words of a rank that one of them has stopped."""
    for info in lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(RUNS, run), recursive=True)):
        folder = info.path.rpartition("/")[0].rpartition("/")[2]
        if not info.base_name.endswith(".json") or not (folder == "bad_rows" or info.base_name.endswith(".failed.json")):
            continue
        with lake.filesystem.open_input_stream(info.path) as stream:
            said: dict[str, Any] = json.loads(stream.read())
        if folder == "bad_rows":
            left = {row: reason for row, reason in said.items() if row not in rows}
        else:
            left = {} if any(row in str(said.get("message", "")) + str(said.get("trace", "")) for row in rows) else said
        if left == said:
            continue
        if not left:
            lake.filesystem.delete_file(info.path)
            continue
        with lake.filesystem.open_output_stream(f"{info.path}.tmp") as stream:
            stream.write(json.dumps(left).encode())
        lake.filesystem.move(f"{info.path}.tmp", info.path)
