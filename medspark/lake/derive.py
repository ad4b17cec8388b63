"""What rows owe to their neighbours: a series' geometry and verdicts, a grid's counts. Pure derivation over rows, whenever they arrive.

`files` derives it for a batch before it is appended; `replan` brings rows that were there before up to date after the batch has closed.
Both call the same pure `medspark.series.assemble`; pixels are never touched.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from medspark.config import Config
from medspark.lake.files import DataFile, admitted_paths
from medspark.lake.stage import Stage
from medspark.lake.store import Lake
from medspark.tables.catalog import SERIES, SLICES
from medspark.tables.rows import Rows
from medspark.tables.work import Unit

GEOMETRY = [column.name for column in SLICES.columns if column.dtype != "binary" and column.name not in ("header_json",)]
"""Columns of ``slices`` that `assemble` reads: all but the wide ones."""
DERIVED = ("t", "k", "position_mm", "verdict", "usable")
"""Columns of ``slices`` that depend on the other slices of the series."""


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
    """Units of series get the ids and hashes of the images that the lake already has of their series: ``work["known"]``."""
    if job != "explode_series":
        return list(units)
    known: dict[str, dict[str, str]] = {}
    instances = {unit.parent_id for unit in units}
    slices = existing_slices(lake, instances, ["image_id", "pixel_hash", "series_instance_id"])
    for row in slices.to_pylist():
        known.setdefault(row["series_instance_id"], {})[row["image_id"]] = row["pixel_hash"]
    return [
        dataclasses.replace(unit, work={**(unit.work or {}), "known": known[unit.parent_id]}) if unit.parent_id in known else unit
        for unit in units
    ]


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


def _by_instance(slices: pa.Table) -> dict[tuple[str, str], pa.Table]:
    keys = list(zip(slices.column("dataset").to_pylist(), slices.column("series_instance_id").to_pylist(), strict=True))
    places: dict[tuple[str, str], list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return {key: slices.take(pa.array(listed)) for key, listed in places.items()}


def _assembled(lake: Lake, stage: Stage, settings: Config):  # type: ignore[no-untyped-def]
    """Stages the rows of new series and returns the patch that fills the derived columns of the new slices.

    Series that the lake already has are left to `replan`, after the commit point; their new slices get the right values now.
    """
    from medspark.series.assemble import assemble

    new = stage.narrow("slices", GEOMETRY)
    there = existing_slices(lake, set(new.column("series_instance_id").to_pylist()), GEOMETRY)
    late = set(_by_instance(there)) if there.num_rows else set()
    everything = pa.concat_tables([new, there.cast(new.schema)]) if there.num_rows else new
    derived: dict[str, dict[str, object]] = {}
    for key, slices in _by_instance(everything).items():
        assembled = assemble(slices, settings.verdicts)
        derived.update(_values(assembled.slices))
        if key not in late:
            stage.add(assembled.series)

    return lambda piece: _with_derived(piece, derived)


def _values(slices: pa.Table) -> dict[str, dict[str, object]]:
    """image_id -> derived values."""
    return {row["image_id"]: row for row in slices.select(["image_id", *DERIVED]).to_pylist()}


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
    """Brings series that a batch has added slices to up to date: their row, and ``k``, ``t`` and verdicts of slices that were there before.

    A function of the rows in the lake alone, so that it may be repeated after any kill.
    """
    if not lake.exists("slices"):
        return
    own = lake.read(
        "slices",
        ["series_instance_id", "series_id"],
        pc.field("batch_id") == batch_id,
        files=admitted_paths(lake.actions("slices"), "batch_id", [batch_id]),
    )
    instances = set(own.column(0).to_pylist())
    if not instances:
        return
    slices = existing_slices(lake, instances, GEOMETRY, own.column(1).unique().to_pylist())
    mixed = {key for key, rows in _by_instance(slices).items() if set(rows.column("batch_id").to_pylist()) != {batch_id}}
    for key, rows in _by_instance(slices).items():
        if key in mixed:
            _merge(lake, rows, settings)


def _merge(lake: Lake, slices: pa.Table, settings: Config) -> None:
    from medspark.series.assemble import assemble

    assembled = assemble(slices, settings.verdicts)
    before, after = _values(slices), _values(assembled.slices)
    changed = [
        {"image_id": image_id, **row} for image_id, row in after.items() if any(row[name] != before[image_id][name] for name in DERIVED)
    ]
    if changed:
        lake.rewrite("slices", lambda rows: _with_derived(rows, after), "series_id", set(slices.column("series_id").to_pylist()))
    series = pa.Table.from_batches([assembled.series.to_arrow("", "")])
    names = [name for name in series.schema.names if name not in ("run_id", "batch_id")]
    there = {
        row["series_id"]: row for row in lake.read("series", series.schema.names, pc.field("series_id").isin(_ids(series))).to_pylist()
    }
    told = {row["series_id"]: row for row in series.to_pylist()}
    if all({name: there.get(key, {}).get(name) for name in names} == {name: row[name] for name in names} for key, row in told.items()):
        return
    wrote = {row["series_id"]: row for row in slices.select(["series_id", "run_id", "batch_id"]).to_pylist()}
    for key, row in told.items():
        row.update({name: there.get(key, wrote[key])[name] for name in ("run_id", "batch_id")})

    def without(rows: pa.Table) -> pa.Table:
        mine = pc.is_in(rows.column("series_id"), value_set=_ids(series))
        return rows.filter(pc.invert(mine)) if pc.any(mine).as_py() else rows

    def anew() -> list[DataFile]:
        file = lake.write_file("series", pa.Table.from_pylist(list(told.values()), SERIES.arrow()), f"part-{uuid.uuid4().hex}.parquet")
        return [file] if file else []

    lake.rewrite("series", without, "series_id", told, anew)


def _ids(series: pa.Table) -> pa.Array:
    return series.column("series_id").combine_chunks()


def _with_derived(rows: pa.Table, derived: Mapping[str, Mapping[str, object]]) -> pa.Table:
    """Rows of ``slices`` with the derived columns of those that ``derived`` names."""
    ids = rows.column("image_id").to_pylist()
    if not any(image_id in derived for image_id in ids):
        return rows
    for name in DERIVED:
        place, old = rows.schema.get_field_index(name), rows.column(name).to_pylist()
        values = [derived[image_id][name] if image_id in derived else was for image_id, was in zip(ids, old, strict=True)]
        rows = rows.set_column(place, rows.schema.field(place), pa.array(values, rows.schema.field(place).type))
    return rows


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
