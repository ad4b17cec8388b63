"""What an evaluation tells people and MLflow; the rows are in the lake by then."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from medspark.lake.files import PRIVATE
from medspark.lake.store import Lake
from medspark.track.tracker import Tracker
from medspark.train.evaluation import Result

HEADLINE = (
    "dice",
    "series_dice",
    "hd95_mm",
    "series_hd95_mm",
    "lesion_f1_pooled",
    "auc",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "f1",
    "ece",
    "brier",
)
"""Measures that the summary line names; all of them are rows."""


def headline(result: Result) -> dict[str, dict[str, Any]]:
    """``metric`` or ``metric/label`` -> value, low, high, for the summary line."""
    return {
        row["metric"] + (f"/{row['label']}" if row["label"] else ""): {name: row[name] for name in ("value", "low", "high")}
        for row in result.overall
        if row["metric"] in HEADLINE and row["value"] is not None
    }


def tell(result: Result, tracker: Tracker, within_subject: bool, part: str) -> None:
    """Measures, intervals, the table and the pictures to the run that trained the model."""
    told: dict[str, float] = {}
    for row in result.overall:
        name = f"{part}/{row['metric']}" + (f"/{row['label']}" if row["label"] else "")
        for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            if row[key] is not None:
                told[name + suffix] = row[key]
    tracker.metrics(told, 0)
    if within_subject:
        tracker.tags({"WITHIN-SUBJECT": "training and test share subjects"})
    tracker.text(result.said(within_subject) + "\n", f"evaluation/{part}.txt")
    plain = [{**row, "evaluated_at": row["evaluated_at"].isoformat()} for row in result.overall]
    tracker.text(json.dumps(plain, indent=1) + "\n", f"evaluation/{part}.json")
    with tempfile.TemporaryDirectory(prefix="medspark-") as place:
        for name, data in result.pictures.items():
            file = Path(place) / f"{part}-{name}"
            file.write_bytes(data)
            tracker.artifact(file, "pictures/evaluation")


def keep_pictures(lake: Lake, run_id: str, result: Result) -> str:
    """The pictures beside the lake's runs; returns their folder, relative to the lake."""
    folder = f"{PRIVATE}/runs/evaluate-{run_id}"
    lake.filesystem.create_dir(lake.folder(folder), recursive=True)
    for name, data in result.pictures.items():
        with lake.filesystem.open_output_stream(lake.folder(folder, name)) as stream:
            stream.write(data)
    return folder
