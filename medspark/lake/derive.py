"""What rows owe to their neighbours: a series' geometry and verdicts, a grid's counts. Pure derivation over rows, whenever they arrive.

`files` derives it for a batch before it is appended; `replan` brings rows that were there before up to date after the batch has closed.
Both call the same pure `medspark.series.assemble`; pixels are never touched.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medspark.config import Config
from medspark.keys import ID_DIGITS
from medspark.lake.files import DataFile, admitted_paths
from medspark.lake.stage import Stage
from medspark.lake.store import Lake
from medspark.tables.catalog import SERIES, SLICES
from medspark.tables.rows import Rows
from medspark.tables.work import Unit

DERIVED = ("t", "k", "position_mm", "verdict", "usable")
"""Columns of ``slices`` that depend on the other slices of the series."""
INSTANCE = ["dataset", "series_instance_id"]
WRITTEN_BY = ("run_id", "batch_id")


def only(rows: Rows, parents: set[str], subjects: set[str]) -> Rows:
    """The plan's rows whose parent (or subject) has images in the batch."""
    keep, wanted = {"slides": ("slide_id", parents), "grids": ("slide_id", parents), "subjects": ("subject_key", subjects)}.get(
        rows.table, (None, set())
    )
    if keep is None:
        return rows
    mask = [value in wanted for value in rows.columns[keep]]
    if all(mask):
        return rows
    return Rows(rows.table, {name: [value for value, on in zip(values, mask, strict=True) if on] for name, values in rows.columns.items()})


def with_known(lake: Lake, job: str, units: Sequence[Unit]) -> list[Unit]:
    """Units get the images that the lake already has of their series (ids and hashes) or photos (ids): ``work["known"]``."""
    if job == "explode_series":
        return _with_known_slices(lake, units)
    return _with_known_photos(lake, units) if job == "ingest_photos" else list(units)


def _with_known_slices(lake: Lake, units: Sequence[Unit]) -> list[Unit]:
    known: dict[str, dict[str, str]] = {}
    instances = {unit.parent_id for unit in units}
    slices = existing_slices(lake, instances, ["image_id", "pixel_hash", "series_instance_id"])
    for row in slices.to_pylist():
        known.setdefault(row["series_instance_id"], {})[row["image_id"]] = row["pixel_hash"]
    return [
        dataclasses.replace(unit, work={**(unit.work or {}), "known": known[unit.parent_id]}) if unit.parent_id in known else unit
        for unit in units
    ]


def _with_known_photos(lake: Lake, units: Sequence[Unit]) -> list[Unit]:
    """A photo is met again when it is read under other settings (other classes); the ledger says first whether there is any."""
    wanted = pa.array(sorted({source.source_id for unit in units for source in unit.sources}), pa.string())
    before = pc.field("source_id").isin(wanted) & (pc.field("job") == "ingest_photos") & (pc.field("n_images") > 0)
    again = lake.read("sources", ["source_id"], before).column(0).unique()
    if not len(again):
        return list(units)
    known: dict[str, list[str]] = {}
    paths = admitted_paths(lake.actions("photos"), "source_id", again.to_pylist())
    for row in lake.read("photos", ["source_id", "image_id"], pc.field("source_id").isin(again), paths).to_pylist():
        known.setdefault(row["source_id"], []).append(row["image_id"])
    found = []
    for unit in units:
        mine = [image_id for source in unit.sources for image_id in known.get(source.source_id, ())]
        found.append(dataclasses.replace(unit, work={**unit.work, "known": mine}) if mine else unit)
    return found


def existing_slices(lake: Lake, instances: Iterable[str], columns: Sequence[str], besides: Iterable[str] = ()) -> pa.Table:
    """Rows of ``slices`` whose series_instance_id is among ``instances``; the small table ``series`` says first which there are.

    besides : series_ids that are in ``slices`` and not yet in ``series``: parts that late slices split off
    """
    wanted = pa.array(sorted(instances), pa.string())
    known = lake.read("series", ["series_id"], pc.field("series_instance_id").isin(wanted)).column(0).to_pylist()
    series = sorted({*known, *besides})
    if not series:
        return pa.schema([SLICES.arrow().field(name) for name in columns]).empty_table()

    paths = admitted_paths(lake.actions("slices"), "series_id", series)
    return lake.read("slices", columns, pc.field("series_instance_id").isin(wanted), files=paths)


