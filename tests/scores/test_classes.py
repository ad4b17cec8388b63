"""Curves, areas, calibration, thresholds and intervals, against scikit-learn and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from medspark.scores import classes, intervals
from medspark.scores.calibration import BINS, Reliability, reliability
from medspark.scores.ranking import Ranked, auc, average_precision, precision_recall_curve, roc_curve
from medspark.scores.stream import Called, Means, Totals
from medspark.scores.threshold import choose, present

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, n: int = 60, ties: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(truth, probability, weights) with both classes."""
    random = np.random.default_rng(seed)
    truth = random.random(n) < 0.4
    truth[:2] = [True, False]
    probability = np.clip(random.normal(0.4 + 0.2 * truth, 0.3), 0, 1)
    return truth, np.round(probability, 1) if ties else probability, random.integers(0, 4, n) + np.r_[1, 1, np.zeros(n - 2)]


@given(seeds, st.booleans())
@settings(max_examples=80, deadline=None)
def test_areas_and_curves_agree_with_scikit_learn(seed: int, ties: bool) -> None:
    truth, probability, weights = drawn(seed, ties=ties)
    ranked = Ranked.of(truth, probability)
    assert auc(ranked) == pytest.approx(oracle.roc_auc_score(truth, probability))
    assert auc(ranked, weights) == pytest.approx(oracle.roc_auc_score(truth, probability, sample_weight=weights))
    assert average_precision(ranked) == pytest.approx(oracle.average_precision_score(truth, probability))
    assert average_precision(ranked, weights) == pytest.approx(oracle.average_precision_score(truth, probability, sample_weight=weights))
    fpr, tpr, _ = oracle.roc_curve(truth, probability, drop_intermediate=False)
    np.testing.assert_allclose(roc_curve(ranked), (fpr, tpr))
    precision, recall, _ = oracle.precision_recall_curve(truth, probability)
    np.testing.assert_allclose(precision_recall_curve(ranked), (recall[-2::-1], precision[-2::-1]))


def test_one_class_has_no_areas() -> None:
    ranked = Ranked.of(np.ones(3, bool), np.array([0.1, 0.2, 0.3]))
    assert auc(ranked) is None and average_precision(ranked) == 1.0
    assert average_precision(Ranked.of(np.zeros(3, bool), np.zeros(3))) is None
    assert auc(Ranked.of(np.zeros(0, bool), np.zeros(0))) is None
    with pytest.raises(ValueError, match="NaN"):
        Ranked.of(np.ones(2, bool), np.array([0.5, np.nan]))


@given(seeds, st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_calibration_in_pieces_equals_its_definition(seed: int, cut: int) -> None:
    truth, probability, _ = drawn(seed)
    found = Reliability()
    found.add(truth[:cut], probability[:cut])
    found.add(truth[cut:], probability[cut:])
    assert found.brier == pytest.approx(oracle.brier_score_loss(truth, probability))
    error = 0.0
    for place in range(BINS):
        inside = (probability > place / BINS) & (probability <= (place + 1) / BINS) | ((place == 0) & (probability == 0))
        if inside.any():
            error += inside.mean() * abs(truth[inside].mean() - probability[inside].mean())
    assert found.ece == pytest.approx(error)


def test_calibration_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="outside"):
        reliability(np.array([True]), np.array([1.5]))
    with pytest.raises(ValueError, match="outside"):
        reliability(np.array([True]), np.array([np.nan]))
    assert Reliability().ece is None and Reliability().brier is None


@given(seeds, st.sampled_from(["youden", "f1"]))
@settings(max_examples=30, deadline=None)
def test_no_other_cut_is_better_than_the_chosen_one(seed: int, rule: str) -> None:
    truth, probability, _ = drawn(seed)

    def gain(threshold: float) -> float:
        called = probability >= threshold
        if rule == "f1":
            return 2 * (truth & called).sum() / (truth.sum() + called.sum())
        return called[truth].mean() - called[~truth].mean()

    cuts = np.unique(probability)
    positive, negative = ([np.sum(side & (probability == cut)) for cut in cuts] for side in (truth, ~truth))
    chosen = gain(choose(np.array(positive), np.array(negative), cuts, rule))  # type: ignore[arg-type]
    assert all(chosen >= gain(cut) - 1e-12 for cut in np.linspace(0, 1, 13))


def test_nothing_to_choose_from_is_half() -> None:
    assert (
        choose(np.ones(3), np.zeros(3), np.array([0.1, 0.2, 0.3]), "f1") == 0.5 == choose(np.zeros(0), np.zeros(0), np.zeros(0), "youden")
    )


def test_what_counts_as_present() -> None:
    p = np.array([[0.5, 0.2], [0.3, 0.3], [0.1, 0.6], [0.25, 0.25]])
    assert present(p, [0.5, 0.25], False, background=True).tolist() == [[True, False], [False, True], [False, True], [False, True]]
    assert present(p, [0.9, 0.9], True, background=True).tolist() == [[True, False], [False, False], [False, True], [False, False]]
    assert present(p, [0.9, 0.9], True, background=False).tolist() == [[True, False], [True, False], [False, True], [True, False]]


