"""What the ranks of tests do; imported by their processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


import numpy as np

from medspark.config import Train
from medspark.feed.reader import Batch
from medspark.keys import rng
from medspark.track.tracker import Remembered
from medspark.train import loop, losses
from medspark.train import network as networks
from medspark.train.step import Stepper
from medspark.train.world import World, prepare
from tests.phantoms.feeds import Made
from tests.train.memory_reader import TINY, MemoryReaders, card

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "masks": ({"labels": ("a", "b")}, {}),
    "exclusive masks": ({"labels": ("a", "b"), "exclusive": True}, {"loss": "tversky", "residual": True}),
    "classes": ({"task": "classification", "labels": ("a", "b", "c")}, {}),
    "accumulated": ({"task": "classification", "labels": ("a", "b")}, {"accumulate": 2, "loss": "focal"}),
}
"""Name -> (card, settings)."""
SIZE = 8  # samples of the big batch


def case(name: str) -> tuple[Any, Train, Batch]:
    """(card, settings, a batch of `SIZE`) with weights, unknown pixels and unknown targets spread unevenly over it."""
    on_card, settings = CASES[name]
    of = card(**on_card)
    random = rng(7, name)
    labels = len(of.labels)
    images = random.integers(0, 256, (SIZE, *of.image.shape)).astype(np.uint8)
    weights = random.uniform(0.2, 2.0, SIZE).astype(np.float32)
    targets = (random.random((SIZE, labels)) < 0.5).astype(np.float32)
    targets[random.random((SIZE, labels)) < 0.3] = np.nan
    ids = tuple(map(str, range(SIZE)))
    train = replace(TINY, optimizer="sgd", learning_rate=0.1, **settings)
    if of.task == "classification":
        return of, train, Batch(images, None, None, targets, weights, ids)
    masks = (random.random((SIZE, *of.image.space, labels)) < 0.3).astype(np.uint8)
    known = (random.random((SIZE, *of.image.space, 1)) < np.linspace(0.05, 1, SIZE)[:, None, None, None]).astype(np.uint8)
    known[0] = 0  # nothing of it is known
    return of, train, Batch(images, masks, known, targets, weights, ids)


def part(batch: Batch, places: list[int]) -> Batch:
    def cut(values: np.ndarray | None) -> Any:
        return None if values is None else values[places]

    ids = tuple(batch.row_ids[place] for place in places)
    return Batch(cut(batch.images), cut(batch.masks), cut(batch.known), cut(batch.targets), cut(batch.weights), ids)


def updated(name: str, world: World) -> list[np.ndarray]:
    """The weights after two updates by `case`'s batch, each rank on its share."""
    import tensorflow as tf

    of, train, batch = case(name)
    tf.keras.utils.set_random_seed(3)
    share = SIZE // world.size
    mine = part(batch, list(range(world.rank * share, (world.rank + 1) * share)))
    pieces = [mine] if train.accumulate == 1 or world.size == 1 else [part(mine, [0, 1]), part(mine, [2, 3])]
    if world.size == 1:
        train = replace(train, accumulate=1)
    network = networks.of(of, train)
    stepper = Stepper(network, losses.of(of, train), train, world, len(pieces[0]))
    world.same(stepper.variables())
    for _ in range(2):
        if train.accumulate == 1:
            stepper.update(pieces[0], 0.1)
        else:
            for piece in pieces:
                stepper.add(piece)
            stepper.spend(len(pieces), 0.1)
    return [np.asarray(value) for value in stepper.model.get_weights()]


def law(world: World) -> dict[str, list[np.ndarray]]:
    prepare(world, TINY)
    return {name: updated(name, world) for name in CASES}


def whole_run(made: Made, folder: str, batch_size: int, world: World) -> loop.Result:
    plan = loop.Plan("both", f"{folder}/run-{world.size}", made.name, 0, made.card, 2, batch_size, 5, replace(TINY, scaling="none"))
    return loop.run(plan, MemoryReaders(made), world, Remembered())


def on_two_ranks(made: Made, folder: str) -> tuple[dict[str, list[np.ndarray]], loop.Result, Any]:
    """Everything that is asked of two ranks at once: starting them is what takes time."""
    from medspark.train.world import Horovod

    world = Horovod()
    laws = law(world)
    shared = world.share({"rank": world.rank})
    total = world.total(np.array([world.rank + 1.0]))
    done = whole_run(made, folder, 4, world)
    return laws, done, (shared, total.tolist(), sorted(os.listdir(Path(folder) / "run-2")) if world.rank == 0 else None)


@dataclass(frozen=True)
class Trouble:
    """What befalls one rank at one step: it sleeps for ever, or is killed. ``once``: a file that says that it has happened already."""

    kind: str
    rank: int
    epoch: int
    step: int
    once: str

    def __call__(self, epoch: int, step: int) -> None:
        if (epoch, step) != (self.epoch, self.step) or os.environ.get("HOROVOD_RANK") != str(self.rank) or os.path.exists(self.once):
            return
        Path(self.once).write_text(str(os.getpid()))
        if self.kind == "hang":
            time.sleep(3600)
        os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGSTOP)
