"""A predictor small enough to know its answers: a real Keras network in which what is brighter than 128 is ``bright``, and below ``dark``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medspark.feed.card import ImageSpec
from medspark.feed.served import Served
from medspark.track.model import served


@dataclass(frozen=True)
class Tiny:
    task: str = "segmentation"
    labels: tuple[str, ...] = ("bright", "dark")
    exclusive: bool = False
    image: ImageSpec = ImageSpec("image", (16, 16, 1), "uint8", "png", ("value",))
    recipe: Mapping[str, Any] = field(default_factory=lambda: {"size": [16, 16]})
    thresholds: Mapping[str, float] = field(default_factory=lambda: {"bright": 0.5})

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        import tensorflow as tf

        layers = tf.keras.layers
        given = layers.Input(images.shape[1:])
        mean = layers.Lambda(lambda x: (tf.reduce_mean(tf.cast(x, tf.float32), -1, keepdims=True) - 128.0) / 4.0)(given)
        if self.task == "classification":
            mean = layers.GlobalAveragePooling2D()(mean)
        both = layers.Concatenate()([mean, layers.Lambda(lambda x: -x)(mean)])
        return np.asarray(tf.keras.Model(given, layers.Activation("sigmoid")(both))(images))


def save(folder: Path, predictor: Tiny) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.json").write_text(json.dumps(asdict(predictor)))
    return folder


def load(folder: Path) -> Tiny:
    said = json.loads((folder / "tiny.json").read_text())
    image = {name: tuple(value) if isinstance(value, list) else value for name, value in said["image"].items()}
    return Tiny(**{**said, "labels": tuple(said["labels"]), "image": ImageSpec(**image)})


def _load_pyfunc(path: str) -> Served:
    return served(path, load(Path(path)))