def called(truth: np.ndarray, probability: np.ndarray, subject: np.ndarray) -> Called:
    found = Called()
    for row in zip(truth, probability, subject, strict=True):
        found.add(bool(row[0]), float(row[1]), int(row[2]))
    return found


def test_scores_of_a_label_agree_with_scikit_learn_and_repeat() -> None:
    truth, probability, _ = drawn(5, 300, ties=False)
    probability = probability.astype(np.float32)
    kept = called(truth, probability, np.arange(300) // 6)
    found = classes.score_label(kept, 0.45, 7, "nodule", replicates=60)
    yes = probability >= 0.45
    expected = {
        "auc": oracle.roc_auc_score(truth, probability),
        "average_precision": oracle.average_precision_score(truth, probability),
        "brier": oracle.brier_score_loss(truth, probability),
        "accuracy": oracle.accuracy_score(truth, yes),
        "balanced_accuracy": oracle.balanced_accuracy_score(truth, yes),
        "f1": oracle.f1_score(truth, yes),
        "sensitivity": oracle.recall_score(truth, yes),
        "precision": oracle.precision_score(truth, yes),
    }
    for metric, value in expected.items():
        assert found[metric].value == pytest.approx(value, rel=1e-6), metric
    for estimate in found.values():
        assert estimate.n == 50 and estimate.low is not None and estimate.low <= estimate.value <= estimate.high
    assert classes.score_label(kept, 0.45, 7, "nodule", replicates=60) == found


def test_exclusive_classes() -> None:
    random = np.random.default_rng(2)
    truth = random.integers(0, 3, 90)
    predicted = np.where(random.random(90) < 0.7, truth, random.integers(0, 3, 90))
    found, matrix = classes.score_classes(truth, predicted, np.arange(90) // 3, ("a", "b", "c"), 1, replicates=50)
    assert found["accuracy"].value == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert found["balanced_accuracy"].value == pytest.approx(oracle.balanced_accuracy_score(truth, predicted))
    assert found["macro_f1"].low < found["macro_f1"].value < found["macro_f1"].high and matrix.sum() == 90


def test_fewer_than_five_subjects_have_no_interval() -> None:
    few = intervals.of_mean(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4), 0, "dice")
    assert (few.value, few.low, few.high, few.n) == (2.5, None, None, 4) and few.said() == "2.500 (no interval: 4 subjects)"
    five = intervals.of_mean(np.arange(5.0), np.ones(5), 0, "dice")
    assert five.low is not None and five.low < 2.0 < five.high and "to" in five.said()
    assert intervals.of_mean(np.zeros(0), np.zeros(0), 0).said() == "not defined"


def test_the_interval_counts_subjects_and_not_images() -> None:
    """Twenty subjects whose images are all alike: a hundred images each must not narrow the interval."""
    means = np.random.default_rng(4).normal(0.7, 0.1, 20)
    one, hundred = (intervals.of_mean(means * n, np.full(20, float(n)), 3, "dice") for n in (1, 100))
    assert (one.low, one.high) == pytest.approx((hundred.low, hundred.high))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(9)
    held = 0
    for trial in range(200):
        found = intervals.of_mean(random.normal(0.5, 0.2, 40), np.ones(40), trial, "dice", replicates=200)
        held += found.low <= 0.5 <= found.high
    assert 0.87 <= held / 200 <= 0.99


def test_means_do_not_depend_on_the_order_of_reading() -> None:
    rows = [(f"s{number % 7}", 0.1 * number) for number in range(30)]
    one, other = Means(), Means()
    for subject, value in rows:
        one.add(subject, "lung", {"dice": value, "hd95_mm": None})
    for subject, value in reversed(rows):
        other.add(subject, "lung", {"dice": value})
    first, second = (kept.over_all("lung", "dice", 11, replicates=50) for kept in (one, other))
    assert (first.value, first.low, first.high) == pytest.approx((second.value, second.low, second.high)) and first.n == 7
    assert one.of_subjects("lung", "dice")["s0"] == (pytest.approx(np.mean([row[1] for row in rows if row[0] == "s0"])), 5)
    assert one.over_all("lung", "hd95_mm", 11).value is None


def test_sums_of_subjects_say_what_all_pixels_say() -> None:
    truth, probability, _ = drawn(8, 120)
    totals = Totals()
    for number in range(120):
        totals.add(f"s{number % 6}", "lung", reliability(truth[number : number + 1], probability[number : number + 1]).sums())
    whole = reliability(truth, probability)
    found = totals.over_all("lung", "ece", lambda sums: Reliability.of(sums).ece, 1, replicates=50)
    assert found.value == pytest.approx(whole.ece) and found.low < found.high and found.n == 6
    assert totals.over_all("heart", "ece", lambda sums: 1.0, 1).value is None
    np.testing.assert_allclose(sum(totals.of_subjects("lung").values()), whole.sums())
