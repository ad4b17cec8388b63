"""Forgetting a subject: no file of the lake, its log, its feeds or its past holds it; the others lose nothing; a killed run is completed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medspark import config
from medspark.deid.crosswalk import Crosswalk
from medspark.errors import BadRequest
from medspark.feed import write
from medspark.feed.card import Card, ImageSpec, PartCounts, PartFile, parse
from medspark.feed.rows import pack_masks
from medspark.feed.table import TABLE, commit
from medspark.labels.kind import labels_kind
from medspark.lake import owner, pins
from medspark.lake.batch import Batch
from medspark.lake.create import first_commit
from medspark.lake.evaluations import Evaluations
from medspark.lake.files import DataFile
from medspark.lake.store import Lake
from medspark.lake.upkeep import feeds, forget
from medspark.lake.upkeep.proof import Seeker
from medspark.photos.kind import photos_kind
from medspark.tables.rows import Rows
from medspark.track import identity, page, runs
from medspark.train import checkpoint, evaluate_said
from medspark.train.evaluation import Result
from tests.lake import harness
from tests.lake.patients import age, subject_of, two_patients, upkeep, write_patients
from tests.phantoms import photos
from tests.phantoms import series as phantoms


def words(lake: Path, subject: str) -> set[str]:
    """What this test knows of a subject by itself: keys, ids and addresses, from the rows before they go."""
    found = {subject}
    for table, columns in {
        "slices": ("image_id", "series_id", "source_id", "study_id", "sop_instance_id", "series_instance_id"),
        "series": ("series_id", "study_id", "series_instance_id", "frame_of_reference_id"),
    }.items():
        for row in harness.rows(lake, table):
            if row["subject_key"] == subject:
                found |= {row[name] for name in columns if row[name]}
    found |= {row["uri"] for row in harness.rows(lake, "sources") if row["source_id"] in found}
    return found


def holding(lake: Path, said: set[str]) -> set[str]:
    """Files that hold one of the words: every value of every Parquet file on the disk, every other file as text."""
    found = set()
    for path in lake.rglob("*"):
        if path.is_file():
            text = path.read_bytes().decode("latin-1")
            if path.suffix == ".parquet":
                text += json.dumps(pq.read_table(path).to_pylist(), default=str)
            if any(word in text for word in said):
                found.add(str(path.relative_to(lake)))
    return found


def others(lake: Path, subject: str, said: set[str]) -> dict[str, list[str]]:
    return {table: [row for row in rows if not any(word in row for word in said)] for table, rows in harness.content(lake).items()}


def row_id(image_id: str) -> str:
    return hashlib.sha256(image_id.encode()).hexdigest()[:32]


def feed(spark: Any, lake: Path, name: str, without: str = "") -> int:
    """A feed of all slices (but a subject's), two row groups of which one is mixed; every sample shows one pixel of its one class. Its version."""
    folder, here = lake / "feeds" / name, Lake(spark, str(lake))
    first_commit(here, f"feeds/{name}", TABLE)
    rows = harness.table(lake, "slices").select(["image_id", "subject_key", "dataset", "series_id"]).sort_by("image_id").to_pylist()
    rows = [row for row in rows if row["subject_key"] != without]
    one = np.zeros((1, 2, 2), bool)
    one[0, 0, 0] = True
    fixed = {"part": "train", "row0": 0, "col0": 0, "k": -1, "weight": 1.0, "target": [1.0], "image": b"-"}
    fixed["mask"] = pack_masks(one, np.ones((2, 2), bool))
    samples = [{**row, **fixed, "row_id": row_id(row["image_id"]), "parent_id": row["series_id"]} for row in rows]
    collected: list[pq.FileMetaData] = []
    with write.new_writer(folder / "part-0.parquet", collected) as writer:
        for part in (samples[:2], samples[2:]):
            writer.write_table(write.to_table(part), row_group_size=len(part))
    data = (folder / "part-0.parquet").read_bytes()
    digest, groups = hashlib.sha256(data).hexdigest(), (2, len(samples) - 2)
    counts = PartCounts(len(rows), len(rows), 2, {"nodule": len(rows)}, {"nodule": 0}, {"nodule": len(rows)}, 4 * len(rows))
    card = Card(
        name=name,
        task="segmentation",
        labels=("nodule",),
        exclusive=False,
        image=ImageSpec("image", (2, 2, 1), "uint8", "blosc2", ("value",)),
        query=f"SELECT image_id FROM slices WHERE subject_key <> '{rows[0]['subject_key']}' AND series_id <> '{rows[0]['series_id']}'",
        tables={"slices": here.snapshot("slices").version()},
        split={},
        within_subject=False,
        seed=0,
        options={},
        recipe={},
        parts={"train": counts},
        mean=(0.0,),
        std=(1.0,),
        files=(PartFile("part-0.parquet", "train", len(data), digest, groups),),
        doubles=(tuple(row["image_id"] for row in rows[:3]), tuple(row["image_id"] for row in rows)),
    )
    return commit(here, card, [DataFile("part-0.parquet", len(data), len(samples), "")], "run")[0]


@pytest.mark.spark
def test_nothing_of_the_subject_is_left_and_nothing_of_the_others_is_lost(spark: Any, tmp_path: Path) -> None:
    lake, (jones, _, _) = two_patients(spark, tmp_path)
    (jones / "notes-on-jones.dcm").write_text("no image")
    harness.run(spark, lake, [jones])
    late = phantoms.write_series(
        tmp_path / "in" / "smith" / "late",
        [6],
        PatientID="P2",
        StudyInstanceUID=phantoms.ROOT + "33",
        SeriesInstanceUID=phantoms.ROOT + "22",
        FrameOfReferenceUID=phantoms.ROOT + "44",
        SOPInstanceUID=("8.3",),
    )
    harness.run(spark, lake, [late])
    upkeep(spark, lake, cluster=True)
    by_count = {}
    for row in harness.rows(lake, "slices"):
        by_count.setdefault(row["subject_key"], []).append(row["image_id"])
    subject = next(key for key, images in by_count.items() if len(images) == 3 and harness.rows(lake, "labels")[0]["subject_key"] == key)
    feed(spark, lake, "lungs")
    pins.pin(Lake(spark, str(lake)), "run-1", {"slices": 1}, model="models:/lungs/1")
    said = words(lake, subject) | {"notes-on-jones", "seg.dcm"}
    runs = {row["run_id"] for row in harness.rows(lake, "slices") if row["subject_key"] == subject}
    before = others(lake, subject, said)
    assert len(holding(lake, said)) > 20

    planned = upkeep(spark, lake, forget=subject, dry_run=True)["forgotten"]
    assert planned["rows"]["slices"] == planned["rows"]["pixels"] == 3 and len(harness.rows(lake, "slices")) == 6
    lines: list[str] = []
    done = upkeep(spark, lake, lines, forget=subject)["forgotten"]
    assert holding(lake, said) == set()
    assert done["rows"]["slices"] == done["rows"]["pixels"] == 3 and done["rows"]["labels"] and done["rows"]["subjects"] == 1
    assert done["used_by"]["runs"] and runs <= set(done["used_by"]["runs"])
    assert done["used_by"]["feeds"] == ["feeds/lungs"]
    assert done["used_by"]["pins"] == ["run-1", "feed:lungs"] and done["used_by"]["models"] == ["models:/lungs/1"]
    assert any("notes-on-jones" in line for line in lines) and any("seg.dcm" in line for line in lines)
    assert not (lake / "_medspark" / "forget").exists() or not list((lake / "_medspark" / "forget").iterdir())

    assert harness.content(lake) == {table: rows for table, rows in others(lake, subject, said).items()}
    after = harness.content(lake)
    for table in after:
        if table not in ("rejected",):
            assert after[table] == before[table], table
    card = json.loads((lake / "feeds" / "lungs" / "card.json").read_text())
    assert json.loads(Lake(None, str(lake)).snapshot("feeds/lungs").metadata().configuration["medspark.card"]) == card  # type: ignore[arg-type]
    after_all = parse(json.dumps(card))
    (left,) = after_all.files
    kept = pq.ParquetFile(lake / "feeds" / "lungs" / left.path)
    assert kept.metadata.num_rows == left.rows == 3 and after_all.tables == {} and after_all.built_from and after_all.amended
    assert [kept.metadata.row_group(group).num_rows for group in range(kept.num_row_groups)] == list(left.row_groups)
    assert hashlib.sha256((lake / "feeds" / "lungs" / left.path).read_bytes()).hexdigest() == left.sha256
    assert after_all.parts["train"] == PartCounts(3, 3, 1, {"nodule": 3}, {"nodule": 0}, {"nodule": 3}, 12)
    assert all(1 < len(group) <= 3 for group in after_all.doubles)
    assert spark.read.format("delta").load(str(lake / "feeds" / "lungs")).count() == 3
    # The lake is sound, and goes on.
    assert upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"] == []
    assert {table: spark.read.format("delta").load(str(lake / table)).count() for table in ("slices", "pixels", "sources")} == {
        "slices": 3,
        "pixels": 3,
        "sources": len(after["sources"]),
    }
    upkeep(spark, lake, vacuum_hours=0)
    with pytest.raises(BadRequest, match="no such subject"):
        upkeep(spark, lake, forget=subject)
    summary = harness.run(spark, lake, [tmp_path / "in"])
    assert summary.written["slices"] == 3, "the originals bring the subject back: they are named for that reason"
    harness.keys_unique(lake)
    assert harness.rows(lake, "claims") == []


def trained(lake: Path, feed_name: str, version: int, model: str) -> str:
    """A run as training leaves it, in the lake and in its MLflow store, with a registered model; its id."""
    uri = runs.where(None, str(lake))
    card = parse((lake / "feeds" / feed_name / "card.json").read_text())
    run = runs.begin(uri, identity.identity("train_segmenter", card, version, config.Config(), (), seed=1, world=1), [], {})
    folder = checkpoint.run_folder(str(lake), run)
    checkpoint.put(folder, "run.json", json.dumps({"feed": f"{feed_name}@{version}", "run_id": run, "tracking_uri": None}).encode())
    with runs.running(runs.MlflowTracker(uri, run, machine=False)) as tracker:
        for name, under in (("epoch_0001.png", "pictures"), ("test-worst.png", "pictures/evaluation")):
            Image.new("RGB", (4, 4)).save(lake.parent / name)
            tracker.artifact(lake.parent / name, under)
        checkpoint.put(folder, "pictures/epoch_0001.png", (lake.parent / "epoch_0001.png").read_bytes())
        checkpoint.put(folder, "model/predictor.json", b"{}")
        tracker.text("{}", "evaluation/test.json")
    store = runs.client(uri)
    store.create_registered_model(model)
    store.create_model_version(model, source=f"{folder}/model", run_id=run)
    return run


def shown(lake: Path, run: str) -> tuple[int, int]:
    """(pictures of a run in the lake, in MLflow)."""
    tracked = [path for path in lake.glob(f"mlflow-artifacts/*/{run}/artifacts/pictures/**/*") if path.is_file()]
    return len(list((lake / "_medspark" / "runs" / run).glob("pictures/*"))), len(tracked)


def evaluated(spark: Any, lake: Path, run: str, model: str, feed_name: str, version: int, units: dict[str, str]) -> None:
    here = Lake(spark, str(lake))
    rows = Evaluations(here, run)
    said = {"model_uri": model, "feed": feed_name, "feed_version": version, "part": "train", "label": "nodule", "metric": "dice"}
    said |= {"value": 0.5, "low": None, "high": None, "n": 1, "within_subject": False, "evaluated_at": datetime.now(UTC)}
    rows.add([{**said, "unit": unit, "unit_id": name, "evaluation_id": f"{run}{unit}{name}"} for name, unit in units.items()])
    rows.add([{**said, "unit": "all", "unit_id": None, "evaluation_id": f"{run}all"}])
    rows.commit(model, feed_name, version, "train")
    evaluate_said.keep_pictures(here, run, Result(pictures={"worst.png": b"png"}))


@pytest.mark.spark
def test_what_has_learnt_from_the_subject_is_named_and_shows_it_no_more(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lake, _ = two_patients(spark, tmp_path)
    subject, other = subject_of(lake, 2), subject_of(lake, 3)
    said = words(lake, subject)
    mine = [row for row in harness.rows(lake, "slices") if row["subject_key"] == subject]
    kept = next(row for row in harness.rows(lake, "slices") if row["subject_key"] == other)
    said |= {row_id(row["image_id"]) for row in mine}
    both, without = feed(spark, lake, "both"), feed(spark, lake, "others", without=subject)
    on_both, on_others, measured = (
        trained(lake, name, version, f"model-{place}")
        for place, (name, version) in enumerate((("both", both), ("others", without), ("others", without)))
    )
    (name,) = page.experiments(runs.where(None, str(lake)))
    page.publish(runs.where(None, str(lake)), name)
    (html,) = lake.glob("mlflow-artifacts/comparison-pages/*/artifacts/*.html")
    assert html.read_text().count("<figure>") == 6
    bad = {row_id(mine[0]["image_id"]): "cannot be decoded", row_id(kept["image_id"]): "cannot be decoded"}
    checkpoint.put(checkpoint.run_folder(str(lake), on_both), "bad_rows/0.json", json.dumps(bad).encode())
    here = Lake(spark, str(lake))
    units = {
        row_id(mine[0]["image_id"]): "image",
        mine[1]["image_id"]: "image",
        mine[0]["series_id"]: "series",
        subject: "subject",
        kept["series_id"]: "series",
        other: "subject",
    }
    evaluated(spark, lake, "e-both", "models:/model-2/1", "both", both, units)
    evaluated(spark, lake, "e-others", "models:/model-1/1", "others", without, {other: "subject"})
    targets = {
        mine[0]["image_id"]: "image",
        mine[0]["series_id"]: "series",
        subject: "subject",
        other: "subject",
        kept["image_id"]: "image",
    }
    fixed = {"task": "classification", "label": "nodule", "probability": 0.5, "rank": 0, "predicted_at": datetime.now(UTC)}
    predictions = [
        {**fixed, "model_uri": "models:/model-1/1", "target": target, "target_id": name, "image_id": name if target == "image" else None}
        for name, target in targets.items()
    ]
    splits = [
        {"split_name": "s", "unit": unit, "unit_key": key, "part": "train", "seed": 0}
        for key, unit in ((subject, "subject"), (other, "subject"), (mine[0]["image_id"], "image"), (kept["image_id"], "image"))
    ]
    for table, rows in (("predictions", predictions), ("splits", splits)):
        here.ensure([table])
        file = here.write_file(table, [Rows.of(table, rows).to_arrow("run", "batch")], "part-0.parquet")
        assert file is not None
        here.transact(table, [file])
    age(lake, 100)
    upkeep(spark, lake, vacuum_hours=1)
    assert [shown(lake, run) for run in (on_both, on_others, measured)] == [(1, 2)] * 3, "a vacuum leaves runs alone"

    planned = upkeep(spark, lake, forget=subject, dry_run=True)["forgotten"]
    done = upkeep(spark, lake, forget=subject)["forgotten"]
    assert {table: done["rows"][table] for table in ("predictions", "evaluations", "splits")} == {
        "predictions": 3,
        "evaluations": 4,
        "splits": 2,
    }
    assert {row["target_id"] for row in harness.rows(lake, "predictions")} == {other, kept["image_id"]}
    assert {row["unit_id"] for row in harness.rows(lake, "evaluations")} == {None, other, kept["series_id"]}
    assert {row["unit_key"] for row in harness.rows(lake, "splits")} == {other, kept["image_id"]}
    used = done["used_by"]
    assert used["training"] == [on_both] and used["evaluations"] == ["e-both"]
    assert used["models"] == ["models:/model-0/1", "models:/model-1/1", "models:/model-2/1"], "trained on it; predicted it; measured on it"
    assert {name: planned["used_by"][name] for name in ("training", "evaluations", "models")} == {
        name: used[name] for name in ("training", "evaluations", "models")
    }
    # The run whose model was measured on the subject holds the evaluation's pictures in MLflow; its own training never saw it.
    assert [shown(lake, run) for run in (on_both, on_others, measured)] == [(0, 0), (1, 2), (1, 0)]
    assert done["pictures_removed"] == 1 + 1 + 2 + 2 and done["not_reached"] == []
    assert html.read_text().count("<figure>") == 2
    assert [path.name for path in (lake / "_medspark" / "runs").glob("evaluate-*")] == ["evaluate-e-others"]
    for run in (on_both, on_others, measured):
        assert (lake / "_medspark" / "runs" / run / "model" / "predictor.json").exists(), "models are named, not removed"
        assert list(lake.glob(f"mlflow-artifacts/*/{run}/artifacts/evaluation/test.json"))
    left = json.loads((lake / "_medspark" / "runs" / on_both / "bad_rows" / "0.json").read_text())
    assert left == {row_id(kept["image_id"]): "cannot be decoded"}
    assert holding(lake, said) == set()


@pytest.mark.spark
def test_a_run_at_work_on_the_subject_is_waited_for(spark: Any, tmp_path: Path) -> None:
    """And a store that is away is named, not waited for."""
    lake, _ = two_patients(spark, tmp_path)
    subject = subject_of(lake, 2)
    version = feed(spark, lake, "both")
    folder = checkpoint.run_folder(str(lake), "r1")
    away = "http://127.0.0.1:1"
    checkpoint.put(folder, "run.json", json.dumps({"feed": f"both@{version}", "run_id": "r1", "tracking_uri": away}).encode())
    checkpoint.put(folder, "pictures/epoch_0001.png", b"png")
    with subprocess.Popen(["sleep", "600"]) as driver:
        try:
            me = owner.current()
            checkpoint.put(folder, "owner", str(replace(me, pid=driver.pid, started=owner._started(driver.pid))).encode())
            with pytest.raises(BadRequest, match="run r1 is training"):
                upkeep(spark, lake, forget=subject)
        finally:
            driver.kill()
    assert len(harness.rows(lake, "slices")) == 5 and (lake / "_medspark" / "runs" / "r1" / "pictures" / "epoch_0001.png").exists()
    lines: list[str] = []
    done = upkeep(spark, lake, lines, forget=subject)["forgotten"]
    assert done["used_by"]["training"] == ["r1"] and done["not_reached"] == [away] and away in lines
    assert not (lake / "_medspark" / "runs" / "r1" / "pictures").exists() and len(harness.rows(lake, "slices")) == 3


@pytest.mark.spark
def test_a_photo_goes_with_what_was_drawn_on_it(spark: Any, tmp_path: Path) -> None:
    """By a mask, an outline, a table, a document of several photos, and in a zip; what names others' photos stays, and so does what waits."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("p1-a.png", "p1-b.png", "p2-a.png"):
        (folder / name).write_bytes(photos.png(photos.picture(seed=len(name) + ord(name[3]))))
    with zipfile.ZipFile(folder / "jones.zip", "w") as made:
        made.writestr("x/p1-z.png", photos.png(photos.picture(seed=20)))
        made.writestr("x/readme-p1.png", b"no picture")
    labels = tmp_path / "labels"
    labels.mkdir()
    drawn = (photos.picture()[..., 0] > 100).astype(np.uint8)
    for name in ("p1-a_mask.png", "p2-a_mask.png"):
        Image.fromarray(drawn).save(labels / name)
    square = {"type": "Polygon", "coordinates": [[[5, 5], [15, 5], [15, 10], [5, 10], [5, 5]]]}
    (labels / "p1").mkdir()
    (labels / "p1" / "notes-on-jones.json").write_text("{}")  # refused, in a folder in which all else is about him
    (labels / "p1" / "p1-b.geojson").write_text(json.dumps({"type": "Feature", "geometry": square, "properties": {}}))
    (labels / "both.csv").write_text("image,label,x,y,width,height\np1-a.png,box,1,2,3,4\np2-a.png,box,1,2,3,4\nx/p1-z.png,box,2,2,2,2\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.fromarray(drawn).save(elsewhere / "p1-a_mask.png")
    lake = tmp_path / "lake"
    harness.run(spark, lake, [folder], photos_kind(), subject_pattern="^(p[0-9])")
    harness.run(spark, lake, [labels], labels_kind("auto", None, None, explicit_dataset=False))
    harness.run(spark, lake, [elsewhere], labels_kind("auto", None, None, explicit_dataset=True), dataset="elsewhere")
    counts = {table: len(harness.rows(lake, table)) for table in ("photos", "labels", "regions", "planes")}
    assert counts == {"photos": 4, "labels": 6, "regions": 4, "planes": 3}
    by_name = {Path(row["uri"]).name: row["source_id"] for row in harness.rows(lake, "sources") if row["dataset"] == "test"}
    whose = {row["source_id"]: row["subject_key"] for row in harness.rows(lake, "photos")}
    jones = whose[by_name["p1-a.png"]]
    assert [key == jones for key in map(whose.get, map(by_name.get, ("p1-b.png", "p1-z.png", "p2-a.png")))] == [True, True, False]

    done = upkeep(spark, lake, forget=jones)["forgotten"]
    assert {table: done["rows"].get(table, 0) for table in ("photos", "pixels", "labels", "regions", "planes")} == {
        "photos": 3,
        "pixels": 3,
        "labels": 4,
        "regions": 3,
        "planes": 1,
    }
    left = {(row["dataset"], Path(row["uri"]).name) for row in harness.rows(lake, "sources") if row["job"] != "link_labels"}
    assert left == {("test", "p2-a.png"), ("test", "p2-a_mask.png"), ("test", "both.csv"), ("elsewhere", "p1-a_mask.png")}
    assert {row["subject_key"] for row in harness.rows(lake, "labels")} == {whose[by_name["p2-a.png"]]}
    assert [row["ref_dataset"] for row in harness.rows(lake, "planes")].count("elsewhere") == 1, "it waits for another data set's photo"
    assert holding(lake, {jones, "jones", *(by_name[name] for name in ("p1-a.png", "p1-b.png", "p1-z.png", "p1-a_mask.png"))}) == set()
    assert upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"] == []
    assert harness.run(spark, lake, [folder], photos_kind(), subject_pattern="^(p[0-9])").written["photos"] == 3
    assert harness.run(spark, lake, [labels], labels_kind("auto", None, None, explicit_dataset=False)).written["labels"] == 2


class Killed(BaseException):
    """In place of a signal: ends the run at a step, nothing after it happens in this process."""


@pytest.mark.spark
@pytest.mark.slow
def test_a_run_that_died_anywhere_is_completed(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies after the payload, after each table, before the past is cut, before the search: given again, it ends as an undisturbed one."""
    lake, _ = two_patients(spark, tmp_path)
    subject = harness.rows(lake, "labels")[0]["subject_key"]
    said = words(lake, subject) | {"seg.dcm"}
    kept = others(lake, subject, said)
    original, steps, last = Lake.transact, 0, 0

    def transact(self: Lake, *given: Any, **named: Any) -> Any:
        nonlocal steps
        version = original(self, *given, **named)
        if version is not None and given[0] != "claims":  # its own claim is not a step
            steps += 1
            if steps == last:
                raise Killed
        return version

    for last in (1, 2, 4, 8):  # noqa: B007 (read by `transact`)
        steps = 0
        monkeypatch.setattr(Lake, "transact", transact)
        with pytest.raises(Killed):
            upkeep(spark, lake, forget=subject)
        monkeypatch.setattr(Lake, "transact", original)
    monkeypatch.setattr(forget.proof, "hits", lambda *given: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        upkeep(spark, lake, forget=subject)
    monkeypatch.undo()
    done = upkeep(spark, lake, forget=subject)["forgotten"]
    assert done["images"] == 3, "what the first run had found is remembered, though the rows are gone"
    assert holding(lake, said) == set()
    assert {table: rows for table, rows in harness.content(lake).items() if rows} == {table: rows for table, rows in kept.items() if rows}
    assert upkeep(spark, lake, verify_share=1.0)["verified"]["damaged"] == []


@pytest.mark.spark
def test_refused_beside_others_and_for_nobody(spark: Any, tmp_path: Path) -> None:
    lake, _ = two_patients(spark, tmp_path)
    subject = harness.rows(lake, "labels")[0]["subject_key"]
    for wrong, match in (("JONES", "32 hexadecimal digits"), ("0" * 32, "no such subject")):
        with pytest.raises(BadRequest, match=match):
            upkeep(spark, lake, forget=wrong)
    batch = Batch(Lake(spark, str(lake)), "run", "explode_series", "x", 60.0)
    batch.claim(["somebody"], {})
    with pytest.raises(BadRequest, match="is open"):
        upkeep(spark, lake, forget=subject)
    batch.release()


@pytest.mark.spark
def test_what_the_crosswalk_keeps_is_named(spark: Any, tmp_path: Path) -> None:
    """Those of the subject alone; removed, the others' originals can still go back."""
    jones, _, smith = write_patients(tmp_path / "in")
    lake, kept = tmp_path / "lake", config.load(None, [f"deid.key_file={json.dumps(str(tmp_path / 'deid.key'))}", "deid.crosswalk=true"])
    harness.run(spark, lake, [jones, smith], settings=kept)
    walk = Crosswalk.beside(tmp_path / "deid.key", harness.KEY)
    series = {row["subject_key"]: row["series_instance_id"] for row in harness.rows(lake, "series")}
    assert all(walk.of(one).uids for one in series.values())
    subject = subject_of(lake, 3)
    lines: list[str] = []
    assert upkeep(spark, lake, lines, forget=subject)["forgotten"]["crosswalk_files"] == 1
    (path,) = [Path(line) for line in lines if ".crosswalk/" in line]
    path.unlink()
    assert {key: bool(walk.of(one).uids) for key, one in series.items()} == {key: key != subject for key in series}


@pytest.mark.spark
def test_what_is_shared_stays(spark: Any, tmp_path: Path) -> None:
    """One file of another patient in the folder, one annotation of both: neither ledger row goes with the first patient."""
    lake, (jones, _, smith) = two_patients(spark, tmp_path)
    stray = phantoms.write_series(tmp_path / "more", [0], PatientID="P9", SeriesInstanceUID=phantoms.ROOT + "91", SOPInstanceUID=("9.9",))
    next(stray.iterdir()).rename(jones / "zz-other.dcm")
    (jones / "broken.dcm").write_bytes(b"")
    harness.run(spark, lake, [jones, smith])
    subject = harness.rows(lake, "labels")[0]["subject_key"]
    upkeep(spark, lake, forget=subject)
    left = {Path(row["uri"]).name for row in harness.rows(lake, "sources")}
    assert {"zz-other.dcm", "broken.dcm"} <= left, "in a folder of several patients nothing is taken for one's own"
    assert len(harness.rows(lake, "slices")) == 3


def test_a_feeds_file_keeps_its_compression(tmp_path: Path) -> None:
    rows = pa.table({"image_id": ["a", "b", "c"], "subject_key": ["s", "t", "s"], "bytes": [b"1" * 100, b"2" * 100, b"3" * 100]})
    pq.write_table(
        rows, tmp_path / "f.parquet", compression={"image_id": "zstd", "subject_key": "snappy", "bytes": "none"}, row_group_size=2
    )
    here = Lake(None, str(tmp_path))  # type: ignore[arg-type]
    file = pq.ParquetFile(tmp_path / "f.parquet")
    kept = [feeds.kept_rows(file.read_row_group(group, columns=["subject_key"]), {"subject_key": pa.array(["s"])}) for group in range(2)]
    made = feeds.copy_file(here, "g.parquet", "g.parquet", file, kept)
    after = pq.ParquetFile(tmp_path / "g.parquet")
    assert made.rows == 1 and after.read().to_pylist() == [rows.to_pylist()[1]]
    group = after.metadata.row_group(0)
    assert [group.column(place).compression for place in range(3)] == ["ZSTD", "SNAPPY", "UNCOMPRESSED"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x", "S"]),
        pa.array([["x"], ["y", "S"]]),
        pa.array([[("k", "v")], [("k", "S")]], pa.map_(pa.string(), pa.string())),
        pa.array([[("k", "v")], [("S", "v")]], pa.map_(pa.string(), pa.string())),
        pa.array([{"a": "x", "b": 1}, {"a": "S", "b": 2}]),
        pa.array([[{"a": ["x"]}], [{"a": ["y", "S"]}]]),
        pa.array(["x", "y" * 100 + '"S"']),
        pa.array(["x", "S"]).dictionary_encode(),
    ],
    ids=["plain", "list", "map value", "map key", "struct", "deep", "within a long text", "dictionary"],
)
def test_the_search_finds_a_trace_wherever_a_column_can_hold_it(tmp_path: Path, column: pa.Array) -> None:
    word = "0123456789abcdef" * 2
    path = tmp_path / "f.parquet"
    seeker = Seeker(str(tmp_path), frozenset({word}), (word,))
    for said in (word, "f" * 32):
        values = json.loads(json.dumps(column.to_pylist()).replace("S", said))
        typed = [[tuple(pair) for pair in row] for row in values] if pa.types.is_map(column.type) else values
        kind = pa.string() if pa.types.is_dictionary(column.type) else column.type
        pq.write_table(pa.table({"n": [1, 2], "c": pa.array(typed, kind)}), path)
        hits = list(seeker([(str(path), 1)], lambda source, what="": None, 0))
        assert [hit.what for hit in hits] == (["c"] if said == word else []), said


def test_the_search_reads_texts_and_takes_no_part_for_the_whole(tmp_path: Path) -> None:
    seeker = Seeker(str(tmp_path), frozenset({"2.25.12345", "file:///data/jones/a.dcm"}), ())
    for text, found in (
        ('{"max":"2.25.12345"}', True),
        ('{"max":"2.25.123456"}', False),
        ('{"uri":"file:///data/jones/a.dcm"}', True),
        ('{"uri":"file:///data/jones/a.dcm.bak"}', False),
    ):
        path = tmp_path / "00000000000000000007.json"
        path.write_text(text)
        assert bool(list(seeker([(str(path), 1)], lambda source, what="": None, 0))) is found, text
