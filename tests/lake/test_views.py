"""Views and registration: Spark and DuckDB give one answer, truths of phantoms and real CT, catalogue with comments, spark-sql twice at once.

``python -m tests.lake.test_views`` writes the tables of views and functions in docs/sql.md anew.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import medspark
from medspark.errors import BadRequest
from medspark.labels.kind import labels_kind
from medspark.lake import register, sql
from medspark.lake.store import Lake
from medspark.lake.views import VIEWS
from medspark.pixels.functions import FUNCTIONS
from medspark.tables.catalog import TABLES
from tests.conftest import ROOT
from tests.lake import harness, reading
from tests.real import shared_data

PAGE = ROOT / "docs" / "sql.md"
BLOCK = re.compile(r"(<!-- (views|functions) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def plain(value: Any) -> Any:
    """A value as both engines' rows can be compared: floats to 9 digits (sums run in another order), bytes and structs as they are."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:.9g}"
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex()
    if hasattr(value, "asDict"):
        return plain(value.asDict())
    if isinstance(value, (list, tuple, dict)) and not value:
        return []  # Arrow writes an empty map as an empty list
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        if all(
            isinstance(pair, tuple) and len(pair) == 2 and not hasattr(pair, "asDict") for pair in value
        ):  # Arrow's way of writing a map
            return plain(dict(value))
        return [plain(inner) for inner in value]
    if hasattr(value, "isoformat"):
        return value.isoformat().removesuffix("+00:00")
    return value


def said(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps({name: plain(value) for name, value in row.items()}, sort_keys=True, default=str) for row in rows)


def both(spark: Any, lake: Any, query: str) -> tuple[list[str], list[str]]:
    return said([row.asDict() for row in sql.query(spark, query).collect()]), said(lake.sql(query).to_pylist())


@pytest.mark.spark
def test_answers_of_open_lake_equal_sparks(spark: Any, built: reading.Built) -> None:
    sql.register(spark, str(built.uri))
    lake = medspark.open_lake(str(built.uri))
    for name in [*TABLES, *(view.name for view in VIEWS)]:
        of_spark, of_duck = both(spark, lake, f"SELECT * FROM {name}")
        assert of_spark == of_duck, name
        names = TABLES[name].names if name in TABLES else [item.name for view in VIEWS if view.name == name for item in view.items]
        assert spark.table(name).columns == lake.sql(f"SELECT * FROM {name} LIMIT 0").schema.names == list(names)
    for query in (
        "SELECT modality, label, count(DISTINCT image_id) AS n FROM slices_labelled GROUP BY modality, label",
        "SELECT count(*) AS n, count(mask) AS masks FROM slices s LEFT JOIN labels l ON l.image_id = s.image_id",
        *(query.replace("\n", " ") for query in queries_of_the_page()),
    ):
        of_spark, of_duck = both(spark, lake, query)
        assert of_spark == of_duck and of_spark, query


@pytest.mark.spark
def test_views_say_the_truth(spark: Any, built: reading.Built) -> None:
    lake = medspark.open_lake(str(built.uri))
    series = {row["series_id"]: row for row in lake.sql("SELECT * FROM series_summary WHERE label IS NULL").to_pylist()}
    assert set(series) == {built.series[name] for name in ("uneven", "tilted", "doubled", "dark")}
    labelled = lake.sql("SELECT * FROM series_summary WHERE label IS NOT NULL ORDER BY annotator").to_pylist()
    assert [row["annotator"] is not None for row in labelled] == [True, True]  # one row for each reader
    volumes = [math.prod(part.stop - part.start for part in nodule) for nodule in (reading.FIRST, reading.SECOND)]
    for row in labelled:
        assert (row["series_id"], row["label"], row["n_lesions"]) == (built.series["even"], "Nodule", 2)
        assert row["area_px"] == sum(volumes)
        assert row["n_labelled_slices"] == sum(nodule[0].stop - nodule[0].start for nodule in (reading.FIRST, reading.SECOND))
        assert row["volume_ml"] == pytest.approx(sum(volumes) * 0.5 * 0.75 * 2.0 / 1000)
    quality = {(row["what"], row["code"]): row["n"] for row in lake.sql("SELECT * FROM data_quality").to_pylist()}
    assert quality["series", "MISSING_SLICES"] == quality["series", "DUPLICATE_POSITIONS"] == quality["series", "GANTRY_TILT"] == 1
    for subject in lake.sql("SELECT * FROM subject_summary").to_pylist():
        assert (subject["n_slides"] > 0) != (subject["n_series"] > 0)
        assert subject["labels"] == (["tumour"] if subject["n_slides"] else ["Nodule"])
        assert subject["n_slices"] == (0 if subject["n_slides"] else len(harness.rows(built.uri, "slices")))


