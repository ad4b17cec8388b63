"""A model without a network, for predictions in Spark's tasks, and a job that kills itself in the middle of one: ``predicting.py N LAKE``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medspark.feed import sample
from medspark.labels.link_slices import rescaled

EVERYTHING = "SELECT image_id FROM slices UNION SELECT image_id FROM photos"


@dataclass(frozen=True)
class Above:
    """Calls what is above the mean of the planes it is shown. Pointwise but for that mean, which all planes share."""

    task: str = "segmentation"
    context: int = 0
    uri: str = "models:/above/1"
    name: str = "model:above"
    labels: tuple[str, ...] = ("bright", "dark")
    exclusive: bool = False
    depth: int = 0
    thresholds: Mapping[str, float] = field(default_factory=lambda: {"bright": 0.5, "dark": 0.75})

    def neighbours(self, place: int, ks: Sequence[int]) -> list[int]:
        return sample.neighbours(place, self.context, ks)

    def planes(self, count: int) -> list[int]:
        return sample.depths(count, self.depth)

    def volume(self, planes: Sequence[np.ndarray], rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        assert len(planes) == len(rows) == self.depth
        found = np.stack([Above(self.task).one([plane], [row]) for plane, row in zip(planes, rows, strict=True)])
        return found if self.task == "segmentation" else found.mean(axis=0)

    def probabilities(self, stacks: Sequence[tuple[Sequence[np.ndarray], Sequence[Mapping[str, Any]]]]) -> list[np.ndarray]:
        return [self.one(planes, rows) for planes, rows in stacks]

    def one(self, planes: Sequence[np.ndarray], rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        assert len(planes) == len(rows) == 2 * self.context + 1
        values = [np.float32(rescaled(p, r["rescale_slope"], r["rescale_intercept"], None)) for p, r in zip(planes, rows, strict=True)]
        grey = [value if value.ndim == 2 else value.mean(axis=-1) for value in values]
        weighted = sum((place + 1) * value for place, value in enumerate(grey))  # the planes' order matters
        p = 1 / (1 + np.exp(-(weighted - weighted.mean()) / (weighted.std() + 1)))
        masks = np.stack([p, 1 - p], axis=-1).astype(np.float32)
        return masks if self.task == "segmentation" else masks[0, 0]


def main() -> None:
    """Kills its process group before (even N) or after (odd N) the N // 2-th commit of ``labels``."""
    at, uri = int(sys.argv[1]), sys.argv[2]
    from medspark.lake import predict, session, sql, store

    original, step = store.Lake.transact, 0

    def transact(self, table, *given, **named):  # type: ignore[no-untyped-def]
        nonlocal step
        for after in (False, True):
            if table == "labels" and step == at:
                os.killpg(0, signal.SIGKILL)
            step += table == "labels"
            if not after:
                version = original(self, table, *given, **named)
        return version

    predict.BAND = 2  # several pieces of one small series
    store.Lake.transact = transact  # type: ignore[method-assign]
    spark = session.build("predicting")
    lake = sql.register(spark, uri)
    result = predict.predict(lake, Above(context=1), spark.sql(EVERYTHING), predict.Request(0, 2), "killed", 60.0, print)
    print("steps:", step, result, flush=True)


if __name__ == "__main__":
    main()
