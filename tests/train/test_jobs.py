"""The training jobs as programs: what they refuse before Spark, a run in MLflow, a driver that is killed and a run that goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medspark.feed.card import PartFile
from medspark.train import checkpoint
from tests.phantoms.feeds import Made, commit
from tests.train.memory_reader import phantom
from tests.train.test_launch import gone

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    f"train.{setting}"
    for setting in ("width=4", "depth=2", "blocks=1", "learning_rate=0.01", "pictures=2", "report_updates=2", "threads=1", "augment=false")
]


def command(job: str, lake: Path, *options: object, submit: bool = False) -> list[str]:
    program = [str(Path(sys.executable).parent / "spark-submit"), "--driver-memory", "1g"] if submit else [sys.executable]
    settings = [word for setting in SMALL for word in ("--set", setting)]
    return [*program, str(ROOT / "jobs" / f"{job}.py"), "--lake", str(lake), *settings, *map(str, options)]


def run(job: str, lake: Path, *options: object, submit: bool = False, status: int = 0) -> tuple[dict[str, Any], str]:
    """(summary, standard error) of a job that ends with ``status``."""
    done = subprocess.run(command(job, lake, *options, submit=submit), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == status, done.stderr[-6000:]
    return (json.loads(done.stdout.strip().splitlines()[-1]) if status == 0 else {}), done.stderr


def torn(made: Made, within_subject: bool) -> None:
    """Makes the validation part a copy of the training part: its subjects are in both."""
    folder = Path(made.lake) / "feeds" / made.name
    files: list[PartFile] = []
    for number, file in enumerate(made.card.files_of("train")):
        shutil.copy(folder / file.path, folder / f"copy-{number}.parquet")
        files += [file, replace(file, path=f"copy-{number}.parquet", part="val")]
    shutil.rmtree(folder / "_delta_log")
    for file in made.card.files_of("val"):
        (folder / file.path).unlink()
    parts = {**made.card.parts, "val": made.card.parts["train"]}
    commit(folder, replace(made.card, files=tuple(files), parts=parts, within_subject=within_subject))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--feed", "nothing"], "build it with build_feed"),
        (["--feed", "phantom", "--num-proc", "0"], "--num-proc: expected 1 or more"),
        (["--feed", "phantom", "--val-part", "dev"], "no part dev"),
        (["--feed", "phantom", "--set", "train.width=0"], "expected 1 to 1024"),
        (["--resume", "gone"], "no such run"),
        ([], "name the feed"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    phantom(tmp_path)
    said = in_process("train_segmenter", tmp_path, options, capsys)
    assert sentence in said and said.count("\n") == 1


def in_process(job: str, lake: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error of a job that is refused (status 2), run here: nothing of Spark may be started."""
    from tests.test_jobs_help import load

    module, entry = load(job), load("_entry")
    known = module.options()
    arguments = known.parse_args(["--lake", str(lake), *options])
    with pytest.raises(SystemExit) as ended:
        entry.main(job, lambda: module.body(job, "segmentation" if job == "train_segmenter" else "classification", arguments, known))
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_a_run_whose_driver_lives_is_not_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medspark.lake.owner import current

    folder = checkpoint.run_folder(str(tmp_path), "busy")
    checkpoint.put(folder, "run.json", b"{}")
    checkpoint.put(folder, "owner", str(current()).encode())
    assert "still runs" in in_process("train_segmenter", tmp_path, ["--resume", "busy"], capsys)


def test_a_feed_with_a_leak_is_refused_with_its_subjects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = phantom(tmp_path)
    torn(made, within_subject=False)
    said = in_process("train_segmenter", tmp_path, ["--feed", "phantom"], capsys)
    assert "subjects in two parts" in said and made.name in said
    said = in_process("train_classifier", tmp_path, ["--feed", "phantom"], capsys)
    assert "use train_segmenter" in said


@pytest.mark.spark
@pytest.mark.slow
def test_a_classifier_in_mlflow_marked_within_subject(tmp_path: Path) -> None:
    made = phantom(tmp_path, task="classification", labels=("disc", "square"), unknown=False)
    torn(made, within_subject=True)
    said, text = run("train_classifier", tmp_path, "--feed", "phantom@0", "--epochs", 2, "--batch-size", 8, "--seed", 3)
    assert said["updates"] == 8 and said["epochs"] == 2 and said["within_subject"] == "WITHIN-SUBJECT"
    assert set(said["thresholds"]) == {"disc", "square"} and said["written"] == {"kpi": 2}
    assert said["registered"].startswith("models:/")
    from mlflow.tracking import MlflowClient

    store = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = store.get_run(said["run_id"])
    assert found.info.status == "FINISHED" and found.data.tags["within_subject"] == "WITHIN-SUBJECT"
    assert found.data.params["epochs"] == "2" and found.data.params["train.width"] == "4"
    assert [point.step for point in store.get_metric_history(said["run_id"], "epoch/val_loss")] == [0, 1]
    assert [item.path for item in store.list_artifacts(said["run_id"], "pictures")] == [
        *(f"pictures/epoch_000{number}.png" for number in (1, 2)),
        "pictures/progress.gif",
    ]
    _, text = run("train_classifier", tmp_path, "--resume", said["run_id"], "--seed", 4, status=2)
    assert "the run has --seed 3, not 4" in text


@pytest.mark.spark
@pytest.mark.slow
def test_a_killed_driver_leaves_no_rank_and_its_run_goes_on(tmp_path: Path) -> None:
    phantom(tmp_path)
    options = ["--feed", "phantom", "--num-proc", 2, "--epochs", 12, "--batch-size", 4, "--tracking-uri", "none"]
    options += ["--set", "train.checkpoint_updates=1", "--set", "train.stall_s=60"]
    words = command("train_segmenter", tmp_path, *options, submit=True)
    with open(tmp_path / "driver.log", "wb") as log:
        driver = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        runs = tmp_path / "_medspark" / "runs"
        until = time.monotonic() + 150
        while not list(runs.glob("*/checkpoints/*/state.json")):
            assert driver.poll() is None and time.monotonic() < until, (tmp_path / "driver.log").read_text()[-6000:]
            time.sleep(0.1)
        os.killpg(driver.pid, signal.SIGKILL)  # spark-submit, its JVM and the driver
        driver.wait()
    (folder,) = runs.iterdir()
    ranks = [json.loads(path.read_text())["pid"] for path in folder.glob("ranks/*/*.json")]
    assert len(ranks) == 2
    assert all(map(gone, ranks)), "ranks outlive their driver"
    assert checkpoint.Checkpoints(str(folder)).newest() is not None
    said, _ = run("train_segmenter", tmp_path, "--resume", folder.name, submit=True)
    assert 0 < said["resumed_at"] < 48 and said["updates"] == 48 and said["epochs"] == 12
