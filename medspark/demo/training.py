"""From the demo's tables to a trained network and back: a feed by SQL, a small U-Net on two ranks, its predictions as rows, its scores.

Each step is a job as a user starts it, and the command is shown. One series is all that the demo has, so training and test share a subject: slices
that stand apart, marked WITHIN-SUBJECT everywhere.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medspark.lake.open import OpenLake, open_lake

ROOT = Path(__file__).resolve().parents[2]
FEED = "demo"
TRAIN_SHARE, VAL_SHARE = 0.55, 0.15  # of the slices from the first on; what is left after two gaps is the test part
GAP = 2  # slices between two parts: with one context slice on either side no pixel is in two parts
LEAST = 12  # slices with labels, so that each part has some
SETTINGS = ("train.width=8", "train.depth=3", "train.learning_rate=0.003", "train.norm=batch", "train.pictures=4", "augment.flip_cols=0.5")
EPOCHS, BATCH, RANKS = 8, 4, 2
DONE = "training.json"  # in the demo's folder: a second run over the same feed trains nothing
CHOICE = f"""
SELECT s.series_id, s.modality, l.label, max(s.k) + 1 AS slices, count(DISTINCT s.image_id) AS labelled
FROM labels l JOIN slices s ON s.image_id = l.image_id
WHERE l.mask IS NOT NULL AND l.source <> 'model' AND s.k IS NOT NULL
GROUP BY s.series_id, s.modality, l.label HAVING count(DISTINCT s.image_id) >= {LEAST}
ORDER BY labelled DESC, l.label LIMIT 1
"""


class Failed(Exception):
    """A job of the demo did not end well; the sentence is what it said."""


@dataclass(frozen=True)
class Subject:
    """What is learnt: one label on one series."""

    series_id: str
    modality: str
    label: str
    slices: int

    def query(self) -> str:
        """The cohort with its parts, by the slice's place."""
        train = round(self.slices * TRAIN_SHARE)
        val = train + GAP
        test = val + round(self.slices * VAL_SHARE) + GAP
        return (
            f"SELECT image_id, CASE WHEN k < {train} THEN 'train' WHEN k < {val} THEN NULL WHEN k < {test - GAP} THEN 'val' "
            f"WHEN k < {test} THEN NULL ELSE 'test' END AS part FROM slices WHERE series_id = '{self.series_id}'"
        )


def choose(lake: OpenLake) -> Subject | None:
    """The series and the label that are drawn on most slices; None where no series has enough."""
    found = lake.sql(CHOICE).to_pylist()
    return Subject(found[0]["series_id"], found[0]["modality"], found[0]["label"], found[0]["slices"]) if found else None


@dataclass(frozen=True)
class Jobs:
    """Starts jobs as programs. told : gets each command as one can type it;  log : file for what they say on standard error"""

    lake: Path
    log: Path
    told: Callable[[str], None]

    def run(self, job: str, *given: str) -> dict[str, Any]:
        """The job's summary line; raises `Failed` with its own sentence."""
        submit = Path(sys.executable).parent / "spark-submit"
        command = ["jobs/" + job + ".py", "--lake", str(self.lake), *given]
        shown = [f'"{word}"' if "'" in word and not set(word) & set('"$`\\') else shlex.quote(word) for word in command]
        self.told(".venv/bin/spark-submit " + " ".join(shown))
        # spark-submit gives what a program says on standard error to its own standard output: both go to the log.
        options = ["--lake", os.path.abspath(self.lake), *given]
        with self.log.open("a", encoding="utf-8") as log:
            done = subprocess.run(
                [str(submit), "--driver-memory", "2g", str(ROOT / command[0]), *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd=ROOT,
            )
            log.write(done.stdout)
        lines = done.stdout.strip().splitlines()
        if done.returncode != 0 or not lines:
            said = [line for line in lines if line.startswith(f"{job}:")]
            raise Failed(said[-1] if said else f"{job} ended with status {done.returncode}; see {self.log}")
        return dict(json.loads(lines[-1]))


def feed(jobs: Jobs, subject: Subject) -> dict[str, Any]:
    options = ("--labels", subject.label, "--within-subject", "--unlabelled", "negative", "--context", "1", "--spacing-mm", "1.5")
    return jobs.run("build_feed", "--name", FEED, "--query", subject.query(), *options, "--crop", "96", "--stride", "48", "--world", str(RANKS))


def train(jobs: Jobs) -> dict[str, Any]:
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    return jobs.run(
        "train_segmenter", "--feed", FEED, "--num-proc", str(RANKS), "--epochs", str(EPOCHS), "--batch-size", str(BATCH), *options
    )


def evaluate(jobs: Jobs, model: str) -> dict[str, Any]:
    return jobs.run("evaluate", "--model", model, "--feed", FEED, "--part", "test", "--replicates", "200")


def predict(jobs: Jobs, model: str) -> dict[str, Any]:
    return jobs.run("predict", "--model", model, "--feed", FEED, "--part", "test")


def done_before(folder: Path, version: int) -> dict[str, Any] | None:
    """What an earlier run of the demo trained on this version of the feed."""
    path = folder / DONE
    said = json.loads(path.read_text()) if path.exists() else {}
    return said if said.get("feed_version") == version else None


def keep(folder: Path, said: dict[str, Any]) -> None:
    (folder / DONE).write_text(json.dumps(said, sort_keys=True))


def told(trained: dict[str, Any]) -> str:
    """The run in one line."""
    measures = trained["measures"]
    dice = f", Dice on unseen validation slices {measures['val_dice']:.2f}" if "val_dice" in measures else ""
    return f"{trained['updates']} updates, {trained['images_per_s']:.0f} crops/s{dice}; run {trained['run_id']} in MLflow"


def compared(lake: Path, subject: Subject) -> list[str]:
    """The predicted slices beside their truth: one SQL query over rows of both kinds."""
    rows = (
        open_lake(str(lake))
        .sql(f"""
        SELECT s.k, t.area_px AS truth_px, m.area_px AS model_px, mask_dice(t.mask, m.mask, m.rows, m.cols) AS dice
        FROM labels m JOIN slices s ON s.image_id = m.image_id
        LEFT JOIN labels t ON t.image_id = m.image_id AND t.label = m.label AND t.source <> 'model'
        WHERE m.source = 'model' AND m.label = '{subject.label.replace("'", "''")}' AND s.series_id = '{subject.series_id}'
        ORDER BY s.k""")
        .to_pylist()
    )
    lines = [f"{'k':>4}  {'truth px':>9}  {'model px':>9}  {'Dice':>5}   rows of labels with source = 'model' joined to those of the annotation"]
    for row in rows:
        dice = "" if row["dice"] is None else f"{row['dice']:.3f}"
        lines.append(f"{row['k']:>4}  {row['truth_px'] or 0:>9,}  {row['model_px']:>9,}  {dice:>5}")
    return lines


def keep_progress(lake: Path, run: str, pictures: Path) -> Path | None:
    """The run's animated picture (the same unseen slices after every epoch) beside the demo's others."""
    source = lake / "_medspark" / "runs" / run / "pictures" / "progress.gif"
    if not source.exists():
        return None
    pictures.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, pictures / "training.gif"))
