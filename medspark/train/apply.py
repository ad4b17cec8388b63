"""A trained model where images are: what `medspark.lake.predict` asks of a model, from a predictor's files. Loaded once per worker process.

What was done to the training images is done here by the same code (`feed.sample.Recipe`, which came with the model); images larger than what the network
was trained on are seen through overlapping windows (`feed.stitch`), and probabilities go back to the size of the stored image.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medspark.errors import BadRequest
from medspark.feed import sample, stitch
from medspark.feed.sample import Recipe
from medspark.train import predictor
from medspark.train.predictor import Predictor

THREADS = "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"
BATCH_PIXELS = 1 << 21  # of windows in one call: bounds what a network's layers hold of it
_LOADED: dict[str, Predictor] = {}
_LOCK = threading.Lock()
atexit.register(_LOADED.clear)  # before TensorFlow's own modules are taken apart: a network that outlives them complains on standard error


@dataclass(frozen=True)
class Applied:
    """A model for `medspark.lake.predict.predict`.

    window : (rows, cols) px that the network was trained on;  overlap : share of it between neighbours, on larger images
    packed : file name -> bytes of the predictor's folder, or a broadcast variable (``.value``) of it
    """

    uri: str
    name: str
    task: str
    labels: tuple[str, ...]
    exclusive: bool
    thresholds: Mapping[str, float]
    recipe: Recipe
    window: tuple[int, int]
    overlap: float
    packed: Any

    @property
    def context(self) -> int:
        return self.recipe.context

    def neighbours(self, place: int, ks: Sequence[int]) -> list[int]:
        return sample.neighbours(place, self.recipe.context, ks)

    @property
    def depth(self) -> int:
        return self.recipe.depth

    def planes(self, count: int) -> list[int]:
        return sample.depths(count, self.recipe.depth)

    def volume(self, planes: Sequence[np.ndarray], rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(depth, rows, cols, L) float32 at the stored size, or (L,), of a volume's stored planes."""
        found = loaded(self).probabilities(self.recipe.values(planes, rows)[None])[0]
        if found.ndim == 1:
            return found
        return np.stack([self._back(plane, stored.shape[:2]) for plane, stored in zip(found, planes, strict=True)])

    def probabilities(self, stacks: Sequence[tuple[Sequence[np.ndarray], Sequence[Mapping[str, Any]]]]) -> list[np.ndarray]:
        """Per image float32 (rows, cols, L) at its stored size, or (L,); stack: its stored planes, and their rows of ``slices``."""
        network = loaded(self).probabilities
        images = [self.recipe.values(planes, rows) for planes, rows in stacks]
        whole = [place for place, image in enumerate(images) if image.shape[:2] == self.window]
        found: dict[int, np.ndarray] = {}
        step = self._batch()
        for start in range(0, len(whole), step):  # images of one window go together
            here = whole[start : start + step]
            found.update(zip(here, network(np.stack([images[place] for place in here])), strict=True))
        for place, image in enumerate(images):
            if place not in found:
                found[place] = self._windows(image, network)
        sizes = [planes[len(planes) // 2].shape[:2] for planes, _ in stacks]
        return [self._back(found[place], sizes[place]) for place in range(len(images))]

    def _batch(self) -> int:
        return max(1, BATCH_PIXELS // (self.window[0] * self.window[1]))

    def _windows(self, image: np.ndarray, network: stitch.Network) -> np.ndarray:
        """Of an image of another size than the window; a class counts by its mean over the windows."""
        if self.task == "segmentation":
            return stitch.stitched(image, self.window, network, self.overlap, self._batch())
        corners = sample.grid((image.shape[0], image.shape[1]), self.window, stitch.strides(self.window, self.overlap))
        total, step = np.zeros(len(self.labels)), self._batch()
        for start in range(0, len(corners), step):
            cuts = [sample.cut(image, row0, col0, self.window) for row0, col0 in corners[start : start + step]]
            total += network(np.stack(cuts)).sum(axis=0, dtype=np.float64)
        return (total / len(corners)).astype(np.float32)

    def _back(self, probabilities: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        if probabilities.ndim == 1 or probabilities.shape[:2] == size:
            return probabilities
        rows, cols = size
        planes = [sample.resized(np.ascontiguousarray(probabilities[..., place]), (rows, cols)) for place in range(len(self.labels))]
        return np.clip(np.stack(planes, axis=-1), 0.0, 1.0)


def applied(folder: str | Path, uri: str, overlap: float = stitch.OVERLAP, broadcast: Any = None) -> Applied:
    """The model in a folder (`predictor.save`), under the name of its content.

    broadcast : sends the files to the executors (``sparkContext.broadcast``); None: they travel with the object
    Raises `BadRequest` for a folder without a model.
    """
    try:
        stitch.strides((1, 1), overlap)
    except ValueError as error:
        raise BadRequest(f"--overlap: {error}") from None
    model = predictor.load(folder)
    recipe = Recipe.parse(model.recipe)
    packed = {name: (Path(folder) / name).read_bytes() for name in ("predictor.json", "weights.npz")}
    digest = hashlib.sha256()
    for name, data in sorted(packed.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
    rows, cols = model.image.space[-2:]
    return Applied(
        uri=uri,
        name=f"model:{digest.hexdigest()[:16]}",
        task=model.task,
        labels=model.labels,
        exclusive=model.exclusive,
        thresholds=dict(model.thresholds),
        recipe=recipe,
        window=(rows, cols),
        overlap=overlap,
        packed=packed if broadcast is None else broadcast(packed),
    )


def loaded(model: Applied) -> Predictor:
    """The predictor in this process; made once, whatever the number of tasks that the process works on."""
    with _LOCK:
        if model.name not in _LOADED:
            for name in THREADS:  # Spark gives a task one core; a task's TensorFlow must not take all of them
                os.environ.setdefault(name, "1")
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            files = getattr(model.packed, "value", model.packed)
            with tempfile.TemporaryDirectory(prefix="medspark-") as folder:
                for name, data in files.items():
                    (Path(folder) / name).write_bytes(data)
                _LOADED.clear()  # one model at a time: a worker process that goes on to another run's drops the old one
                _LOADED[model.name] = predictor.load(folder)
        return _LOADED[model.name]