def files(lake: Lake, stage: Stage, settings: Config) -> dict[str, list[DataFile]]:
    """The batch's files of all narrow tables, derived columns filled in."""
    patches = {}
    if "slices" in stage.tables():
        patches["slices"] = _assembled(lake, stage, settings)
    if "grids" in stage.tables():
        patches["grids"] = _counted(stage)
    return {table: stage.files(table, patches.get(table)) for table in stage.tables()}


def _instances(rows: pa.Table) -> set[tuple[str, str]]:
    """The distinct (dataset, series_instance_id) of rows."""
    distinct = rows.select(INSTANCE).group_by(INSTANCE).aggregate([])
    return set(zip(*(distinct.column(name).to_pylist() for name in INSTANCE), strict=True))


def _assembled(lake: Lake, stage: Stage, settings: Config) -> Callable[[pa.Table], pa.Table]:
    """Stages the rows of new series and returns the patch that fills the derived columns of the new slices.

    Series that the lake already has are left to `replan`, after the commit point; their new slices get the right values now.
    """
    from medspark.series.assemble import NEEDED, assemble

    new = stage.narrow("slices", list(NEEDED))
    there = existing_slices(lake, pc.unique(new.column("series_instance_id")).to_pylist(), NEEDED)
    late = _instances(there)
    assembled = assemble(pa.concat_tables([new, there.cast(new.schema)]), settings.verdicts)
    stage.add(_rows_where(assembled.series, lambda instance: instance not in late))
    return lambda piece: _with_derived(piece, assembled.slices)


def _rows_where(series: Rows, keep: Callable[[tuple[str, ...]], bool]) -> Rows:
    """The rows of `Assembled.series` whose (dataset, series_instance_id) are to be kept."""
    mask = pa.array([keep(key) for key in zip(*(series.columns[name].to_pylist() for name in INSTANCE), strict=True)], pa.bool_())
    return Rows(series.table, {name: values.filter(mask) for name, values in series.columns.items()})


def _counted(stage: Stage):  # type: ignore[no-untyped-def]
    """``grids.n_tiles`` and ``n_stored`` as they came out, not as they were planned."""
    tiles = stage.narrow("tiles", ["grid_id", "pixel_source"])
    counts = Counter(tiles.column(0).to_pylist())
    stored = Counter(tiles.filter(pc.not_equal(tiles.column(1), "none")).column(0).to_pylist())

    def patch(piece: pa.Table) -> pa.Table:
        grids = piece.column("grid_id").to_pylist()
        for name, source in (("n_tiles", counts), ("n_stored", stored)):
            place = piece.schema.get_field_index(name)
            piece = piece.set_column(place, piece.schema.field(name), pa.array([source[grid] for grid in grids], pa.int32()))
        return piece

    return patch


def replan(lake: Lake, batch_id: str, settings: Config) -> None:
    """Brings series that a batch has added slices to up to date: their rows, and ``k``, ``t`` and verdicts of slices that were there before.

    All of them in one transaction on each table. A function of the rows in the lake alone, so that it may be repeated after any kill.
    """
    from medspark.series.assemble import NEEDED, assemble

    if not lake.exists("slices"):
        return
    paths = admitted_paths(lake.actions("slices"), "batch_id", [batch_id])
    own = lake.read("slices", [*INSTANCE, "series_id"], pc.field("batch_id") == batch_id, files=paths)
    if not own.num_rows:
        return
    # A series that came whole with this batch was assembled before its append: its row bears this batch's id.
    wanted = pc.unique(own.column("series_instance_id"))
    older = lake.read("series", INSTANCE, pc.field("series_instance_id").isin(wanted) & (pc.field("batch_id") != batch_id))
    grown = _instances(own) & _instances(older)
    if not grown:
        return
    columns = [*NEEDED, *(name for name in DERIVED if name not in NEEDED), *WRITTEN_BY]
    slices = existing_slices(lake, {instance for _, instance in grown}, columns, pc.unique(own.column("series_id")).to_pylist())
    slices = slices.filter(_is_among(slices, grown))
    assembled = assemble(slices, settings.verdicts)
    changed = _changed(slices, assembled.slices)
    if changed.num_rows:
        lake.rewrite("slices", lambda rows: _with_derived(rows, changed), "series_id", changed.column("series_id").to_pylist())
    _replace_series(lake, assembled.series, slices)


def _is_among(rows: pa.Table, instances: set[tuple[str, str]]) -> pa.Array:
    keys = zip(*(rows.column(name).to_pylist() for name in INSTANCE), strict=True)
    return pa.array([key in instances for key in keys], pa.bool_())


