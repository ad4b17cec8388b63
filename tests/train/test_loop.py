"""One run in one process: it learns, draws, stops, goes on after a kill, and names what it cannot use."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from medspark.config import Train
from medspark.track.tracker import Remembered
from medspark.train import checkpoint, loop, predictor
from medspark.train.feeding import Unusable
from medspark.train.world import Solo
from tests.phantoms.feeds import Made
from tests.train.memory_reader import TINY, MemoryReaders, batch_of, phantom


class Killed(BaseException):
    """What a SIGKILL leaves: nothing after it is run."""


def plan(made: Made, folder: Path, train: Train = TINY, epochs: int = 3, **said: object) -> loop.Plan:
    given = {"run": "one", "feed": made.name, "version": 0, "batch_size": 8, "seed": 1, **said}
    return loop.Plan(folder=str(folder / "run"), card=made.card, epochs=epochs, train=train, **given)  # type: ignore[arg-type]


def test_a_segmenter_learns_draws_and_leaves_a_model(tmp_path: Path) -> None:
    made, tracker = phantom(tmp_path), Remembered()
    done = loop.run(plan(made, tmp_path, epochs=6), MemoryReaders(made), Solo(), tracker)
    assert done.updates == 24 and done.epochs == 6
    first, last = done.history[0], done.history[-1]
    assert last["val_loss"] < 0.8 * first["val_loss"] and last["val_dice"] > 0.6, done.history
    assert tracker.said["network.weights"] > 1000 and tracker.said["feed"] == "phantom"
    assert [step for step, _ in tracker.curves["epoch/val_dice"]] == list(range(6))
    assert [step for step, _ in tracker.curves["loss"]] == list(range(2, 25, 2))
    names = checkpoint.names(str(tmp_path / "run"), "pictures")
    assert names == [*(f"epoch_{number:04d}.png" for number in range(1, 7)), "progress.gif"]
    from PIL import Image

    with Image.open(tmp_path / "run" / "pictures" / "progress.gif") as moving:
        assert moving.n_frames == 6 and min(moving.size) > 300  # type: ignore[attr-defined]
    loaded = predictor.load(tmp_path / "run" / "model")
    assert loaded.labels == ("disc",) and loaded.thresholds == done.thresholds and 0 < loaded.thresholds["disc"] < 1
    assert loaded.said["measures"]["val_dice"] == pytest.approx(done.history[done.best_epoch]["val_dice"], abs=1e-4)
    rows = batch_of([(row, made.truth[row]) for row in made.order["val"]])
    p = loaded.probabilities(rows.images)
    assert p.shape == (8, 24, 24, 1) and p.dtype == np.float32
    assert rows.masks is not None and rows.known is not None
    seen = rows.known > 0
    both = ((p > 0.5) & (rows.masks > 0) & seen).sum()
    dice = 2 * both / (((p > 0.5) & seen).sum() + ((rows.masks > 0) & seen).sum())
    assert dice == pytest.approx(done.history[done.best_epoch]["val_dice"], abs=1e-3), "the model is that of the best epoch"
    assert len(checkpoint.Checkpoints(str(tmp_path / "run")).steps()) <= TINY.keep + 1


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Killed within an epoch, after a checkpoint within it: the same steps, the same weights."""
    made = phantom(tmp_path)
    settings = replace(TINY, checkpoint_updates=3, accumulate=1, dropout=0.0)
    whole = loop.run(plan(made, tmp_path / "whole", settings, 2), MemoryReaders(made), Solo(), Remembered())

    def kill(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 3):
            raise Killed

    with pytest.raises(Killed):
        loop.run(plan(made, tmp_path / "broken", settings, 2), MemoryReaders(made, kill), Solo(), Remembered())
    seen: list[tuple[int, int]] = []
    again = plan(made, tmp_path / "broken", settings, 2, resume=True)
    done = loop.run(again, MemoryReaders(made, lambda epoch, step: seen.append((epoch, step))), Solo(), Remembered())
    assert done.resumed_at == 6 and seen == [(1, 2), (1, 3)], "the next unseen batch"
    assert done.updates == whole.updates == 8
    assert [sorted(row) for row in done.history] == [sorted(row) for row in whole.history]
    for name in ("loss", "val_loss", "val_dice"):
        assert done.history[1][name] == pytest.approx(whole.history[1][name], rel=1e-4)
    models = [predictor.load(tmp_path / name / "run" / "model").weights for name in ("whole", "broken")]
    for one, other in zip(*models, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    with pytest.raises(loop.Mismatch):
        loop.run(replace(again, seed=2), MemoryReaders(made), Solo(), Remembered())


def test_training_stops_without_progress_and_keeps_the_best(tmp_path: Path) -> None:
    made = phantom(tmp_path)
    settings = replace(TINY, learning_rate=1e-9, stop_after=2, keep=1, pictures=0)  # nothing can be learnt at this rate
    done = loop.run(plan(made, tmp_path, settings, 9), MemoryReaders(made), Solo(), Remembered())
    assert done.epochs == 3 and done.best_epoch == 0 and "no progress" in done.stopped
    assert checkpoint.Checkpoints(str(tmp_path / "run")).steps() == [4, 12], "the best and the newest"


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    made = phantom(tmp_path)
    made = replace(made, truth={name: replace(sample, weight=3e38) for name, sample in made.truth.items()})  # finite; their sum is not
    settings = replace(TINY, pictures=0)
    with pytest.raises(loop.Diverged, match="update"):
        loop.run(plan(made, tmp_path, settings), MemoryReaders(made), Solo(), Remembered())
    assert checkpoint.Checkpoints(str(tmp_path / "run")).newest() is None, "no checkpoint of what is no number"


@pytest.mark.parametrize("rule", ["stop", "skip"])
def test_a_bad_row_is_named(tmp_path: Path, rule: str) -> None:
    made = phantom(tmp_path, kind="slices")
    row = made.order["train"][3]
    spoilt = made.truth[row].image.astype(np.float32)
    spoilt[2, 3] = np.nan
    truth = {name: replace(sample, image=sample.image.astype(np.float32)) for name, sample in made.truth.items()}
    broken = replace(made, truth={**truth, row: replace(truth[row], image=spoilt)})
    given = plan(broken, tmp_path, replace(TINY, bad_rows=rule, pictures=0), 1)  # type: ignore[arg-type]
    if rule == "stop":
        with pytest.raises(Unusable, match=row):
            loop.run(given, MemoryReaders(broken), Solo(), Remembered())
        return
    done = loop.run(given, MemoryReaders(broken), Solo(), Remembered())
    assert list(done.bad_rows) == [row] and np.isfinite(done.history[0]["loss"])


@pytest.mark.parametrize(("labels", "exclusive"), [(("disc", "square"), False), (("disc", "square"), True)])
def test_a_classifier_of_several_labels(tmp_path: Path, labels: tuple[str, ...], exclusive: bool) -> None:
    made = phantom(tmp_path, task="classification", labels=labels, exclusive=exclusive, unknown=False)
    settings = replace(TINY, class_weights="balanced", norm="batch", optimizer="adamw", accumulate=3)
    tracker = Remembered()
    done = loop.run(plan(made, tmp_path, settings, 2), MemoryReaders(made), Solo(), tracker)
    assert done.updates == 4, "four batches make two updates, of three and of one"
    assert set(done.thresholds) == set(labels)
    assert {"val_loss", "val_auc", "val_accuracy", "accuracy"} <= set(done.history[0])
    loaded = predictor.load(tmp_path / "run" / "model")
    rows = batch_of([(row, made.truth[row]) for row in made.order["val"]])
    p = loaded.probabilities(rows.images)
    assert p.shape == (8, 2)
    if exclusive:
        np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-5)
    assert (tmp_path / "run" / "pictures" / "epoch_0001.png").read_bytes()[:4] == b"\x89PNG"


def test_a_feed_without_validation_keeps_its_last_epoch(tmp_path: Path) -> None:
    made = phantom(tmp_path)
    done = loop.run(plan(made, tmp_path, TINY, 2, val_part=None), MemoryReaders(made), Solo(), Remembered())
    assert done.best_epoch == 1 and done.thresholds == {"disc": 0.5}
    assert predictor.load(tmp_path / "run" / "model").said["thresholds_from"] == "none: one half"
