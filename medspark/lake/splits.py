"""Splits: which part (train, val, test, ...) a subject or an image belongs to. Once given, a part never changes.

`quotas` is the arithmetic. Units and their values are read as columns in the driver (a few dozen bytes each: 2 GB at 21 million images, a hundredth of
that by subject), without a Spark query unless ``--query`` brings one; one transaction commits the new rows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medspark.errors import BadRequest
from medspark.lake import sql
from medspark.lake.files import DataFile
from medspark.lake.quotas import drawn
from medspark.lake.store import Lake
from medspark.tables.catalog import TABLES
from medspark.tables.names import plain_name
from medspark.tables.rows import Rows

Unit = Literal["subject", "image"]
KEY: dict[Unit, str] = {"subject": "subject_key", "image": "image_id"}
LABEL = "label:"  # --stratify label:NAME: whether the label is on one of the unit's images
IMAGES = ("slices", "tiles", "photos")  # tables of images
PARENTS = ("series", "slides")
MOST_STRATA = 10_000  # beyond that a stratum holds next to nobody
SHOWN = 10  # keys in a sentence that refuses something
FILE_ROWS = 1_000_000  # units per file: some 30 MB
FOLD_ROWS = 2_000_000  # rows that are held before doubles among them are dropped
PAIRS = pa.schema([("unit_key", pa.string()), ("value", pa.string())])


@dataclass(frozen=True)
class Request:
    """What ``assign_splits`` was asked for.

    query : SQL that returns the unit's key (subject_key, or image_id for ``unit = image``) and the column to stratify by or to take the part from;
        empty: all that the lake has
    """

    name: str
    seed: int
    shares: Mapping[str, float]
    unit: Unit = "subject"
    stratify: str = ""
    from_column: str = ""
    query: str = ""

    def check(self) -> None:
        """Raises `BadRequest`; needs no session."""
        if not plain_name(self.name):
            raise BadRequest(f"--name {self.name!r}: letters, digits, '.', '_' and '-', at most 100")
        if self.from_column and self.stratify:
            raise BadRequest("--from-column takes the parts that are there: --stratify has no say in it")
        if not self.from_column and not self.shares:
            raise BadRequest("--parts: expected name=share,... (or --from-column)")

    @property
    def definition(self) -> str:
        """What may not change between two runs of one name, beside seed and unit."""
        said = {"parts": dict(self.shares)} if not self.from_column else {"from_column": self.from_column}
        return json.dumps({**said, "stratify": self.stratify}, sort_keys=True)

    @property
    def column(self) -> str:
        return self.from_column or self.stratify

    @property
    def option(self) -> str:
        return f"--{'from-column' if self.from_column else 'stratify'} {self.column}"


# ---- units and their values


def distinct(batches: Iterable[pa.RecordBatch | pa.Table]) -> pa.Table:
    """The different rows (`PAIRS`) of all batches; never more in memory than they and `FOLD_ROWS`."""
    held, waiting = PAIRS.empty_table(), 0
    parts: list[pa.Table] = []
    for batch in batches:
        parts.append(pa.table(batch) if isinstance(batch, pa.RecordBatch) else batch)
        waiting += batch.num_rows
        if waiting >= FOLD_ROWS:
            held, parts, waiting = _folded([held, *parts]), [], 0
    return _folded([held, *parts])


def _folded(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).group_by(PAIRS.names).aggregate([]).select(PAIRS.names)


def _pairs(keys: Any, values: Any) -> pa.Table:
    """A table of `PAIRS`; ``values``: an array of any plain type, or None."""
    if values is None:
        values = pa.nulls(len(keys), pa.string())
    return pa.table({"unit_key": keys, "value": values.cast(pa.string())}, schema=PAIRS)


def units(lake: Lake, request: Request) -> tuple[pa.Array, pa.Table]:
    """(unit keys, ascending, each once; their `PAIRS` with a value). Raises `BadRequest` for a column that no table has."""
    key, column = KEY[request.unit], request.column
    labelled = column.startswith(LABEL)
    if request.query:
        queried = _queried(lake, request, key, None if labelled else column)
        keys, pairs = queried, queried
    else:
        tables = ("subjects",) if request.unit == "subject" else IMAGES
        keys = distinct(_pairs(batch.column(key), None) for table in tables for batch in lake.scan(table, [key]))
        pairs = PAIRS.empty_table()
        if column and not labelled:
            pairs = distinct(_values(lake, request, key))
    found = keys.column("unit_key").drop_null().unique().sort()
    if labelled:
        where = (pc.field("label") == column.removeprefix(LABEL)) & (pc.field("role") == "positive")
        where &= pc.field("area_px").is_null() | (pc.field("area_px") > 0)
        shown = distinct(_pairs(batch.column(key), None) for batch in lake.scan("labels", [key], where)).column("unit_key").drop_null()
        values = pc.if_else(pc.is_in(found, value_set=shown.combine_chunks()), "present", "absent")
        pairs = _pairs(found, values)
    return found, pairs.filter(pc.field("value").is_valid() & pc.field("unit_key").is_valid())


def _values(lake: Lake, request: Request, key: str) -> Iterable[pa.Table]:
    """`PAIRS` of every table that has the column beside the unit's key."""
    column = request.column
    holders = [name for name in (*PARENTS, *IMAGES, "subjects") if {column, key} <= set(TABLES[name].names)]
    if not holders:
        raise BadRequest(f"{request.option}: no table of the lake has it beside {key}; bring it by --query, with {key}")
    for table in holders:
        for batch in lake.scan(table, [key, column]):
            try:
                yield _pairs(batch.column(key), batch.column(column))
            except pa.ArrowException:
                raise BadRequest(f"{request.option}: its values are no plain ones; make one of them by --query") from None