def _changed(before: pa.Table, after: pa.Table) -> pa.Table:
    """Those rows of ``after`` (see `Assembled.slices`) whose derived columns are others than in ``before``."""
    before = before.take(pc.index_in(after.column("image_id"), value_set=before.column("image_id")))
    pairs = [zip(before.column(name).to_pylist(), after.column(name).to_pylist(), strict=True) for name in DERIVED]
    return after.filter(pa.array([any(was != now for was, now in row) for row in zip(*pairs, strict=True)], pa.bool_()))


def _replace_series(lake: Lake, series: Rows, slices: pa.Table) -> None:
    """Writes the rows of series anew where they differ; who wrote a series (run and batch) stays, a new part is its slices' batch's."""
    told = {row["series_id"]: row for row in pa.Table.from_batches([series.to_arrow("", "")]).to_pylist()}
    ids = pa.array(sorted(told), pa.string())
    there = {row["series_id"]: row for row in lake.read("series", SERIES.names, pc.field("series_id").isin(ids)).to_pylist()}
    wrote = {row["series_id"]: row for row in slices.select(["series_id", *WRITTEN_BY]).to_pylist()}
    for key, row in told.items():
        row.update({name: there.get(key, wrote[key])[name] for name in WRITTEN_BY})
    anew = [row for key, row in told.items() if row != there.get(key)]
    if not anew:
        return
    replaced = pa.array([row["series_id"] for row in anew], pa.string())

    def write() -> list[DataFile]:
        file = lake.write_file("series", pa.Table.from_pylist(anew, SERIES.arrow()), f"part-{uuid.uuid4().hex}.parquet")
        return [file] if file else []

    lake.rewrite("series", drop_where(pc.field("series_id").isin(replaced)), "series_id", replaced.to_pylist(), write)


def _with_derived(rows: pa.Table, derived: pa.Table) -> pa.Table:
    """Rows of ``slices`` with the derived columns of those that ``derived`` (see `Assembled.slices`) names."""
    places = _places(rows.column("image_id"), derived.column("image_id"))
    if places.null_count == len(places):
        return rows
    found = places.is_valid()
    for name in DERIVED:
        place = rows.schema.get_field_index(name)
        field = rows.schema.field(place)
        values = derived.column(name).take(places).cast(field.type)
        rows = rows.set_column(place, field, pc.if_else(found, values, rows.column(place)) if places.null_count else values)
    return rows


def _places(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> pa.Array:
    """Where each id lies in the sorted ids ``among``, null where it does not: a search costs a tenth of hashing a batch's ids for each file."""
    wanted, sorted_ids = _fixed_width(ids), _fixed_width(among)
    places = np.searchsorted(sorted_ids, wanted)
    absent = (places == len(sorted_ids)) | (sorted_ids[np.minimum(places, len(sorted_ids) - 1)] != wanted)
    return pa.array(places, mask=absent)


def _fixed_width(ids: pa.ChunkedArray) -> np.ndarray:
    """(n,) bytes of ``ID_DIGITS``: the ids where they lie."""
    column = ids.combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset :]
    return np.frombuffer(column.buffers()[2] or b"", f"S{ID_DIGITS}", len(column), int(offsets[0]))


def forget_rejected(lake: Lake, sources: Mapping[str, object], job: str, settings: str) -> None:
    """Takes rejected sources out of the ledger and of ``rejected``, so that ``--retry-rejected`` claims them anew."""
    where = pc.field("source_id").isin(pa.array(sorted(sources))) & (pc.field("job") == job) & (pc.field("settings") == settings)
    again = pa.array(
        sorted(lake.read("sources", ["source_id"], where & (pc.field("status") == "rejected")).column(0).to_pylist()), pa.string()
    )
    if not len(again):
        return
    mine = pc.field("source_id").isin(again)
    lake.rewrite("rejected", drop_where(mine), "source_id", again.to_pylist())
    ledger = mine & (pc.field("job") == job) & (pc.field("settings") == settings) & (pc.field("status") == "rejected")
    lake.rewrite("sources", drop_where(ledger), "source_id", again.to_pylist())


def drop_where(condition: pc.Expression) -> Callable[[pa.Table], pa.Table]:
    """A change for `Lake.rewrite` that removes the rows of a condition."""

    def change(rows: pa.Table) -> pa.Table:
        kept = rows.filter(~condition)
        return rows if kept.num_rows == rows.num_rows else kept

    return change