@pytest.mark.spark
def test_uneven_and_detector_series_have_no_volume(spark: Any, tmp_path: Path) -> None:
    """Real CT: ge_head_tilt changes its slice distance half way; its labels have areas and no volume; dcmqi_liver's have both."""
    head, liver = shared_data("ct/ge_head_tilt"), shared_data("ct/dcmqi_liver")
    where = tmp_path / "lake"
    harness.run(spark, where, [head, liver])
    harness.run(
        spark, where, [shared_data("ct/ge_head_tilt_labels_derived"), liver], labels_kind("auto", None, None, explicit_dataset=False)
    )
    lake = medspark.open_lake(str(where))
    bone, organ = (
        lake.sql(f"SELECT * FROM series_summary WHERE label = '{label}' AND n_slices = {n} LIMIT 1").to_pylist()[0]
        for label, n in (("bone_gt400HU", 28), ("Liver", 3))
    )
    # 373,405 px of bone by the files' manifest, in the SEG and again in the RTSTRUCT
    assert (bone["area_px"], bone["n_files"], bone["volume_ml"]) == (2 * 373_405, 2, None)
    assert bone["area_mm2"] == pytest.approx(2 * 373_405 * 0.4882812**2)
    assert organ["volume_ml"] == pytest.approx(organ["area_px"] * 0.810547**2 * 1.0 / 1000, rel=1e-6)
    sql.register(spark, str(where))
    for view in VIEWS:
        of_spark, of_duck = both(spark, lake, f"SELECT * FROM {view.name}")
        assert of_spark == of_duck, view.name


@pytest.mark.spark
def test_agreement_of_two_readers_is_one_query(spark: Any, built: reading.Built) -> None:
    (query,) = (query for query in queries_of_the_page() if "mask_intersect" in query)
    sql.register(spark, str(built.uri))
    for rows in ([row.asDict() for row in sql.query(spark, query).collect()], medspark.open_lake(str(built.uri)).sql(query).to_pylist()):
        assert sorted(row["dice"] for row in rows) == pytest.approx(sorted(built.dice))
        assert all(row["series_id"] == built.series["even"] and row["reader"] < row["other"] for row in rows)