def _queried(lake: Lake, request: Request, key: str, column: str | None) -> pa.Table:
    registered = sql.register(lake.spark, lake.uri, sql.named(request.query))
    found = sql.query(registered.spark, request.query)
    for name in filter(None, (key, column)):
        if name not in found.columns:
            raise BadRequest(f"--query: returns {', '.join(found.columns)}; expected a column {name}")
    value = f"CAST(`{column}` AS STRING)" if column else "CAST(NULL AS STRING)"
    return found.selectExpr(f"CAST({key} AS STRING) AS unit_key", f"{value} AS value").distinct().toArrow().cast(PAIRS)


def per_unit(keys: pa.Array, pairs: pa.Table) -> tuple[pa.Array, np.ndarray]:
    """(one value of each unit, null where it has none; how many different ones it has)."""
    grouped = pairs.group_by("unit_key").aggregate([("value", "one"), ("value", "count_distinct")])
    at = pc.index_in(keys, value_set=grouped.column("unit_key").combine_chunks())
    values = grouped.column("value_one").combine_chunks().take(at)
    counts = grouped.column("value_count_distinct").combine_chunks().take(at)
    return values, pc.fill_null(counts, 0).to_numpy(zero_copy_only=False)


# ---- the table


@dataclass(frozen=True)
class Result:
    """parts : part -> units of the whole split;  added : part -> new units;  without : units whose --from-column is null"""

    parts: Mapping[str, int]
    added: Mapping[str, int]
    without: int = 0

    def said(self) -> dict[str, Any]:
        return asdict(self)


def assign_splits(lake: Lake, request: Request, run_id: str) -> Result:
    """Gives a part to every unit that has none yet, in one transaction on ``splits`` (which is there, see `Lake.ensure`).

    Raises `BadRequest` for a name that was made otherwise (seed, parts, unit, stratification), and for units that a publisher put into two parts.
    """
    keys, pairs = units(lake, request)
    made: dict[int, tuple[list[DataFile], Result]] = {}

    def build(version: int) -> tuple[list[DataFile], list[DataFile]]:
        if version not in made:  # another job was faster: its units are old ones now
            made[version] = _build(lake, request, keys, pairs, version, run_id)
        return made[version][0], []

    read_version = int(lake.snapshot("splits").version())
    files, result = made[read_version] = _build(lake, request, keys, pairs, read_version, run_id)
    if not files:
        return result
    lake.transact("splits", build, metadata=lake.user_metadata(run=run_id, split=request.name), reads=True)
    return made[max(made)][1]


def _build(lake: Lake, request: Request, keys: pa.Array, pairs: pa.Table, version: int, run_id: str) -> tuple[list[DataFile], Result]:
    columns = ["unit", "unit_key", "part", "seed", "stratum", "definition"]
    held = lake.read("splits", columns, pc.field("split_name") == request.name, lake.files("splits", version))
    _refuse_other(request, held)
    fresh = pc.invert(pc.is_in(keys, value_set=held.column("unit_key").combine_chunks()))
    new = keys.filter(fresh)
    if request.from_column:
        new, parts, without = _published(request, keys, pairs, held, fresh)
        strata = pa.nulls(len(new), pa.string())
    else:
        parts, strata = _drawn(request, new, pairs, held)
        without = 0
    files = _write(lake, request, new, parts, strata, run_id)
    before = {entry["values"]: entry["counts"] for entry in held.column("part").value_counts().to_pylist()}
    added = {entry["values"]: entry["counts"] for entry in parts.value_counts().to_pylist()}
    names = list(request.shares) or sorted({*before, *added})
    return files, Result(
        {part: before.get(part, 0) + added.get(part, 0) for part in names}, {part: added[part] for part in names if part in added}, without
    )


