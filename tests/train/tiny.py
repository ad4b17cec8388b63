"""Small true predictors with random weights: what they say means nothing, but everything about them is real."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medspark.config import Train
from medspark.feed.card import Card, ImageSpec
from medspark.feed.sample import Recipe
from medspark.keys import rng
from medspark.train import network, predictor
from medspark.train.predictor import Predictor
from tests.train import memory_reader


def card(
    recipe: Recipe,
    window: tuple[int, int],
    task: Literal["segmentation", "classification"] = "segmentation",
    labels: tuple[str, ...] = ("bone", "air"),
    exclusive: bool = False,
) -> Card:
    channels, planes = recipe.channel_names, (recipe.depth,) if recipe.kind == "volume" else ()
    return replace(
        memory_reader.card(task, labels, exclusive),
        name="tiny",
        image=ImageSpec(recipe.kind, (*planes, *window, len(channels)), recipe.dtype, "blosc2", channels),  # type: ignore[arg-type]
        recipe=recipe.to_dict(),
        mean=(100.0,) * len(channels),
        std=(60.0,) * len(channels),
    )


def made(folder: Path, of: Card, **settings: Any) -> Predictor:
    """A predictor for a card, saved in ``folder``; its answers spread over 0..1."""
    wanted = network.of(of, Train(width=4, depth=2, blocks=1, **settings))
    weights = network.build(wanted).get_weights()
    spread = [
        rng(3, "tiny", place).normal(0, 0.6, array.shape).astype(np.float32) + (array if array.ndim == 1 else 0)
        for place, array in enumerate(weights)
    ]
    kept = [array if array.shape == of.mean or array.ndim == 0 else new for array, new in zip(weights, spread, strict=True)]
    thresholds = {label: 0.45 + 0.05 * place for place, label in enumerate(of.labels)}
    model = predictor.of(wanted, kept, of, thresholds, {"run": "tiny"})
    if not of.exclusive:  # about as much above one half as below
        noise = rng(3, "noise").normal(of.mean, of.std, (4, *of.image.shape))
        p = np.clip(model.probabilities(noise), 1e-6, 1 - 1e-6).reshape(-1, len(of.labels))
        kept[-1] = kept[-1] - np.median(np.log(p / (1 - p)), axis=0).astype(np.float32)
        model = predictor.of(wanted, kept, of, thresholds, {"run": "tiny"})
    predictor.save(folder, model)
    return model
