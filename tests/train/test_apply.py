"""A model where images are answers as it did on the training side: same recipe, same windows, back at the stored size."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from medspark.errors import BadRequest
from medspark.feed import sample, stitch
from medspark.feed.sample import Recipe
from medspark.keys import rng
from medspark.train import apply
from tests.train import tiny

HU = Recipe(kind="context", mode="window", window=(40.0, 400.0), context=1)
ROW = {"rescale_slope": 1.0, "rescale_intercept": -1024.0, "pixel_spacing_mm": [0.5, 0.5]}


def ct(seed: int, rows: int = 24, cols: int = 24) -> list[np.ndarray]:
    """Three stored slices."""
    return [rng(seed, "ct", place).integers(900, 1300, (rows, cols)).astype(np.int16) for place in range(3)]


def test_equals_the_training_time_prediction(tmp_path: Path) -> None:
    model = tiny.made(tmp_path, tiny.card(HU, (24, 24)))
    applied = apply.applied(tmp_path, "models:/tiny/1")
    stacks = [(ct(seed), [ROW] * 3) for seed in range(5)]
    feed_values = np.stack([HU.values(*stack) for stack in stacks])  # what build_feed stores
    np.testing.assert_allclose(applied.probabilities(stacks), model.probabilities(feed_values), atol=1e-6)
    assert (applied.context, applied.labels, applied.window) == (1, ("bone", "air"), (24, 24))
    assert model.probabilities(feed_values).std() > 0.05  # or anything would be equal


def test_larger_images_are_seen_through_windows(tmp_path: Path) -> None:
    model = tiny.made(tmp_path, tiny.card(HU, (16, 16)))
    applied = apply.applied(tmp_path, "m", overlap=0.5)
    large, small = ct(1, 40, 33), ct(2, 16, 16)
    found = applied.probabilities([(large, [ROW] * 3), (small, [ROW] * 3)])
    assert [one.shape for one in found] == [(40, 33, 2), (16, 16, 2)]
    expected = stitch.stitched(HU.values(large, [ROW] * 3), (16, 16), model.probabilities, 0.5)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_resampled_images_come_back_at_their_size(tmp_path: Path) -> None:
    recipe = Recipe(kind="image", mode="window", window=(40.0, 400.0), spacing_mm=(1.0, 1.0))
    model = tiny.made(tmp_path, tiny.card(recipe, (20, 16)))
    applied = apply.applied(tmp_path, "m")
    plane = ct(3, 40, 32)[1]
    (found,) = applied.probabilities([([plane], [ROW])])
    assert found.shape == (40, 32, 2) and found.min() >= 0 and found.max() <= 1
    inside = model.probabilities(recipe.values([plane], [ROW])[None])[0]
    np.testing.assert_allclose(sample.resized(found[..., 0], (20, 16)), inside[..., 0], atol=0.2)


def test_classes_of_an_image_of_any_size(tmp_path: Path) -> None:
    recipe = Recipe(channels=3)
    model = tiny.made(tmp_path, tiny.card(recipe, (16, 16), "classification", exclusive=True))
    applied = apply.applied(tmp_path, "m", overlap=0.0)
    photo = rng(5, "photo").integers(0, 255, (32, 16, 3)).astype(np.uint8)
    whole, large = applied.probabilities([([photo[:16]], [{}]), ([photo], [{}])])
    np.testing.assert_allclose(whole, model.probabilities(photo[None, :16])[0], atol=1e-6)
    np.testing.assert_allclose(large, model.probabilities(np.stack([photo[:16], photo[16:]])).mean(axis=0), atol=1e-6)
    assert whole.sum() == pytest.approx(1, abs=1e-5)


def test_volumes(tmp_path: Path) -> None:
    recipe = Recipe(kind="volume", mode="window", window=(40.0, 400.0), depth=4, size=(16, 16))
    model = tiny.made(tmp_path, tiny.card(recipe, (16, 16)))
    applied = apply.applied(tmp_path, "m")
    assert (applied.depth, applied.planes(9)) == (4, [1, 3, 5, 7])
    planes = [rng(7, "ct", place).integers(900, 1300, (24, 24)).astype(np.int16) for place in range(4)]
    found = applied.volume(planes, [ROW] * 4)
    inside = model.probabilities(recipe.values(planes, [ROW] * 4)[None])[0]
    assert found.shape == (4, 24, 24, 2)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), inside.mean(axis=(1, 2)), atol=0.02)


def test_travels_and_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.made(tmp_path, tiny.card(HU, (24, 24)))
    applied = pickle.loads(pickle.dumps(apply.applied(tmp_path, "m")))
    monkeypatch.setattr(apply, "_LOADED", {})
    first = apply.loaded(applied)
    assert apply.loaded(pickle.loads(pickle.dumps(applied))) is first
    other = tmp_path / "other"
    tiny.made(other, tiny.card(HU, (24, 24), labels=("bone", "lung")))
    assert apply.applied(other, "m").name != applied.name == apply.applied(tmp_path, "another name").name


def test_what_cannot_be_served(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no model"):
        apply.applied(tmp_path, "m")
    tiny.made(tmp_path, tiny.card(HU, (24, 24)))
    with pytest.raises(BadRequest, match="--overlap"):
        apply.applied(tmp_path, "m", overlap=1.0)
