"""Networks keep sizes, standardise by the card, and do not mix samples; the memory estimate counts what they are."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from medspark.config import Train
from medspark.errors import BadRequest
from medspark.keys import rng
from medspark.train import memory, network, unet
from medspark.train.layers import halving
from tests.train.memory_reader import TINY, card


@given(st.lists(st.integers(1, 300), min_size=2, max_size=3), st.integers(1, 6))
def test_padded_sizes_are_divided_at_every_level(space: list[int], depth: int) -> None:
    sides = [side + before + after for side, (before, after) in zip(space, unet.padding(space, depth))]
    assert all(0 <= padded - side < 2 ** (depth - 1) or depth == 1 for padded, side in zip(sides, space))
    for _ in range(depth - 1):
        by = halving(sides)
        assert all(side % shrink == 0 for side, shrink in zip(sides, by))
        sides = [side // shrink for side, shrink in zip(sides, by)]


@pytest.mark.parametrize("shape", [(17, 30, 3), (5, 16, 17, 1)])
@pytest.mark.parametrize("residual", [False, True])
def test_masks_are_as_large_as_images(shape: tuple[int, ...], residual: bool) -> None:
    of = card(labels=("a", "b"), exclusive=True, shape=shape)
    model = network.build(network.of(of, replace(TINY, residual=residual, width=4)))
    assert model.output_shape == (None, *shape[:-1], 3)


def test_samples_do_not_see_each_other() -> None:
    """With group normalisation: a sample's logits are the same in any company."""
    of = card(shape=(16, 16, 1))
    model = network.build(network.of(of, TINY))
    images = rng(3, "images").integers(0, 255, (3, 16, 16, 1)).astype(np.float32)
    together = model(images, training=True).numpy()
    for place in range(3):
        np.testing.assert_allclose(model(images[place : place + 1], training=True).numpy()[0], together[place], atol=1e-4)


def test_the_first_layer_standardises_feed_values() -> None:
    of = replace(card(shape=(8, 8, 2)), mean=(100.0, -50.0), std=(20.0, 0.0))
    made = network.of(of, TINY)
    model = network.build(made)
    import tensorflow as tf

    first = tf.keras.Model(model.input, model.get_layer("standardise").output)
    image = np.full((1, 8, 8, 2), 0, np.float32)
    image[..., 0], image[..., 1] = 140.0, -50.0
    np.testing.assert_allclose(first(image).numpy()[0, 0, 0], [2.0, 0.0], atol=1e-3)


@pytest.mark.parametrize(("side", "levels"), [(28, 3), (64, 5), (256, 5)])
def test_a_classifier_fits_its_image(side: int, levels: int) -> None:
    made = network.of(card("classification", ("a",), shape=(side, side, 1)), replace(TINY, depth=0, width=2))
    assert made.depth == levels
    assert network.build(made).output_shape == (None, 1)


def test_a_network_survives_json_and_another_size() -> None:
    import json

    made = network.of(card(), TINY)
    assert network.parse(json.loads(json.dumps(made.to_dict()))) == made
    weights = [value.shape for value in network.build(made).get_weights()]
    assert [value.shape for value in network.build(made.at((40, 24))).get_weights()] == weights


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_ends_in_float32(precision: str) -> None:
    made = network.of(card(), replace(TINY, precision=precision))  # type: ignore[arg-type]
    model = network.build(made)
    assert model.output.dtype == "float32" and model.layers[3].compute_dtype == precision
    assert all(weight.dtype == "float32" for weight in model.weights)
    assert network.build(replace(made, precision="float32")).layers[3].compute_dtype == "float32", "the policy is put back"


@pytest.mark.parametrize(
    "settings", [{"precision": "float16"}, {"precision": "bfloat16", "accumulate": 2}, {"xla": True, "clip_norm": 1.0}]
)
def test_half_precision_and_xla_make_the_same_updates(settings: dict[str, object]) -> None:
    from medspark.feed.reader import Batch
    from medspark.train import losses
    from medspark.train.step import Stepper
    from medspark.train.world import Solo

    of = card("classification", ("a", "b"))
    random = rng(9, "updates")
    images, targets = random.integers(0, 255, (4, 16, 16, 1)).astype(np.uint8), (random.random((4, 2)) < 0.5).astype(np.float32)
    batch = Batch(images, None, None, targets, np.ones(4, np.float32), ("",) * 4)
    before: list[np.ndarray] = []
    moved = []
    for said in ({}, settings):
        train = replace(TINY, width=4, depth=1, optimizer="sgd", **said)  # type: ignore[arg-type]
        stepper = Stepper(network.of(of, train), losses.of(of, train), train, Solo(), 4)
        if before:
            stepper.model.set_weights(before)
        before = stepper.model.get_weights()
        for _ in range(2):
            if train.accumulate == 1:
                stepper.update(batch, 0.01)
            else:
                stepper.add(batch)
                stepper.spend(1, 0.01)
        moved.append(stepper.model.get_weights())
        kept = stepper.arrays()
        stepper.restore(kept)
        assert all(np.array_equal(kept[name], again) for name, again in stepper.arrays().items())
    for plain, other in zip(*moved, strict=True):
        np.testing.assert_allclose(other, plain, atol=2e-3)
    assert any(np.abs(other - first).max() > 1e-3 for other, first in zip(moved[1], before, strict=True))


def test_more_memory_than_there_is_is_refused_before_the_start() -> None:
    of = card(shape=(64, 64, 3))
    made = network.of(of, Train())
    model = network.build(made)
    small, large = (memory.estimate(model, made, of, batch, Train()) for batch in (1, 64))
    assert large.activations == 64 * small.activations and large.weights == small.weights == model.count_params() * 16
    assert 64 * 64 * 16 * 4 * 10 < small.activations < 64 * 64 * 16 * 4 * 100
    memory.check(large, large.total, Train())
    with pytest.raises(BadRequest, match="batch-size"):
        memory.check(large, large.total - 1, Train())
    with pytest.raises(BadRequest):
        memory.check(large, 1 << 50, Train(memory_gib=0.5))
    memory.check(large, 0, Train(memory_check="warn"))
    assert 0 < memory.available(2) <= memory.available(1)