def _refuse_other(request: Request, held: pa.Table) -> None:
    for row in held.group_by(["unit", "seed", "definition"]).aggregate([]).to_pylist():
        seed = request.seed if request.from_column else row["seed"]  # a publisher's split has no use for it
        if (row["unit"], seed, row["definition"]) != (request.unit, request.seed, request.definition):
            raise BadRequest(
                f"--name {request.name}: that split has unit {row['unit']}, seed {row['seed']} and {row['definition']}; "
                f"asked for unit {request.unit}, seed {request.seed} and {request.definition}. Give the same, or another name"
            )


def _drawn(request: Request, new: pa.Array, pairs: pa.Table, held: pa.Table) -> tuple[pa.Array, pa.Array]:
    """(part, stratum) of each new unit, by quota and hash. A unit with several values (CT and MR) has a stratum of its own."""
    values, counts = per_unit(new, pairs)
    strata = pc.fill_null(values, "")
    if (counts > 1).any():
        several = new.filter(pa.array(counts > 1))
        joined: dict[str, list[str]] = {}
        for row in pairs.filter(pc.is_in(pairs.column("unit_key"), value_set=several)).to_pylist():
            joined.setdefault(row["unit_key"], []).append(row["value"])
        names = pa.array(["+".join(sorted(joined[unit])) for unit in several.to_pylist()], pa.string())
        strata = pc.replace_with_mask(strata, pa.array(counts > 1), names)
    coded = strata.dictionary_encode()
    if len(coded.dictionary) > MOST_STRATA:
        raise BadRequest(f"{request.option}: more than {MOST_STRATA} strata; group its values by --query")
    counted = held.group_by(["stratum", "part"]).aggregate([([], "count_all")]).to_pylist()
    old = {(row["stratum"] or "", row["part"]): row["count_all"] for row in counted}
    unit_keys = (key.as_py() for key in new)
    places = drawn(unit_keys, coded.indices.to_numpy(), coded.dictionary.to_pylist(), old, request.shares, request.seed)
    parts = pa.array(list(request.shares), pa.string()).take(pa.array(places))
    return parts, pc.if_else(pc.equal(strata, ""), pa.scalar(None, pa.string()), strata)


def _published(request: Request, keys: pa.Array, pairs: pa.Table, held: pa.Table, fresh: pa.Array) -> tuple[pa.Array, pa.Array, int]:
    """(new units, their parts, how many units have none) as the publisher has them."""
    values, counts = per_unit(keys, pairs)
    torn = keys.filter(pa.array(counts > 1)).to_pylist()
    if torn:
        raise BadRequest(
            f"{request.option}: {request.unit}s with images in two parts: {', '.join(torn[:SHOWN])}; "
            "leave them out by --query, or split by --unit image"
        )
    ours = held.column("part").combine_chunks().take(pc.index_in(keys, value_set=held.column("unit_key").combine_chunks()))
    moved = keys.filter(pc.fill_null(pc.not_equal(ours, values), False)).to_pylist()
    if moved:
        raise BadRequest(
            f"{request.option}: {request.unit}s have another part than split {request.name} gave them: {', '.join(moved[:SHOWN])}; "
            "a part never changes, use another name"
        )
    odd = sorted(value for value in values.drop_null().unique().to_pylist() if not plain_name(value))
    if odd:
        raise BadRequest(f"{request.option}: {odd[0][:40]!r} is no name for a part (letters, digits, '.', '_', '-')")
    chosen = pc.and_(fresh, pa.array(counts == 1))
    return keys.filter(chosen), values.filter(chosen), int((counts == 0).sum())


def _write(lake: Lake, request: Request, keys: pa.Array, parts: pa.Array, strata: pa.Array, run_id: str) -> list[DataFile]:
    """The rows as files of ``splits``, ordered by unit."""
    files = []
    for start in range(0, len(keys), FILE_ROWS):
        units = keys.slice(start, FILE_ROWS)
        count = len(units)
        columns = {
            "split_name": pa.array([request.name] * count),
            "unit": pa.array([request.unit] * count),
            "unit_key": units,
            "part": parts.slice(start, FILE_ROWS),
            "seed": pa.array([request.seed] * count, pa.int64()),
            "stratum": strata.slice(start, FILE_ROWS),
            "definition": pa.array([request.definition] * count),
        }
        rows = Rows("splits", columns).to_arrow(run_id, run_id)
        file = lake.write_file("splits", [rows], f"part-{run_id}-{uuid.uuid4().hex[:12]}.parquet")
        files += [file] if file else []
    return files
