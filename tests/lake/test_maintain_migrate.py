"""A lake of the first release: it opens, its missing columns are null, and ``--migrate`` brings it up."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from medspark.errors import BadRequest
from medspark.lake import create
from medspark.lake.store import Lake
from medspark.lake.upkeep import migrate
from medspark.tables import catalog
from medspark.tables.schema import Column
from tests.lake import harness
from tests.lake.patients import upkeep

FIRST = Path(__file__).parent / "fixtures" / "lake-1.0.zip"
"""Written by the first release (schema 1.0): a CT series of three slices with a SEG, a second patient, a tiled slide; no claims, addresses as
tokens."""
EXTRA = Column("dose_report_id", "string", "a column of a later release", null=True, unit="")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    with zipfile.ZipFile(FIRST) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "lake"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue of a later release: one more column in ``slices``, between others."""
    old = catalog.TABLES["slices"]
    columns = (*old.columns[:12], EXTRA, *old.columns[12:])
    monkeypatch.setitem(catalog.TABLES, "slices", dataclasses.replace(old, columns=columns))
    for module in (catalog, create, migrate):
        monkeypatch.setattr(module, "SCHEMA_VERSION", "1.1")


def test_the_fixture_holds_nothing_of_the_machine_that_made_it(first: Path) -> None:
    with zipfile.ZipFile(FIRST) as archive:
        names = archive.namelist()
        data = b"".join(archive.read(name) for name in names)
    assert not any("claims" in name for name in names)
    values = "\n".join(text for _, _, text in harness.strings(first))  # Parquet's pages are compressed
    for word in ("/tmp", "/work", "/home", "/root", "file:"):
        assert word.encode() not in data and word not in values
    assert FIRST.stat().st_size < 200_000


def test_it_opens_and_missing_columns_are_null(first: Path, later: None) -> None:
    lake = Lake(None, str(first))  # type: ignore[arg-type]
    rows = lake.read("slices", ["image_id", EXTRA.name])
    assert rows.num_rows == 5 and rows.column(EXTRA.name).null_count == 5
    assert EXTRA.name in migrate.missing(lake)["slices"]


@pytest.mark.spark
def test_migrate_adds_columns_once_and_rows_stay(spark: Any, first: Path, later: None) -> None:
    before = harness.content(first)
    planned = upkeep(spark, first, migrate=True, dry_run=True)["migrated"]
    assert EXTRA.name in planned["slices"] and EXTRA.name not in [
        field.name for field in Lake(spark, str(first)).snapshot("slices").schema().fields
    ]
    # New code appends to the old table before anybody migrates; the column appears with its values once it is added.
    here = Lake(spark, str(first))
    rows = here.read("slices", list(catalog.TABLES["slices"].names)).slice(0, 2).to_pylist()
    new = [{**row, "image_id": row["image_id"][:16] + f"{place:016x}", EXTRA.name: "R7"} for place, row in enumerate(rows)]
    file = here.write_file("slices", pa.Table.from_pylist(new, catalog.TABLES["slices"].arrow()), "part-later.parquet")
    here.transact("slices", [file] if file else [])
    done = upkeep(spark, first, migrate=True)["migrated"]
    assert EXTRA.name in done["slices"] and "series" in done
    assert upkeep(spark, first, migrate=True)["migrated"] == {}
    frame = spark.read.format("delta").load(str(first / "slices"))
    assert (frame.count(), frame.where(f"{EXTRA.name} IS NULL").count(), frame.where(f"{EXTRA.name} = 'R7'").count()) == (7, 5, 2)
    field = next(field for field in frame.schema.fields if field.name == EXTRA.name)
    assert field.metadata["comment"] == EXTRA.doc
    snapshot = Lake(spark, str(first)).snapshot("slices")
    assert snapshot.metadata().configuration["medspark.schema"] == "1.1"
    assert snapshot.metadata().configuration["delta.enableDeletionVectors"] == "false"
    after = harness.content(first)
    assert all(set(before[table]) <= set(after[table]) for table in before)
    upkeep(spark, first, cluster=True)
    assert harness.content(first) == after
    assert [one["what"] for one in upkeep(spark, first, verify_share=1.0)["verified"]["damaged"]] == ["2 images have no pixels"]


def rewritten(lake: Path, table: str, change: Any) -> None:
    """The table's first log entry with another metadata; a newer release's table, as an older one meets it."""
    path = lake / table / "_delta_log" / f"{0:020d}.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "metaData" in line:
            change(line["metaData"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for checksum in path.parent.glob("*.crc"):  # they hold the metadata, too
        checksum.unlink()


def test_a_newer_major_version_is_refused(first: Path) -> None:
    rewritten(first, "slices", lambda said: said["configuration"].update({"medspark.schema": "2.0"}))
    with pytest.raises(BadRequest, match=r"newer medspark \(schema 2.0"):
        upkeep(None, first, cluster=True)


def test_columns_of_a_newer_minor_version_are_not_lost_by_a_rewrite(first: Path) -> None:
    def add(said: dict[str, Any]) -> None:
        schema = json.loads(said["schemaString"])
        schema["fields"].append({"name": "later", "type": "string", "nullable": True, "metadata": {}})
        said["schemaString"] = json.dumps(schema)

    rewritten(first, "slices", add)
    with pytest.raises(BadRequest, match="has the column later"):
        upkeep(None, first, cluster=True)
