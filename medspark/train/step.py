"""One batch: gradients, update, evaluation, as TensorFlow graphs. Counts stay on the device until somebody asks for them.

Gradients are computed in one function (which XLA may compile), averaged over ranks and applied in another (which Horovod's operations are part
of). With ``train.accumulate`` the gradients of several batches are added up first; their mean makes one update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medspark.config import Train
from medspark.feed.reader import Batch
from medspark.train import measures
from medspark.train import network as networks
from medspark.train.layers import SCORE
from medspark.train.losses import Loss, probabilities
from medspark.train.network import Network
from medspark.train.world import World

MOMENTUM = 0.9  # of SGD, after Nesterov


def optimizer(train: Train, precision: str) -> Any:
    import tensorflow as tf

    made = {
        "adam": lambda: tf.keras.optimizers.Adam(train.learning_rate, jit_compile=train.xla),
        "adamw": lambda: tf.keras.optimizers.AdamW(train.learning_rate, weight_decay=train.weight_decay, jit_compile=train.xla),
        "sgd": lambda: tf.keras.optimizers.SGD(train.learning_rate, momentum=MOMENTUM, nesterov=True, jit_compile=train.xla),
    }[train.optimizer]()
    return tf.keras.mixed_precision.LossScaleOptimizer(made) if precision == "float16" else made


class Stepper:
    """A network in training on one rank.

    sums : [sum of losses, samples] since `taken`, this rank's        counts : `measures.confusion` since then
    """

    def __init__(self, network: Network, loss: Loss, train: Train, world: World, batch_size: int) -> None:
        import tensorflow as tf

        self.network, self.loss, self.train, self.world, self.batch_size = network, loss, train, world, batch_size
        self.model = networks.build(network)
        self.optimizer = optimizer(train, network.precision)
        self.optimizer.build(self.model.trainable_variables)
        self.sums = tf.Variable(tf.zeros(2, tf.float64), trainable=False)
        self.counts = tf.Variable(tf.zeros((network.labels, 4), tf.int64), trainable=False)
        self.waiting = (
            [tf.Variable(tf.zeros_like(v), trainable=False) for v in self.model.trainable_variables] if train.accumulate > 1 else []
        )
        self._gradients = tf.function(self._compute, jit_compile=train.xla)
        self._step = tf.function(self._whole)
        self._add = tf.function(self._keep)
        self._apply_waiting = tf.function(self._spend)
        self._evaluate = tf.function(self._judge, reduce_retracing=True)

    def begin_at(self, logits: Sequence[float]) -> None:
        """Sets the outputs' biases (`losses.prior`)."""
        self.model.get_layer(SCORE).bias.assign(list(logits))

    # --- training

    def update(self, batch: Batch, rate: float) -> None:
        """One batch, one update."""
        self._rate(rate)
        self._step(*tensors(batch))

    def add(self, batch: Batch) -> None:
        """One batch of an update that takes several."""
        self._add(*tensors(batch))

    def spend(self, batches: int, rate: float) -> None:
        """The update of the ``batches`` that were added."""
        import tensorflow as tf

        self._rate(rate)
        self._apply_waiting(tf.constant(1.0 / batches, tf.float32))

    def _rate(self, rate: float) -> None:
        self.optimizer.learning_rate = rate

    def _compute(self, images: Any, masks: Any, known: Any, targets: Any, weights: Any) -> tuple[list[Any], Any, Any]:
        """(gradients of the loss over the batch's size, sum of losses, confusion)."""
        import tensorflow as tf

        scaled = hasattr(self.optimizer, "get_scaled_loss")
        with tf.GradientTape() as tape:
            logits = self.model(tf.cast(images, tf.float32), training=True)
            total = tf.reduce_sum(self.loss.per_sample(logits, masks, known, targets) * weights)
            goal = total / self.batch_size
            aim = self.optimizer.get_scaled_loss(goal) if scaled else goal
        found = tape.gradient(aim, self.model.trainable_variables)
        if scaled:
            found = self.optimizer.get_unscaled_gradients(found)
        return found, total, self._confusion(logits, masks, known, targets)

    def _note(self, total: Any, confusion: Any, weights: Any) -> None:
        import tensorflow as tf

        samples = tf.reduce_sum(tf.cast(weights > 0, tf.float64))
        self.sums.assign_add(tf.stack([tf.cast(total, tf.float64), samples]))
        self.counts.assign_add(confusion)

    def _whole(self, *given: Any) -> None:
        found, total, confusion = self._gradients(*given)
        self._note(total, confusion, given[-1])
        self._move(found)

    def _keep(self, *given: Any) -> None:
        found, total, confusion = self._gradients(*given)
        self._note(total, confusion, given[-1])
        for kept, gradient in zip(self.waiting, found):
            kept.assign_add(gradient)

    def _spend(self, share: Any) -> None:
        import tensorflow as tf

        self._move([kept * share for kept in self.waiting])
        for kept in self.waiting:
            kept.assign(tf.zeros_like(kept))

    def _move(self, gradients: list[Any]) -> None:
        import tensorflow as tf

        mean = self.world.average(gradients)
        if self.train.clip_norm:
            mean, _ = tf.clip_by_global_norm(mean, self.train.clip_norm)
        self.optimizer.apply_gradients(zip(mean, self.model.trainable_variables))

    def _decided(self, p: Any) -> Any:
        """(..., L) bool: the most probable label (or background) where they exclude each other, else each above one half."""
        import tensorflow as tf

        if not self.network.exclusive:
            return p > 0.5
        rest = [1.0 - tf.reduce_sum(p, -1, keepdims=True)] if self.network.task == "segmentation" else []
        first = tf.argmax(tf.concat([*rest, p], -1), -1)
        return tf.cast(tf.one_hot(first, self.network.outputs), tf.bool)[..., len(rest) :]

    def _confusion(self, logits: Any, masks: Any, known: Any, targets: Any) -> Any:
        truth, seen = _plain_truth(masks, known, targets)
        return measures.confusion(self._decided(probabilities(logits, self.network)), truth, seen)

    def taken(self) -> tuple[np.ndarray, np.ndarray]:
        """(sums, counts) of this rank since the last call."""
        sums, counts = self.sums.numpy(), self.counts.numpy()
        self.sums.assign(np.zeros_like(sums))
        self.counts.assign(np.zeros_like(counts))
        return sums, counts

    # --- evaluation

    def evaluate(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(sum of losses and of weights, confusion, `measures.histogram`, probabilities) of a batch of any length up to the full one."""
        padded, n = fill(batch, self.batch_size)
        sums, counts, scores, p = self._evaluate(*tensors(padded))
        return sums.numpy(), counts.numpy(), scores.numpy(), p.numpy()[:n]

    def _judge(self, images: Any, masks: Any, known: Any, targets: Any, weights: Any) -> tuple[Any, Any, Any, Any]:
        import tensorflow as tf

        logits = self.model(tf.cast(images, tf.float32), training=False)
        losses = self.loss.per_sample(logits, masks, known, targets) * weights
        truth, seen = _plain_truth(masks, known, targets)
        p = probabilities(logits, self.network)
        sums = tf.stack([tf.reduce_sum(tf.cast(losses, tf.float64)), tf.reduce_sum(tf.cast(weights, tf.float64))])
        return sums, measures.confusion(self._decided(p), truth, seen), measures.histogram(p, truth, seen), p

    # --- state

    def variables(self) -> list[Any]:
        return [*self.model.weights, *self.optimizer.variables]

    def even_out(self) -> None:
        """Gives all ranks the mean of what no gradient moves (running means of batch normalisation)."""
        if self.world.size > 1 and self.network.norm == "batch":
            for variable in self.model.non_trainable_weights:
                variable.assign((self.world.total(variable.numpy()) / self.world.size).astype(variable.dtype.as_numpy_dtype))

    def arrays(self) -> dict[str, np.ndarray]:
        return {f"{number:05d}": variable.numpy() for number, variable in enumerate(self.variables())}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        for variable, name in zip(self.variables(), sorted(arrays), strict=True):
            variable.assign(arrays[name])


def _plain_truth(masks: Any, known: Any, targets: Any) -> tuple[Any, Any]:
    """(truth, where it is known) for counting: bool (..., L), and 0 or 1 with L channels or one."""
    import tensorflow as tf

    return (targets > 0.5, tf.cast(~tf.math.is_nan(targets), tf.uint8)) if masks is None else (masks > 0, known)


def tensors(batch: Batch) -> tuple[Any, ...]:
    """A batch as the graphs take it; what a task does not have stays None."""
    import tensorflow as tf

    given = (batch.images, batch.masks, batch.known, batch.targets, batch.weights)
    return tuple(None if item is None else tf.convert_to_tensor(item) for item in given)


def fill(batch: Batch, size: int) -> tuple[Batch, int]:
    """(the batch with rows of no weight and no known truth up to ``size``, its own length): one shape, one graph."""
    n = len(batch)
    if n == size:
        return batch, n

    def more(values: np.ndarray | None, with_: float) -> np.ndarray | None:
        return None if values is None else np.concatenate([values, np.full((size - n, *values.shape[1:]), with_, values.dtype)])

    images, masks, known = more(batch.images, 0), more(batch.masks, 0), more(batch.known, 0)
    targets, weights = more(batch.targets, np.nan), more(batch.weights, 0)
    assert images is not None and targets is not None and weights is not None
    return Batch(images, masks, known, targets, weights, batch.row_ids + ("",) * (size - n)), n