@pytest.mark.spark
def test_registration(spark: Any, built: reading.Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    lake = Lake(spark, str(built.uri))
    sql.register(spark, str(built.uri))  # a session that has temporary views of these names, as notebooks do
    for _ in range(2):
        done = register.register(spark, lake, "reg_test")
    assert spark.catalog.currentDatabase() == "default"
    assert {table.name for table in spark.catalog.listTables("reg_test") if not table.isTemporary} == {
        *TABLES,
        *(view.name for view in VIEWS),
    }
    assert done.absent == () and done.kept is not None and done.kept.read_text().startswith(register.HEAD + str(built.uri) + "\n")
    for name in ("slices", "labels", "photos"):
        described = spark.sql(f"DESCRIBE TABLE reg_test.{name}").collect()
        assert all(row["comment"] for row in described if row["col_name"] in TABLES[name].names), name
    for view in VIEWS:
        described = {row["col_name"]: row["comment"] for row in spark.sql(f"DESCRIBE TABLE reg_test.{view.name}").collect()}
        assert described == {item.name: item.doc for item in view.items}
    count = spark.sql("SELECT count(*) FROM reg_test.slices").first()[0]
    assert spark.sql("SELECT count(*) FROM reg_test.slices s JOIN reg_test.series USING (series_id)").first()[0] == count > 0

    harness.run(spark, tmp_path / "other", [built.uri.parent / "in" / "uneven"])  # the database is pointed at another lake
    register.register(spark, Lake(spark, str(tmp_path / "other")), "reg_test")
    assert spark.sql("SELECT count(*) FROM reg_test.slices").first()[0] == len(reading.UNEVEN_MM)
    assert len(harness.rows(built.uri, "slices")) == count  # the first lake's data are untouched

    spark.sql(f"CREATE DATABASE taken LOCATION '{tmp_path / 'taken'}'")
    spark.sql("CREATE TABLE taken.slices (a INT) USING parquet")
    with pytest.raises(BadRequest, match="slices is not a lake's"):
        register.register(spark, lake, "taken")
    for name in ("a b", "1a", "a;b", ""):
        with pytest.raises(BadRequest, match="--database"):
            register.check(name)
    for database in ("reg_test", "taken"):
        spark.sql(f"DROP DATABASE {database} CASCADE")
    assert len(harness.rows(built.uri, "slices")) == count


def conf_dir(where: Path) -> Path:
    """Spark's configuration as set-up would place it, from this project's own files."""
    where.mkdir()
    for name in ("spark-defaults.conf", "log4j2.properties", "spark-env.sh"):
        text = (ROOT / "conf" / name).read_text(encoding="utf-8").replace("@PYTHON@", sys.executable)
        (where / name).write_text(text, encoding="utf-8")
    return where


@pytest.mark.spark
@pytest.mark.slow
def test_register_lake_and_two_spark_sql_at_once(built: reading.Built, tmp_path: Path) -> None:
    """The job, then two `spark-sql` in one folder at the same time, without a flag; a lake that is gone is left out."""
    env = {"SPARK_CONF_DIR": str(conf_dir(tmp_path / "conf")), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    refused = harness.job("register_lake", "--lake", tmp_path / "nothing", "--database", "med", submit=True, env=env)
    out, err = refused.communicate(timeout=200)  # spark-submit joins the two
    assert refused.returncode == 2 and "register_lake: --lake" in out + err and "no lake there" in out + err
    summary = harness.ended(harness.job("register_lake", "--lake", built.uri, "--database", "med", submit=True, env=env))
    assert (summary["database"], set(summary["tables"]), summary["absent"]) == ("med", set(TABLES), [])
    gone = tmp_path / "config" / "medspark" / "sql" / "gone.sql"
    shutil.copy(summary["kept"], gone)
    gone.write_text(gone.read_text().replace(str(built.uri), str(tmp_path / "gone")).replace("med.", "gone."))
    program = str(Path(sys.executable).parent / "spark-sql")
    queries = ("SELECT count(*) FROM med.slices", "SELECT label, n_lesions FROM med.series_summary WHERE label IS NOT NULL LIMIT 1")
    running = [
        subprocess.Popen(
            [program, "--driver-memory", "1g", "-e", query],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **env},
        )
        for query in queries
    ]
    answers = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], answers
    assert [out.strip() for out, _ in answers] == [str(len(harness.rows(built.uri, "slices"))), "Nodule\t2"]
    assert not (tmp_path / "metastore_db").exists() and not (tmp_path / "gone").exists()


# ---- the page


def queries_of_the_page() -> list[str]:
    return re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def tables() -> dict[str, str]:
    lines = []
    for view in VIEWS:
        lines += [f"### {view.name}", "", view.doc, "", "| column | |", "|---|---|"]
        lines += [f"| `{item.name}` | {item.doc} |" for item in view.items] + [""]
    functions = ["| function | returns | |", "|---|---|---|"]
    functions += [f"| `{one.signature()}` | `{one.returns}` | {one.doc} |" for one in FUNCTIONS]
    return {"views": "\n" + "\n".join(lines), "functions": "\n".join(functions) + "\n"}


def test_views_and_functions_on_the_page_are_those_of_the_code() -> None:
    on_page = {name: text for _, name, text, _ in BLOCK.findall(PAGE.read_text(encoding="utf-8"))}
    assert on_page == tables(), "docs/sql.md is stale; run: python -m tests.lake.test_views"


def write() -> None:
    fresh = tables()
    PAGE.write_text(BLOCK.sub(lambda found: found[1] + fresh[found[2]] + found[4], PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
