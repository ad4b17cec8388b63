"""Who else trains: nobody (`Solo`) or other ranks (`Horovod`). The loop is the same for both; and what a rank may use of its machine.

Gradients are averaged within the graph, all else (sums of metrics, what rank 0 decides) outside it, between the same two points of the loop on
every rank.
"""

from __future__ import annotations

import os
import pickle
from typing import Any, Protocol, TypeVar, final

import numpy as np

from medspark.config import Train

T = TypeVar("T")


class World(Protocol):
    """Ranks that train one network. Every method but the properties is a meeting: all ranks call it, in the same order."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    def average(self, tensors: list[Any]) -> list[Any]:
        """Mean over ranks of each tensor, inside a `tf.function`."""
        ...

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum over ranks, float64."""
        ...

    def same(self, variables: list[Any]) -> None:
        """Gives all ranks rank 0's variables."""
        ...

    def share(self, value: T) -> T:
        """Rank 0's value on every rank; anything that pickles."""
        ...


@final
class Solo:
    rank, size, local_rank, local_size = 0, 1, 0, 1

    def average(self, tensors: list[Any]) -> list[Any]:
        return tensors

    def total(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float64)

    def same(self, variables: list[Any]) -> None:
        pass

    def share(self, value: T) -> T:
        return value


@final
class Horovod:
    """The ranks that Horovod started; joins them when it is made."""

    def __init__(self) -> None:
        import horovod.tensorflow as hvd

        hvd.init()
        self.hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()

    def average(self, tensors: list[Any]) -> list[Any]:
        return list(self.hvd.grouped_allreduce(tensors, op=self.hvd.Average))

    def total(self, values: np.ndarray) -> np.ndarray:
        return self.hvd.allreduce(np.asarray(values, np.float64), op=self.hvd.Sum, name="medspark.total").numpy()

    def same(self, variables: list[Any]) -> None:
        self.hvd.broadcast_variables(variables, root_rank=0)

    def share(self, value: T) -> T:
        raw = pickle.dumps(value) if self.rank == 0 else b""
        size = int(self.total(np.array([len(raw)]))[0])
        given = np.frombuffer(raw, np.uint8) if self.rank == 0 else np.zeros(size, np.uint8)
        return pickle.loads(self.hvd.broadcast(given, root_rank=0, name="medspark.share").numpy().tobytes())  # from our own rank 0


def prepare(world: World, train: Train) -> dict[str, Any]:
    """Fits TensorFlow to this rank's share of the machine; before any of its operations. Returns what it found, for the run's parameters.

    GPU: one device per local rank, memory as needed instead of all at once. CPU: the cores that this process may use, shared among local ranks.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        mine = gpus[world.local_rank % len(gpus)]
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)
    threads = threads_of(world, train)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1 if threads == 1 else 2)
    except RuntimeError:  # the driver's own process has computed already: solo, and with all cores anyway
        threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))
    return {"device": "gpu" if gpus else "cpu", "devices_here": len(gpus), "threads": threads}


def threads_of(world: World, train: Train) -> int:
    return train.threads or max(1, len(os.sched_getaffinity(0)) // world.local_size)
