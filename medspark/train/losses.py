"""Losses that add up over samples: what two ranks average is what one big batch gives.

Every sample has one loss: a mean over the pixels (or labels) whose truth is known, times the sample's weight. A batch's loss is their sum over
the batch *size*, a constant. So the mean over ranks, and over batches that are accumulated, is the loss of all their samples together,
whatever is known in each; a Dice over all pixels of a batch would not be. A sample of which nothing is known adds 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from medspark.config import Train
from medspark.errors import BadRequest
from medspark.feed.card import Card
from medspark.train.network import Network

Name = Literal["bce", "bce_dice", "focal", "tversky"]
SMOOTH_PX = 1.0  # added above and below in overlaps: an empty mask predicted empty is a perfect 1
RAREST = 0.01  # outputs begin at no rarer probability: what is rarer still must be able to appear soon
WEIGHT_MAX = 20.0  # no class counts more than this, however rare


@dataclass(frozen=True)
class Loss:
    """A loss, ready to be computed.

    outputs : channels of the logits
    background : the first channel is the background of exclusive masks
    positive, negative : per label, weights of known pixels (samples) that show it and that do not; per channel where exclusive (negative unused)
    """

    name: Name
    exclusive: bool
    background: bool
    positive: tuple[float, ...]
    negative: tuple[float, ...]
    gamma: float = 2.0
    alpha: float = 0.3
    beta: float = 0.7

    def per_sample(self, logits: Any, masks: Any, known: Any, targets: Any) -> Any:
        """(B,) float32, >= 0, before the samples' weights.

        logits : (B, *space, outputs), or (B, outputs) for classes
        masks, known : as in `medspark.feed.reader.Batch`, or None for classes
        targets : (B, L) 1, 0, NaN unknown; classes only
        """
        truth, seen = self.truth(masks, known, targets)
        if self.name == "tversky":
            return self._overlap(logits, truth, seen, self.alpha, self.beta)
        pixelwise = self._cross_entropy(logits, truth, seen, focal=self.name == "focal")
        return pixelwise + self._overlap(logits, truth, seen, 0.5, 0.5) if self.name == "bce_dice" else pixelwise

    def truth(self, masks: Any, known: Any, targets: Any) -> tuple[Any, Any]:
        """(truth as float32 in the logits' shape, 1 where it is known: the same shape, or one channel where classes exclude each other)."""
        import tensorflow as tf

        if masks is None:
            seen = 1.0 - tf.cast(tf.math.is_nan(targets), tf.float32)
            truth = tf.where(tf.math.is_nan(targets), tf.zeros_like(targets), targets)
            if self.exclusive:
                seen = tf.reduce_min(seen, -1, keepdims=True) * tf.cast(tf.reduce_sum(truth, -1, keepdims=True) > 0, tf.float32)
            return truth, seen
        truth = tf.cast(masks, tf.float32)
        seen = tf.cast(known, tf.float32)
        if not self.exclusive:
            return truth, seen * tf.ones_like(truth)
        together = tf.reduce_sum(truth, -1, keepdims=True)
        truth = truth / tf.maximum(together, 1.0)
        return tf.concat([1.0 - tf.minimum(together, 1.0), truth], -1), seen

    def _cross_entropy(self, logits: Any, truth: Any, seen: Any, focal: bool) -> Any:
        """Focal: Lin et al. 2017, arXiv:1708.02002."""
        import tensorflow as tf

        positive = tf.constant(self.positive, tf.float32)
        if self.exclusive:
            log_p = tf.nn.log_softmax(logits)
            each = -truth * log_p * positive
            if focal:
                each *= (1.0 - tf.exp(log_p)) ** self.gamma
            return _mean(tf.reduce_sum(each, -1, keepdims=True), seen)
        weight = truth * positive + (1.0 - truth) * tf.constant(self.negative, tf.float32)
        each = tf.nn.sigmoid_cross_entropy_with_logits(labels=truth, logits=logits)
        if focal:
            p = tf.sigmoid(logits)
            each *= tf.abs(truth - p) ** self.gamma
        return _mean(each * weight, seen)

    def _overlap(self, logits: Any, truth: Any, seen: Any, alpha: float, beta: float) -> Any:
        """1 - Tversky index of each sample, mean over labels (Salehi et al. 2017, arXiv:1706.05721); alpha = beta = 0.5 is soft Dice."""
        import tensorflow as tf

        p = tf.nn.softmax(logits) if self.exclusive else tf.sigmoid(logits)
        if self.background:
            p, truth = p[..., 1:], truth[..., 1:]
        axes = list(range(1, len(logits.shape) - 1))
        both = tf.reduce_sum(p * truth * seen, axes)
        false = tf.reduce_sum(p * (1.0 - truth) * seen, axes)
        missed = tf.reduce_sum((1.0 - p) * truth * seen, axes)
        half = SMOOTH_PX / 2  # twice the index's numerator is Dice's
        index = (both + half) / (both + alpha * false + beta * missed + half)
        anything = tf.cast(tf.reduce_max(tf.reshape(seen, (tf.shape(seen)[0], -1)), -1) > 0, tf.float32)
        return tf.reduce_mean(1.0 - index, -1) * anything


def _mean(values: Any, seen: Any) -> Any:
    """Mean over what is known of each sample; 0 where nothing is."""
    import tensorflow as tf

    axes = list(range(1, len(values.shape)))
    return tf.reduce_sum(values * seen, axes) / tf.maximum(tf.reduce_sum(seen, axes), 1.0)


def probabilities(logits: Any, network: Network) -> Any:
    """(B, *space, L) or (B, L) float32: of the card's labels, without the background."""
    import tensorflow as tf

    if not network.exclusive:
        return tf.sigmoid(logits)
    p = tf.nn.softmax(logits)
    return p[..., 1:] if network.task == "segmentation" else p


def of(card: Card, train: Train) -> Loss:
    """The loss that a feed's card and the settings ask for; raises `BadRequest` for one that does not go with the task."""
    masks = card.task == "segmentation"
    name: Name = train.loss if train.loss != "auto" else "bce_dice" if masks else "bce"
    if not masks and name in ("bce_dice", "tversky"):
        raise BadRequest(f"config train.loss: {name} needs masks and feed {card.name} has classes; use bce or focal")
    if card.exclusive and len(card.labels) < 2 and not masks:
        raise BadRequest(
            f"feed {card.name}: one class alone cannot exclude others; give it two, or build the feed without exclusive classes"
        )
    positive, negative = class_weights(card, train.class_weights)
    return Loss(
        name, card.exclusive, card.exclusive and masks, positive, negative, train.focal_gamma, train.tversky_alpha, train.tversky_beta
    )


def prior(card: Card, loss: Loss) -> tuple[float, ...]:
    """Logits that the outputs begin at: how common each label is in the train part, as the loss weighs it (Lin et al. 2017, arXiv:1708.02002, 4.1).

    A network that begins at one half everywhere spends its first epochs on learning that most pixels show nothing.
    """
    shown, lacking = _amounts(card)
    if loss.exclusive:
        classes = [max(0.0, card.parts["train"].known_px - sum(shown)), *shown] if loss.background and "train" in card.parts else shown
        weighed = [weight * n for weight, n in zip(loss.positive, classes)]
        total = sum(weighed)
        return tuple(math.log(max(RAREST, n / total)) for n in weighed) if total else (0.0,) * len(loss.positive)
    found = []
    for n, rest, heavy, light in zip(shown, lacking, loss.positive, loss.negative):
        p = heavy * n / (heavy * n + light * rest) if n + rest else 0.5
        p = min(1.0 - RAREST, max(RAREST, p))
        found.append(math.log(p / (1.0 - p)))
    return tuple(found)


def _amounts(card: Card) -> tuple[list[float], list[float]]:
    """Of each label: pixels (samples, for classes) of the train part that show it, and that are known not to."""
    masks, counts = card.task == "segmentation", card.parts.get("train")
    if counts is None:
        return [0.0] * len(card.labels), [0.0] * len(card.labels)
    shown = [float((counts.positive_px if masks else counts.positives).get(label, 0)) for label in card.labels]
    lacking = [max(0.0, counts.known_px - n) if masks else float(counts.negatives.get(label, 0)) for label, n in zip(card.labels, shown)]
    return shown, lacking


def class_weights(card: Card, rule: Literal["none", "balanced"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Weights of what shows a label and of what does not, from the train part's counts (pixels, or samples for classes).

    balanced : each side of a label weighs the same in all (n / 2 positives, n / 2 negatives); each class where they exclude each other.
    No weight is above `WEIGHT_MAX`; a side that never occurs weighs 1.
    """
    masks = card.task == "segmentation"
    extra = 1 if card.exclusive and masks else 0
    if rule == "none" or "train" not in card.parts:
        ones = (1.0,) * (len(card.labels) + extra)
        return ones, ones
    shown, lacking = _amounts(card)
    if card.exclusive:
        classes = [max(0.0, card.parts["train"].known_px - sum(shown)), *shown] if masks else shown
        total, kinds = sum(classes), sum(n > 0 for n in classes)
        weights = tuple(min(WEIGHT_MAX, total / (kinds * n)) if n else 1.0 for n in classes)
        return weights, (1.0,) * len(weights)
    sums = [a + b for a, b in zip(shown, lacking)]
    return (
        tuple(min(WEIGHT_MAX, total / (2 * n)) if n else 1.0 for n, total in zip(shown, sums)),
        tuple(min(WEIGHT_MAX, total / (2 * n)) if n else 1.0 for n, total in zip(lacking, sums)),
    )
