"""Objects matched one to one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from medspark.scores.lesions import Detection, components, detect


def drawn(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    for row0, col0, row1, col1 in boxes:
        mask[row0:row1, col0:col1] = True
    return mask


def test_found_missed_and_false() -> None:
    truth = components(drawn((0, 0, 10, 10), (20, 20, 24, 24), (0, 30, 4, 34)))
    predicted = drawn((1, 1, 11, 11), (20, 22, 24, 26), (30, 0, 35, 5))
    found = detect(truth, predicted)
    assert found == Detection(found=2, missed=1, false=1)
    assert found.sensitivity == found.precision == 2 / 3 == found.f1


def test_one_shared_pixel_is_no_find() -> None:
    assert detect(components(drawn((0, 0, 10, 10))), drawn((9, 9, 19, 19))) == Detection(0, 1, 1)


def test_touching_lesions_are_told_apart_by_their_keys() -> None:
    keys = np.zeros((40, 40), np.int32)
    keys[0:10, 0:10], keys[0:10, 10:20] = 7, 3
    whole = drawn((0, 0, 10, 20))
    assert detect(keys, whole) == Detection(found=1, missed=1, false=0)  # one component can find one lesion only
    assert detect(components(keys > 0), whole) == Detection(1, 0, 0)
    assert detect(keys + 1, whole) == Detection(1, 2, 0)  # an image without any 0 holds lesions only


def test_nothing_there() -> None:
    none = np.zeros((5, 5), np.int32)
    assert detect(none, none > 0) == Detection() and Detection().f1 is None and Detection().sensitivity is None
    assert detect(none, ~(none > 0)) == Detection(false=1)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_no_matching_finds_more_than_the_best_one_and_a_half_of_it_is_always_found(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = components(random.random((12, 12)) < 0.3), random.random((12, 12)) < 0.35
    seen = components(predicted)
    pairs = np.array(
        [
            [((truth == one) & (seen == other)).sum() / ((truth == one) | (seen == other)).sum() for other in range(1, seen.max() + 1)]
            for one in range(1, truth.max() + 1)
        ]
    )
    found = detect(truth, predicted)
    assert (found.found + found.missed, found.found + found.false) == (truth.max(), seen.max())
    if pairs.size:
        rows, cols = linear_sum_assignment(-(pairs >= 0.1).astype(float))
        best = int((pairs[rows, cols] >= 0.1).sum())
        assert best / 2 <= found.found <= best
