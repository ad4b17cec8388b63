"""Splits: which part (train, val, test, ...) a subject or an image belongs to. Once given, a part never changes.

`quotas` is the arithmetic. Units and their strata come by SQL, Spark ranks and joins them, tasks write the rows, one transaction commits them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from medspark.errors import BadRequest
from medspark.lake import sql
from medspark.lake.files import DataFile, locate, write_parquet
from medspark.lake.quotas import quotas, ranks
from medspark.lake.store import Lake
from medspark.tables.catalog import SPLITS, TABLES
from medspark.tables.names import plain_name
from medspark.tables.rows import Rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Unit = Literal["subject", "image"]
KEY: dict[Unit, str] = {"subject": "subject_key", "image": "image_id"}
LABEL = "label:"  # --stratify label:NAME: whether the label is on one of the unit's images
IMAGES = ("slices", "tiles", "photos")  # tables of images
PARENTS = ("series", "slides")
MOST_STRATA = 10_000  # beyond that a stratum holds next to nobody; the driver counts units by stratum and part
SHOWN = 10  # keys in a sentence that refuses something
FILE_ROWS = 1_000_000  # units per file of a task: some 30 MB


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


# ---- units by SQL


def units(lake: Lake, request: Request) -> DataFrame:
    """(unit_key, value) rows, one per unit and value: the stratum's or the part's; value is null where there is none.

    Raises `BadRequest` for a column that no table has.
    """
    key, column = KEY[request.unit], request.from_column or request.stratify
    option = "--from-column" if request.from_column else "--stratify"
    if request.query:
        found = sql.query(lake.spark, request.query)
        if key not in found.columns:
            raise BadRequest(f"--query: returns {', '.join(found.columns)}; expected a column {key}")
        found.createOrReplaceTempView("_units")
        if column and not column.startswith(LABEL):
            if column not in found.columns:
                raise BadRequest(f"{option} {column}: the query returns {', '.join(found.columns)}")
            return lake.spark.sql(
                f"SELECT DISTINCT {key} AS unit_key, CAST(`{column}` AS STRING) AS value FROM _units WHERE {key} IS NOT NULL"
            )
    else:
        tables = ("subjects",) if request.unit == "subject" else IMAGES
        sql.query(lake.spark, " UNION ALL ".join(f"SELECT {key} FROM {table}" for table in tables)).createOrReplaceTempView("_units")
    base = f"(SELECT DISTINCT {key} AS unit_key FROM _units WHERE {key} IS NOT NULL)"
    if not column:
        return lake.spark.sql(f"SELECT unit_key, CAST(NULL AS STRING) AS value FROM {base}")
    if column.startswith(LABEL):
        label = column.removeprefix(LABEL).replace("\\", "\\\\").replace("'", "\\'")
        values = (
            f"SELECT DISTINCT {key} AS unit_key, 'present' AS value FROM labels"
            f" WHERE label = '{label}' AND role = 'positive' AND (area_px IS NULL OR area_px > 0) AND {key} IS NOT NULL"
        )
        return lake.spark.sql(
            f"SELECT u.unit_key, coalesce(v.value, 'absent') AS value FROM {base} u LEFT JOIN ({values}) v USING (unit_key)"
        )
    holders = [name for name in (*PARENTS, *IMAGES, "subjects") if {column, key} <= set(TABLES[name].names)]
    if not holders:
        raise BadRequest(f"{option} {column}: no table of the lake has it beside {key}; bring it by --query, with {key}")
    values = " UNION ALL ".join(f"SELECT {key} AS unit_key, CAST(`{column}` AS STRING) AS value FROM {table}" for table in holders)
    return lake.spark.sql(
        f"SELECT DISTINCT u.unit_key, v.value FROM {base} u LEFT JOIN (SELECT * FROM ({values}) WHERE value IS NOT NULL) v USING (unit_key)"
    )


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
    """Gives a part to every unit that has none yet, in one transaction on ``splits``. The lake's views are registered (`sql.register`).

    Raises `BadRequest` for a name that was made otherwise (seed, parts, unit, stratification), and for units that a publisher put into two parts.
    """
    values = units(lake, request)
    made: dict[int, tuple[list[DataFile], Result]] = {}

    def build(version: int) -> tuple[list[DataFile], list[DataFile]]:
        if version not in made:  # another job was faster: its units are old ones now
            made[version] = _build(lake, request, values, version, run_id)
        return made[version][0], []

    read_version = int(lake.snapshot("splits").version())
    files, result = made[read_version] = _build(lake, request, values, read_version, run_id)
    if not files:
        return result
    lake.transact("splits", build, metadata=lake.user_metadata(run=run_id, split=request.name), reads=True)
    return made[max(made)][1]


def _build(lake: Lake, request: Request, values: DataFrame, version: int, run_id: str) -> tuple[list[DataFile], Result]:
    spark = lake.spark
    lake.frame("splits", version).createOrReplaceTempView("_all_splits")
    name = request.name  # a plain name: no quote in it
    _refuse_other(spark, request)
    spark.sql(
        f"SELECT unit_key, part, coalesce(stratum, '') AS stratum FROM _all_splits WHERE split_name = '{name}'"
    ).createOrReplaceTempView("_held")
    values.createOrReplaceTempView("_values")
    rows, without = (_published if request.from_column else _drawn)(spark, request)
    files = _write(lake, request, rows, run_id)
    held = {row.part: row.n for row in spark.sql("SELECT part, count(*) AS n FROM _held GROUP BY part").collect()}
    added: dict[str, int] = {}
    for _, parts in files:
        for part, count in parts.items():
            added[part] = added.get(part, 0) + count
    names = list(request.shares) or sorted({*held, *added})
    whole = {part: held.get(part, 0) + added.get(part, 0) for part in names}
    return [file for file, _ in files], Result(whole, {part: added[part] for part in names if part in added}, without)


def _refuse_other(spark: Any, request: Request) -> None:
    found = spark.sql(f"SELECT DISTINCT unit, seed, definition FROM _all_splits WHERE split_name = '{request.name}' LIMIT 2").collect()
    for row in found:
        theirs = (row.unit, row.seed if not request.from_column else request.seed, row.definition)
        if theirs != (request.unit, request.seed, request.definition):
            raise BadRequest(
                f"--name {request.name}: that split has unit {row.unit}, seed {row.seed} and {row.definition}; "
                f"asked for unit {request.unit}, seed {request.seed} and {request.definition}. Give the same, or another name"
            )


def _drawn(spark: Any, request: Request) -> tuple[DataFrame, int]:
    """(unit_key, part, stratum) of the new units, by quota and hash."""
    # Several values of one unit (a subject with CT and MR) are a stratum of their own.
    spark.sql(
        "SELECT unit_key, array_join(array_sort(collect_set(value)), '+') AS stratum FROM _values GROUP BY unit_key"
    ).createOrReplaceTempView("_strata")
    spark.sql("SELECT s.unit_key, s.stratum FROM _strata s LEFT ANTI JOIN _held h ON h.unit_key = s.unit_key").createOrReplaceTempView(
        "_new"
    )
    new = {
        row.stratum: row.n
        for row in spark.sql(f"SELECT stratum, count(*) AS n FROM _new GROUP BY stratum LIMIT {MOST_STRATA + 1}").collect()
    }
    if len(new) > MOST_STRATA:
        raise BadRequest(f"--stratify {request.stratify}: more than {MOST_STRATA} strata; group its values by --query")
    held = {
        (row.stratum, row.part): row.n
        for row in spark.sql("SELECT stratum, part, count(*) AS n FROM _held GROUP BY stratum, part").collect()
    }
    taken = ranks(quotas(new, held, request.shares))
    ranges = [(stratum, part, first, end) for stratum, listed in taken.items() for part, first, end in listed]
    spark.createDataFrame(ranges, "stratum string, part string, first long, end long").createOrReplaceTempView("_ranges")
    ordered = (
        "SELECT unit_key, stratum, row_number() OVER (PARTITION BY stratum"
        f" ORDER BY sha2(concat('{request.seed}:', unit_key), 256), unit_key) - 1 AS rank FROM _new"
    )
    rows = spark.sql(
        f"SELECT n.unit_key, r.part, n.stratum FROM ({ordered}) n JOIN _ranges r ON r.stratum = n.stratum AND n.rank >= r.first AND n.rank < r.end"
    )
    return rows, 0


def _published(spark: Any, request: Request) -> tuple[DataFrame, int]:
    """(unit_key, part, stratum) of the new units, as the publisher has them."""
    by_unit = "SELECT unit_key, count(DISTINCT value) AS n, min(value) AS part FROM _values GROUP BY unit_key"
    torn = spark.sql(f"SELECT unit_key FROM ({by_unit}) WHERE n > 1 ORDER BY unit_key LIMIT {SHOWN}").collect()
    if torn:
        raise BadRequest(
            f"--from-column {request.from_column}: {request.unit}s with images in two parts: {', '.join(row.unit_key for row in torn)}; "
            "leave them out by --query, or split by --unit image"
        )
    moved = spark.sql(
        f"SELECT b.unit_key FROM ({by_unit}) b JOIN _held h ON h.unit_key = b.unit_key WHERE b.n = 1 AND b.part <> h.part"
        f" ORDER BY b.unit_key LIMIT {SHOWN}"
    ).collect()
    if moved:
        raise BadRequest(
            f"--from-column {request.from_column}: {request.unit}s have another part than split {request.name} gave them: "
            f"{', '.join(row.unit_key for row in moved)}; a part never changes, use another name"
        )
    odd = [
        row.part for row in spark.sql(f"SELECT DISTINCT part FROM ({by_unit}) WHERE n = 1 LIMIT 1000").collect() if not plain_name(row.part)
    ]
    if odd:
        raise BadRequest(
            f"--from-column {request.from_column}: {sorted(odd)[0][:40]!r} is no name for a part (letters, digits, '.', '_', '-')"
        )
    without = spark.sql(f"SELECT unit_key FROM ({by_unit}) WHERE n = 0").count()
    rows = spark.sql(
        f"SELECT b.unit_key, b.part, CAST(NULL AS STRING) AS stratum FROM ({by_unit}) b LEFT ANTI JOIN _held h ON h.unit_key = b.unit_key"
        " WHERE b.n = 1"
    )
    return rows, without


def _write(lake: Lake, request: Request, rows: DataFrame, run_id: str) -> list[tuple[DataFile, dict[str, int]]]:
    """The rows as files of ``splits``, written in tasks; with how many units of each part a file holds."""
    lake.filesystem.create_dir(lake.folder("splits"), recursive=True)
    write = _Writer(lake.uri, run_id, request)
    said = rows.mapInArrow(lambda batches: write(batches), "said string").collect()
    found = sorted((json.loads(row.said) for row in said), key=lambda item: item["file"]["path"])
    return [(DataFile(**item["file"]), item["parts"]) for item in found]


@dataclass(frozen=True)
class _Writer:
    """A task's units (unit_key, part, stratum) into files of about `FILE_ROWS`; travels by closure."""

    lake_uri: str
    run_id: str
    request: Request

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        held: list[pa.RecordBatch] = []
        for batch in batches:
            held.append(batch)
            if sum(one.num_rows for one in held) >= FILE_ROWS:
                yield self._file(held)
                held = []
        if any(batch.num_rows for batch in held):
            yield self._file(held)

    def _file(self, batches: list[pa.RecordBatch]) -> pa.RecordBatch:
        units = pa.Table.from_batches(batches).sort_by("unit_key").combine_chunks()
        count = units.num_rows
        strata = units.column("stratum").combine_chunks()
        columns = {
            "split_name": [self.request.name] * count,
            "unit": [self.request.unit] * count,
            "unit_key": units.column("unit_key").combine_chunks(),
            "part": units.column("part").combine_chunks(),
            "seed": [self.request.seed] * count,
            "stratum": pc.if_else(pc.equal(strata, ""), pa.scalar(None, pa.string()), strata),
            "definition": [self.request.definition] * count,
        }
        data = pa.Table.from_batches([Rows("splits", columns).to_arrow(self.run_id, self.run_id)])
        filesystem, root, _ = locate(self.lake_uri)
        name = f"part-{self.run_id}-{uuid.uuid4().hex[:12]}.parquet"
        file = write_parquet(filesystem, f"{root}/splits/{name}", data, name, SPLITS.names)
        parts = {entry["values"]: entry["counts"] for entry in units.column("part").value_counts().to_pylist()}
        return pa.RecordBatch.from_pydict({"said": [json.dumps({"file": asdict(file), "parts": parts})]})
