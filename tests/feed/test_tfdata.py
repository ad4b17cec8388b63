"""Batches arrive in TensorFlow as they are, with static shapes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from medspark.feed.open import open_feed
from tests.phantoms.feeds import write_feed

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.mark.parametrize(("kind", "task"), [("tiles", "segmentation"), ("volumes", "segmentation"), ("slices", "classification")])
def test_batches_are_the_readers(tmp_path: Path, kind: str, task: str) -> None:
    pytest.importorskip("tensorflow")
    from medspark.feed import tfdata

    write_feed(tmp_path, kind=kind, task=task, labels=("disc", "square"), side=16)
    reader = open_feed(str(tmp_path), "phantom").reader("train", 6, seed=2)
    data = tfdata.epoch(reader, 1, first_step=2)
    shapes = {name: tuple(spec.shape) for name, spec in data.element_spec.items()}
    space = reader.card.image.space
    assert shapes["images"] == (6, *reader.card.image.shape) and shapes["targets"] == (6, 2) and shapes["weights"] == (6,)
    assert shapes.get("masks") == ((6, *space, 2) if task == "segmentation" else None)
    for element, batch in zip(data, reader.epoch(1, 2), strict=True):
        assert [row_id.decode() for row_id in element["row_ids"].numpy()] == list(batch.row_ids)
        for name in shapes.keys() - {"row_ids"}:
            assert np.array_equal(element[name].numpy(), getattr(batch, name)) and element[name].dtype == getattr(batch, name).dtype
    assert sum(len(element["weights"]) for element in tfdata.once(reader)) == 40
    reader.close()
