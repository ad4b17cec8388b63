"""Which lesions were found: objects matched one to one, whatever their size.

A lesion is an object of the truth (its ``instance_key``), or a connected component where the truth has no objects. A component of the
prediction finds it if their IoU reaches `FOUND_IOU`; each finds one lesion at most, the best pairs first (nnDetection's rule and threshold for volumes,
doi 10.1007/978-3-030-87240-3_51).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medspark.scores.surface import bounds

FOUND_IOU = 0.1  # small lesions in thick slices seldom reach 0.5; 0.1 asks for a real overlap and not for one shared pixel


@dataclass(frozen=True)
class Detection:
    """found : lesions of the truth with a match; missed : those without; false : components of the prediction without."""

    found: int = 0
    missed: int = 0
    false: int = 0

    @classmethod
    def of(cls, sums: np.ndarray) -> Detection:
        """From (found, missed, false) as they are summed over units."""
        found, missed, false = (int(number) for number in sums)
        return cls(found, missed, false)

    def __add__(self, other: Detection) -> Detection:
        return Detection(self.found + other.found, self.missed + other.missed, self.false + other.false)

    @property
    def sensitivity(self) -> float | None:
        """Found / lesions; None where there are none."""
        lesions = self.found + self.missed
        return self.found / lesions if lesions else None

    @property
    def precision(self) -> float | None:
        """Found / components predicted; None where nothing was predicted."""
        predicted = self.found + self.false
        return self.found / predicted if predicted else None

    @property
    def f1(self) -> float | None:
        """None where there are neither lesions nor predictions."""
        whole = 2 * self.found + self.missed + self.false
        return 2 * self.found / whole if whole else None


def components(mask: np.ndarray) -> np.ndarray:
    """int32 array of the mask's shape: 0 outside, 1.. in its 8-connected (26-connected in volumes) components."""
    from scipy import ndimage

    return np.asarray(ndimage.label(mask, np.ones((3,) * mask.ndim, bool))[0], np.int32)


def detect(lesions: np.ndarray, predicted: np.ndarray, least_iou: float = FOUND_IOU) -> Detection:
    """Lesions found, missed and falsely seen.

    lesions : int array, 0 outside, else the number of the lesion (`components`, or one number an ``instance_key``; numbers may have gaps)
    predicted : bool array of the same shape
    """
    there = bounds((lesions > 0) | predicted)
    if there is None:
        return Detection()
    lesions, predicted = lesions[there], predicted[there]
    seen = components(predicted)
    inside = (lesions > 0) | predicted  # only these pixels are looked at: most of a volume is neither
    of_pixel, seen_pixel = lesions[inside], seen[inside]
    ids = np.unique(of_pixel[of_pixel > 0])
    truth = np.where(of_pixel > 0, np.searchsorted(ids, of_pixel) + 1, 0)  # numbers without gaps
    n_truth, n_seen = len(ids), int(seen_pixel.max())
    if not n_truth or not n_seen:
        return Detection(0, n_truth, n_seen)
    both = (truth > 0) & (seen_pixel > 0)
    keys, shared = np.unique(truth[both].astype(np.int64) * (n_seen + 1) + seen_pixel[both], return_counts=True)
    of_truth, of_seen = keys // (n_seen + 1), keys % (n_seen + 1)
    union = np.bincount(truth, minlength=n_truth + 1)[of_truth] + np.bincount(seen_pixel, minlength=n_seen + 1)[of_seen] - shared
    overlap = shared / union
    free_truth, free_seen = np.ones(n_truth + 1, bool), np.ones(n_seen + 1, bool)
    found = 0
    for place in np.argsort(-overlap, kind="stable"):
        one, other = of_truth[place], of_seen[place]
        if overlap[place] >= least_iou and free_truth[one] and free_seen[other]:
            free_truth[one] = free_seen[other] = False
            found += 1
    return Detection(found, n_truth - found, n_seen - found)
