"""A finished network with everything that it needs to be used elsewhere: a folder of two files, read without the lake and without pickles.

``predictor.json`` says what it is (network, labels, image, recipe, thresholds), ``weights.npz`` holds its weights in the network's order.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medspark.errors import BadRequest
from medspark.feed.card import Card, ImageSpec
from medspark.train import losses
from medspark.train import network as networks
from medspark.train.network import Network

PREDICTOR_VERSION = 1
PIXELS_AT_ONCE = 16 << 20  # of images in one pass: bounds memory whatever the batch


@dataclass(frozen=True)
class Predictor:
    """Feed values in, probabilities out; safe to share among threads.

    thresholds : label -> probability from which it counts as present, fixed on validation; where labels exclude each other the largest decides
    said : what else is known of its making (feed, version, run, epoch, measures)
    """

    task: Literal["segmentation", "classification"]
    labels: tuple[str, ...]
    exclusive: bool
    image: ImageSpec
    recipe: Mapping[str, Any]
    thresholds: Mapping[str, float]
    network: Network
    weights: tuple[np.ndarray, ...]
    within_subject: bool = False
    said: Mapping[str, Any] = field(default_factory=dict)
    _models: dict[tuple[int, ...], Any] = field(default_factory=dict, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(B, *space, L) or (B, L) float32 of (B, *space, C) feed values; space may differ from the feed's."""
        images = np.asarray(images)
        if images.ndim != len(self.network.space) + 2 or images.shape[-1] != self.network.channels:
            wanted = ", ".join(["n", *map(str, self.network.space), str(self.network.channels)])
            raise BadRequest(f"this model takes images of shape ({wanted}), got {images.shape}")
        run = self._model(images.shape[1:-1])
        step = max(1, PIXELS_AT_ONCE // int(np.prod(images.shape[1:-1])))
        found = [run(images[start : start + step].astype(np.float32)).numpy() for start in range(0, len(images), step)]
        empty = (0, *(images.shape[1:-1] if self.task == "segmentation" else ()), len(self.labels))
        return np.concatenate(found) if found else np.zeros(empty, np.float32)

    def _model(self, space: tuple[int, ...]) -> Any:
        import tensorflow as tf

        with self._lock:
            if space not in self._models:
                network = self.network.at(space)
                model = networks.build(network)
                model.set_weights(list(self.weights))
                signature = tf.TensorSpec((None, *space, network.channels), tf.float32)
                self._models[space] = tf.function(
                    lambda x: losses.probabilities(model(x, training=False), network), input_signature=[signature]
                )
            return self._models[space]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._plain(), self.weights)

    def _plain(self) -> dict[str, Any]:
        return {
            "predictor": PREDICTOR_VERSION,
            "task": self.task,
            "labels": list(self.labels),
            "exclusive": self.exclusive,
            "image": asdict(self.image),
            "recipe": dict(self.recipe),
            "thresholds": dict(self.thresholds),
            "network": self.network.to_dict(),
            "within_subject": self.within_subject,
            "said": dict(self.said),
        }


def _rebuilt(said: dict[str, Any], weights: tuple[np.ndarray, ...]) -> Predictor:
    image = said["image"]
    tuples = {name: tuple(image[name]) if image[name] is not None else None for name in ("shape", "channels", "window", "spacing_mm")}
    return Predictor(
        task=said["task"],
        labels=tuple(said["labels"]),
        exclusive=said["exclusive"],
        image=ImageSpec(**{**image, **tuples}),
        recipe=said["recipe"],
        thresholds=said["thresholds"],
        network=networks.parse(said["network"]),
        weights=weights,
        within_subject=said["within_subject"],
        said=said["said"],
    )


def of(network: Network, weights: list[np.ndarray], card: Card, thresholds: Mapping[str, float], said: Mapping[str, Any]) -> Predictor:
    """A `Predictor` from what a run holds in its hands."""
    return Predictor(
        card.task,
        card.labels,
        card.exclusive,
        card.image,
        card.recipe,
        thresholds,
        network,
        tuple(np.asarray(item) for item in weights),
        card.within_subject,
        said,
    )


def save(folder: str | Path, predictor: Predictor) -> list[Path]:
    """Writes the two files and returns their paths."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    described, weights = place / "predictor.json", place / "weights.npz"
    described.write_text(json.dumps(predictor._plain(), indent=1, sort_keys=True) + "\n")
    np.savez(weights, **{f"{number:04d}": item for number, item in enumerate(predictor.weights)})  # type: ignore[arg-type]
    return [described, weights]


def load(folder: str | Path) -> Predictor:
    """Inverse of `save`; raises `BadRequest` for a folder that holds no model, or one of a newer release."""
    place = Path(folder)
    try:
        said = json.loads((place / "predictor.json").read_text())
        with np.load(place / "weights.npz", allow_pickle=False) as packed:
            weights = tuple(packed[name] for name in sorted(packed.files))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{place}: no model of medspark ({type(error).__name__}); expected predictor.json and weights.npz") from None
    if said["predictor"] > PREDICTOR_VERSION:
        raise BadRequest(f"{place}: its model has version {said['predictor']}, this medspark reads up to {PREDICTOR_VERSION}")
    return _rebuilt(said, weights)


def _load_pyfunc(path: str) -> Any:
    """What `mlflow.pyfunc` asks for (``loader_module`` of the logged model): the same predictor, fed with JSON or image bytes."""
    from medspark.track.model import served

    return served(path, load(path))
