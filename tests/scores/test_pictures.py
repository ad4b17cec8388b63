"""Pictures are drawn whatever the numbers are, and never touch pyplot's global state."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from medspark.scores import pictures
from medspark.scores.calibration import Reliability, reliability
from medspark.scores.ranking import Ranked


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as shown:
        assert len(np.unique(np.asarray(shown.convert("L")))) > 10
        return shown.size


def test_each_picture() -> None:
    random = np.random.default_rng(1)
    truth = random.random(400) < 0.3
    probability = np.clip(random.normal(0.35 + 0.3 * truth, 0.2), 0, 1)
    curves = {"nodule": (Ranked.of(truth, probability), 0.5), "never": (Ranked.of(truth & False, probability), 1.1)}
    assert size(pictures.roc_and_pr(curves, "Nodules", within_subject=True))[0] > 900
    size(pictures.reliability_diagram({"nodule": reliability(truth, probability), "none": Reliability()}, "Nodules"))
    size(pictures.confusion_picture(np.array([[30.0, 5.0], [2.0, 40.0]]), ("normal", "pneumonia"), "Chest"))
    size(pictures.values_by_subject({"lung": [0.9, 0.95, 0.4], "heart": []}, "Dice", "Lungs"))


def test_a_long_curve_keeps_its_ends() -> None:
    x, y = pictures._thinned(np.arange(10_000.0), np.arange(10_000.0))
    assert len(x) <= pictures.MOST_POINTS and (x[0], y[-1]) == (0, 9999)
