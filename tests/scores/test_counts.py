"""Overlap and classification measures against scikit-learn, and the rule for empty masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as oracle

from medspark.scores import confusion as matrices
from medspark.scores import counts as measure
from medspark.scores.counts import GOOD_IOU, Counts, count

pairs = hnp.arrays(bool, st.tuples(st.just(3), st.integers(1, 40)))


@given(pairs)
@settings(max_examples=150, deadline=None)
def test_agrees_with_scikit_learn(triple: np.ndarray) -> None:
    truth, predicted, known = triple
    assume(known.any())
    found = count(truth, predicted, known)
    t, p = truth[known], predicted[known]
    assert (found.tn, found.fp, found.fn, found.tp) == tuple(oracle.confusion_matrix(t, p, labels=[False, True]).ravel())
    assert measure.accuracy(found) == pytest.approx(oracle.accuracy_score(t, p))
    if t.any() or p.any():
        assert measure.dice(found) == measure.f1(found) == pytest.approx(oracle.f1_score(t, p))
        assert measure.iou(found) == pytest.approx(oracle.jaccard_score(t, p))
    if t.any():
        assert measure.sensitivity(found) == pytest.approx(oracle.recall_score(t, p))
    if p.any():
        assert measure.precision(found) == pytest.approx(oracle.precision_score(t, p, zero_division=0))
    if t.any() and not t.all():
        assert measure.balanced_accuracy(found) == pytest.approx(oracle.balanced_accuracy_score(t, p))


@given(pairs, st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_counts_of_crops_add_up(triple: np.ndarray, cut: int) -> None:
    truth, predicted, known = triple
    assert count(truth[:cut], predicted[:cut], known[:cut]) + count(truth[cut:], predicted[cut:], known[cut:]) == count(*triple)


def test_empty_masks() -> None:
    nothing, both = Counts(tn=10), Counts(fp=2, tn=8)
    for of in (measure.dice, measure.iou, measure.good_iou, measure.volume_error, measure.sensitivity):
        assert of(nothing) is None
    assert measure.dice(both) == measure.iou(both) == measure.good_iou(both) == 0.0
    assert measure.dice(Counts(fn=3, tn=7)) == 0.0 and measure.volume_error(Counts(fn=3, tn=7)) == -1.0
    assert measure.false_alarm(nothing) == 0.0 and measure.false_alarm(both) == 1.0
    assert measure.false_alarm(Counts(tp=1)) is None and measure.false_alarm(Counts()) is None


def test_an_overlap_below_the_threshold_counts_as_none() -> None:
    assert measure.good_iou(Counts(tp=64, fp=36)) == 0.0
    assert measure.good_iou(Counts(tp=65, fp=35)) == pytest.approx(GOOD_IOU)


def test_volume_error_is_signed() -> None:
    assert measure.volume_error(Counts(tp=10, fp=5)) == 0.5 and measure.volume_error(Counts(tp=5, fn=5)) == -0.5


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        count(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_confusion_matrix_agrees_with_scikit_learn(n: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = random.integers(0, classes, n), random.integers(0, classes, n)
    found = matrices.confusion(truth, predicted, classes)
    assert (found == oracle.confusion_matrix(truth, predicted, labels=range(classes))).all()
    assert matrices.accuracy(found) == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert matrices.macro_f1(found) == pytest.approx(oracle.f1_score(truth, predicted, average="macro"))
    if len(set(truth)) > 1:
        present = np.isin(predicted, truth)  # scikit-learn warns of predicted classes that do not occur in the truth
        if present.all():
            assert matrices.balanced_accuracy(found) == pytest.approx(oracle.balanced_accuracy_score(truth, predicted))
    assert sum(counts.tp for counts in matrices.one_against_rest(found)) == np.trace(found)
