"""The small parts of a run: measures, schedule, checkpoints, batches fetched ahead, pictures, predictors."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from medspark.config import Train
from medspark.errors import BadRequest
from medspark.keys import rng
from medspark.pixels.picture import COLOURS, rgb
from medspark.scores.threshold import choose
from medspark.train import checkpoint, measures, network, pictures, predictor, schedule
from medspark.train.feeding import Waited, ahead
from medspark.train.heart import Heart, Listener
from medspark.train.step import fill
from tests.train.memory_reader import TINY, batch_of, card, phantom

# --- measures


def counted(p: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return measures.confusion(p > 0.5, truth, seen).numpy(), measures.histogram(p.astype(np.float32), truth, seen).numpy()


def test_counts_and_curves_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score, roc_auc_score

    random = rng(4, "measures")
    truth = random.random((400, 2)) < 0.3
    p = np.clip(0.5 + 0.2 * (truth - 0.5) + random.normal(0, 0.15, truth.shape), 0.001, 0.999)
    seen = (random.random(truth.shape) < 0.9).astype(np.uint8)
    counts, scores = counted(p, truth, seen)
    assert counts.sum() == seen.sum() == scores.sum()
    for label in range(2):
        known = seen[:, label] > 0
        assert measures.dice(counts)[label] == pytest.approx(f1_score(truth[known, label], p[known, label] > 0.5))
        assert measures.auc(scores)[label] == pytest.approx(roc_auc_score(truth[known, label], p[known, label]), abs=2e-3)
    right = ((p > 0.5) == truth) & (seen > 0)
    assert measures.accuracy(counts, False) == pytest.approx((right.sum(axis=0) / seen.sum(axis=0)).mean())


@pytest.mark.parametrize("rule", ["f1", "youden"])
def test_the_threshold_is_the_best_one_of_the_part(rule: str) -> None:
    random = rng(5, "thresholds")
    truth = random.random((2000, 1)) < 0.2
    p = np.clip(0.3 + 0.2 * truth + random.normal(0, 0.08, truth.shape), 0.001, 0.999)
    _, scores = counted(p, truth, np.ones_like(truth, np.uint8))
    chosen = choose(scores[0, 1], scores[0, 0], measures.edges(), rule)  # type: ignore[arg-type]

    def quality(at: float) -> float:
        said = p >= at
        if rule == "f1":
            return float(2 * (said & truth).sum() / (said.sum() + truth.sum()))
        return float(said[truth].mean() - said[~truth].mean())

    assert quality(chosen) >= max(quality(at) for at in np.linspace(0.05, 0.95, 400)) - 0.003


def test_a_part_that_lacks_one_side_leaves_one_half() -> None:
    truth = np.ones((5, 1), bool)
    _, scores = counted(np.full((5, 1), 0.9), truth, np.ones_like(truth, np.uint8))
    assert choose(scores[0, 1], scores[0, 0], measures.edges(), "youden") == 0.5 and np.isnan(measures.auc(scores)[0])


# --- schedule


@settings(max_examples=60)
@given(st.sampled_from(["constant", "cosine", "plateau"]), st.integers(1, 8), st.integers(1, 40), st.integers(1, 64), st.floats(0, 3))
def test_rates_rise_to_the_peak_and_never_leave_their_bounds(shape: str, epochs: int, updates: int, world: int, warm: float) -> None:
    train = Train(schedule=shape, warmup_epochs=warm, learning_rate=0.1, scaling="linear")  # type: ignore[arg-type]
    rate = schedule.rate(train, epochs, updates, world)
    values = [rate.at(update) for update in range(epochs * updates + 1)]
    assert rate.peak == pytest.approx(0.1 * world)
    assert all(0 < value <= rate.peak * (1 + 1e-9) for value in values)
    warmed = values[: rate.warmup]
    assert warmed == sorted(warmed)
    after = values[rate.warmup :]
    assert after == sorted(after, reverse=True)


def test_a_plateau_halves_the_rate_and_training_stops() -> None:
    watch = schedule.Watch(higher=True)
    seen = [watch.see(value, epoch, patience=2) for epoch, value in enumerate([0.5, 0.6, 0.6, 0.6, 0.59, 0.6])]
    assert seen == [True, True, False, False, False, False] and watch.best_epoch == 1
    assert watch.halvings == 2 and watch.over(4) and not watch.over(5) and not watch.over(0)
    rate = schedule.Rate(1.0, 0.0, 0.01, 0, 100, "plateau")
    assert rate.at(50, watch.halvings) == 0.25 and rate.at(50, 30) == 0.01


# --- checkpoints


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    kept = checkpoint.Checkpoints(f"file://{tmp_path}/run")
    assert kept.newest() is None and kept.steps() == []
    arrays = {"00000": np.arange(6.0).reshape(2, 3), "00001": np.array(3)}
    for step in (5, 10, 20):
        kept.save(step, arrays, {"epoch": step})
    found = kept.newest()
    assert found is not None and found.step == 20 and found.state == {"epoch": 20}
    np.testing.assert_array_equal(found.arrays["00000"], arrays["00000"])
    data = tmp_path / "run" / "checkpoints" / "20" / checkpoint.ARRAYS
    data.write_bytes(data.read_bytes()[:-7])  # a damaged one
    (tmp_path / "run" / "checkpoints" / "30").mkdir()  # one that was killed in the making
    (tmp_path / "run" / "checkpoints" / "30" / checkpoint.ARRAYS).write_bytes(b"half")
    found = kept.newest()
    assert found is not None and found.step == 10
    kept.prune(2, best=5)
    assert kept.steps() == [5, 20, 30]


# --- batches


def test_batches_come_in_order_and_errors_rise_where_they_are_used() -> None:
    def numbers(broken: bool) -> Iterator[int]:
        yield from range(5)
        if broken:
            raise ValueError("row 5")

    assert list(ahead(numbers(False), Waited())) == [0, 1, 2, 3, 4]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="row 5"):
        list(ahead(numbers(True), Waited()))  # type: ignore[arg-type]


def test_nobody_fetches_for_a_loop_that_has_ended() -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            number += 1
            yield number

    batches = ahead(endless(), Waited())  # type: ignore[arg-type]
    assert next(batches) == 1
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_a_short_batch_is_filled_with_what_takes_no_part(tmp_path: Path) -> None:
    made = phantom(tmp_path)
    batch = batch_of([(row, made.truth[row]) for row in made.order["val"][:3]])
    filled, n = fill(batch, 8)
    assert n == 3 and len(filled) == 8 and filled.images.shape == (8, 24, 24, 3)
    assert filled.known is not None and not filled.known[3:].any() and not filled.weights[3:].any()
    assert np.isnan(filled.targets[3:]).all() and fill(filled, 8)[0] is filled


# --- hearts


def test_the_rank_that_hangs_is_told_from_those_that_wait(tmp_path: Path) -> None:
    folder = str(tmp_path)
    first, second = (Heart(folder, "a", rank, stall_s=100.0) for rank in range(2))
    for heart, phase in ((first, "training on batch 3"), (second, "reading batch 3")):
        heart.beat(phase)
        heart.since -= 101.0 if phase.startswith("reading") else 110.0
        heart._say()
    listener = Listener(folder, "a", 2, 100.0)
    assert listener.verdict().startswith("rank 1 made no progress for 101 s (reading batch 3")
    second.beat("reading batch 4")
    first.beat("training on batch 4")
    first._say()
    second._say()
    assert listener.verdict() == ""
    first.since -= 110.0
    first._say()
    assert listener.verdict() == "", "it may wait for one that is not found silent yet"
    first.since -= 100.0
    first._say()
    assert listener.verdict().startswith("rank 0")
    second.failed(KeyError("what"))
    first.failed(BadRequest("too little memory"))
    assert [said["rank"] for said in listener.failures()] == [0, 1], "the one that says why comes first"
    listener.forget()
    assert listener.failures() == []


def test_a_rank_that_is_silent_altogether_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Heart(str(tmp_path), "a", 0, stall_s=5.0)._say()
    listener = Listener(str(tmp_path), "a", 1, 5.0)
    assert listener.verdict() == ""
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert "silent altogether" in listener.verdict()


# --- pictures


def test_pictures_show_each_label_before_what_is_empty(tmp_path: Path) -> None:
    made = phantom(tmp_path, labels=("disc", "square"), parts={"train": 8, "val": 24})
    batch = batch_of([(row, made.truth[row]) for row in made.order["val"]])
    chosen = pictures.choose([batch], 4)
    assert chosen is not None and len(chosen.batch) == 4 and chosen.batch.masks is not None
    assert (chosen.batch.masks.reshape(4, -1, 2).sum(axis=1) > 0).any(axis=0).all()
    assert pictures.choose([], 4) is None


@pytest.mark.parametrize("kind", ["tiles", "slices", "volumes"])
def test_a_sheet_marks_truth_and_prediction(tmp_path: Path, kind: str) -> None:
    made = phantom(tmp_path, kind=kind, unknown=False)
    batch = batch_of([(row, made.truth[row]) for row in made.order["val"]])
    chosen = pictures.choose([batch], 2)
    assert chosen is not None and chosen.batch.masks is not None
    perfect = pictures.sheet(chosen, chosen.batch.masks.astype(np.float32), made.card, "epoch 1")
    nothing = pictures.sheet(chosen, np.zeros_like(chosen.batch.masks, np.float32), made.card, "epoch 1")
    first = np.array(rgb(COLOURS[0]))

    def marked(sheet: object, column: int) -> int:
        wide = pictures.PANEL_PX + pictures.GAP_PX
        panel = np.asarray(sheet)[pictures.TITLE_PX :, pictures.GAP_PX + column * wide : (column + 1) * wide]
        return int((panel == first).all(axis=-1).sum())

    assert marked(perfect, 0) == marked(nothing, 2) == 0
    assert marked(perfect, 1) == marked(perfect, 2) == marked(nothing, 1) > 100
    moving = pictures.animation([pictures.png(nothing), pictures.png(perfect)])
    assert moving[:6] == b"GIF89a"


# --- predictors


def test_a_predictor_is_saved_loaded_and_pickled_as_it_was(tmp_path: Path) -> None:
    of = card(labels=("a", "b"), shape=(16, 16, 1))
    made = network.of(of, TINY)
    weights = network.build(made).get_weights()
    first = predictor.of(made, weights, of, {"a": 0.4, "b": 0.5}, {"run": "r"})
    files = predictor.save(tmp_path / "model", first)
    assert sorted(file.name for file in files) == ["predictor.json", "weights.npz"]
    images = rng(6, "images").integers(0, 255, (3, 16, 16, 1)).astype(np.uint8)
    wanted = first.probabilities(images)
    for other in (predictor.load(tmp_path / "model"), pickle.loads(pickle.dumps(first))):
        assert other.image == of.image and other.thresholds == {"a": 0.4, "b": 0.5} and other.said == {"run": "r"}
        np.testing.assert_allclose(other.probabilities(images), wanted, atol=1e-6)
    assert first.probabilities(np.zeros((2, 20, 9, 1), np.uint8)).shape == (2, 20, 9, 2), "images of another size"
    assert first.probabilities(images[:0]).shape == (0, 16, 16, 2)
    with pytest.raises(BadRequest, match="shape"):
        first.probabilities(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(BadRequest, match="no model"):
        predictor.load(tmp_path)


def test_many_images_pass_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    of = card(shape=(8, 8, 1))
    made = network.of(of, replace(TINY, width=2))
    whole = predictor.of(made, network.build(made).get_weights(), of, {}, {})
    images = rng(8, "images").integers(0, 255, (5, 8, 8, 1)).astype(np.uint8)
    wanted = whole.probabilities(images)
    monkeypatch.setattr(predictor, "PIXELS_AT_ONCE", 2 * 64)
    np.testing.assert_allclose(whole.probabilities(images), wanted, atol=1e-6)
