"""Batches as ``tf.data``: whole batches go in (row by row costs two thirds of the speed), static shapes come out.

The only module of `feed` that knows TensorFlow. Elements are dictionaries with `Batch`'s names: images, targets, weights, row_ids, and for
segmentation masks and known; feed values and dtypes as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from medspark.feed.card import Card
from medspark.feed.reader import Batch, Reader

if TYPE_CHECKING:
    import tensorflow as tf

BATCHES_READY = 1  # kept by tf.data, beside those that the reader decodes ahead


def epoch(reader: Reader, number: int, first_step: int = 0) -> tf.data.Dataset:
    """`Reader.epoch` as a dataset: ``steps_per_epoch - first_step`` batches, every dimension known."""
    return _dataset(reader.card, lambda: reader.epoch(number, first_step), reader.batch_size)


def epochs(reader: Reader, first: int = 0, first_step: int = 0) -> tf.data.Dataset:
    """Epoch ``first`` from ``first_step`` on, and those that follow, without end: for ``Model.fit(..., steps_per_epoch=reader.steps_per_epoch)``.

    Cheaper than a dataset for each epoch, whose making costs as much as some dozens of batches.
    """
    return _dataset(
        reader.card, lambda: chain.from_iterable(reader.epoch(n, first_step if n == first else 0) for n in count(first)), reader.batch_size
    )


def once(reader: Reader) -> tf.data.Dataset:
    """`Reader.once` as a dataset; the number of rows of a batch is not static, since the last one may be short."""
    return _dataset(reader.card, reader.once, None)


def _dataset(card: Card, batches: Callable[[], Iterator[Batch]], rows: int | None) -> tf.data.Dataset:
    import tensorflow as tf

    def elements() -> Iterator[dict[str, Any]]:
        for batch in batches():
            yield {name: batch.row_ids if name == "row_ids" else getattr(batch, name) for name in signature}

    signature = {
        "images": tf.TensorSpec((rows, *card.image.shape), card.image.dtype),
        "targets": tf.TensorSpec((rows, len(card.labels)), tf.float32),
        "weights": tf.TensorSpec((rows,), tf.float32),
        "row_ids": tf.TensorSpec((rows,), tf.string),
    }
    if card.task == "segmentation":
        signature["masks"] = tf.TensorSpec((rows, *card.image.space, len(card.labels)), tf.uint8)
        signature["known"] = tf.TensorSpec((rows, *card.image.space, 1), tf.uint8)
    options = tf.data.Options()
    options.autotune.enabled = False  # there is nothing to tune here, and its thread takes a tenth of the speed
    return tf.data.Dataset.from_generator(elements, output_signature=signature).prefetch(BATCHES_READY).with_options(options)
