"""Losses against plain numpy; what is not known takes no part; weights by the card's counts."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from medspark.config import Train
from medspark.errors import BadRequest
from medspark.feed.card import PartCounts
from medspark.keys import rng
from medspark.train import losses
from tests.train.memory_reader import card


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


@pytest.fixture
def masks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logits for two labels, masks, known) of three samples; nothing of the last is known."""
    random = rng(1, "losses")
    known = (random.random((3, 6, 5, 1)) < 0.6).astype(np.uint8)
    known[2] = 0
    return random.normal(0, 2, (3, 6, 5, 2)).astype(np.float32), (random.random((3, 6, 5, 2)) < 0.4).astype(np.uint8), known


def by_hand(name: str, logits: np.ndarray, masks: np.ndarray, known: np.ndarray, train: Train) -> list[float]:
    p, found = sigmoid(logits.astype(np.float64)), []
    for i in range(len(logits)):
        seen = known[i, ..., 0] > 0
        if not seen.any():
            found.append(0.0)
            continue
        q, t = p[i][seen], masks[i][seen].astype(float)
        entropy = -(t * np.log(q) + (1 - t) * np.log(1 - q))
        if name == "focal":
            entropy = entropy * np.abs(t - q) ** train.focal_gamma
        alpha, beta = (train.tversky_alpha, train.tversky_beta) if name == "tversky" else (0.5, 0.5)
        both, false, missed = (q * t).sum(0), (q * (1 - t)).sum(0), ((1 - q) * t).sum(0)
        overlap = 1 - ((both + 0.5) / (both + alpha * false + beta * missed + 0.5)).mean()
        found.append({"bce": entropy.mean(), "focal": entropy.mean(), "tversky": overlap, "bce_dice": entropy.mean() + overlap}[name])
    return found


@pytest.mark.parametrize("name", ["bce", "bce_dice", "focal", "tversky"])
def test_losses_of_masks_are_those_by_hand(name: str, masks: tuple[np.ndarray, ...]) -> None:
    train = Train(loss=name)  # type: ignore[arg-type]
    loss = losses.of(card(labels=("a", "b")), train)
    found = loss.per_sample(masks[0], masks[1], masks[2], None).numpy()
    np.testing.assert_allclose(found, by_hand(name, *masks, train), rtol=1e-4)


def test_exclusive_masks_have_a_background(masks: tuple[np.ndarray, ...]) -> None:
    random = rng(2, "exclusive")
    logits = random.normal(0, 2, (3, 6, 5, 3)).astype(np.float32)
    place = random.integers(0, 3, (3, 6, 5))
    truth = np.stack([place == 1, place == 2], -1).astype(np.uint8)
    loss = losses.of(card(labels=("a", "b"), exclusive=True), Train(loss="bce"))
    found = loss.per_sample(logits, truth, masks[2], None).numpy()
    p = softmax(logits.astype(np.float64))
    for i in range(3):
        seen = masks[2][i, ..., 0] > 0
        wanted = -np.log(np.take_along_axis(p[i], place[i][..., None], -1)[..., 0][seen]).mean() if seen.any() else 0.0
        assert found[i] == pytest.approx(wanted, rel=1e-4)


def test_unknown_targets_take_no_part() -> None:
    loss = losses.of(card("classification", ("a", "b")), Train())
    logits = np.array([[2.0, -1.0], [0.5, 3.0], [1.0, 1.0]], np.float32)
    targets = np.array([[1.0, np.nan], [np.nan, np.nan], [0.0, 1.0]], np.float32)
    p = sigmoid(logits.astype(np.float64))
    wanted = [-np.log(p[0, 0]), 0.0, (-np.log(1 - p[2, 0]) - np.log(p[2, 1])) / 2]
    np.testing.assert_allclose(loss.per_sample(logits, None, None, targets).numpy(), wanted, rtol=1e-5)


def test_one_class_of_several() -> None:
    loss = losses.of(card("classification", ("a", "b", "c"), exclusive=True), Train())
    logits = np.array([[2.0, -1.0, 0.0], [0.5, 3.0, 1.0]], np.float32)
    targets = np.array([[0, 1, 0], [np.nan, 1, 0]], np.float32)
    found = loss.per_sample(logits, None, None, targets).numpy()
    assert found[0] == pytest.approx(-np.log(softmax(logits.astype(np.float64))[0, 1]), rel=1e-5) and found[1] == 0.0


def test_a_loss_that_does_not_go_with_classes_is_refused() -> None:
    with pytest.raises(BadRequest, match="needs masks"):
        losses.of(card("classification", ("a",)), Train(loss="tversky"))
    with pytest.raises(BadRequest, match="one class"):
        losses.of(card("classification", ("a",), exclusive=True), Train())


def test_balanced_weights_give_both_sides_of_a_label_the_same_share() -> None:
    counts = PartCounts(100, 100, 100, positives={"a": 10, "b": 0}, negatives={"a": 90, "b": 100})
    of = card("classification", ("a", "b"), parts={"train": counts})
    positive, negative = losses.class_weights(of, "balanced")
    assert positive[0] * 10 == pytest.approx(negative[0] * 90) == pytest.approx(50)
    assert positive[1] == 1.0, "what never occurs weighs nothing in particular"
    masked = card(labels=("a",), exclusive=True, parts={"train": PartCounts(9, 9, 9, positive_px={"a": 10}, known_px=10_000)})
    weights, _ = losses.class_weights(masked, "balanced")
    assert weights == (10_000 / (2 * 9_990), losses.WEIGHT_MAX)
    assert losses.class_weights(of, "none") == ((1.0, 1.0), (1.0, 1.0))


def test_weights_act_on_positives(masks: tuple[np.ndarray, ...]) -> None:
    plain = losses.of(card(labels=("a", "b")), Train(loss="bce"))
    heavy = replace(plain, positive=(3.0, 3.0))
    ones = np.ones_like(masks[1])
    once, thrice = (loss.per_sample(masks[0], ones, masks[2], None).numpy() for loss in (plain, heavy))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def test_outputs_begin_at_how_common_a_label_is() -> None:
    rare = card(labels=("a",), parts={"train": PartCounts(9, 9, 9, positive_px={"a": 1_000}, known_px=10_000)})
    (logit,) = losses.prior(rare, losses.of(rare, Train()))
    assert sigmoid(np.array(logit)) == pytest.approx(0.1)
    (even,) = losses.prior(rare, losses.of(rare, Train(class_weights="balanced")))
    assert even == pytest.approx(0.0), "both sides weigh the same"
    exclusive = card(labels=("a", "b"), exclusive=True, parts={"train": PartCounts(9, 9, 9, positive_px={"a": 2_000}, known_px=10_000)})
    p = softmax(np.array(losses.prior(exclusive, losses.of(exclusive, Train()))))
    assert p[:2] == pytest.approx([0.8, 0.2], abs=0.01) and p[2] == pytest.approx(losses.RAREST, rel=0.05)
    assert losses.prior(card("classification", ("a",)), losses.of(card("classification", ("a",)), Train())) == (0.0,)
