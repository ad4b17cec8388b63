"""What a network is, as data: enough to build it again anywhere. `unet.build` and `resnet.build` turn it into Keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from medspark.config import Train
from medspark.feed.card import Card

Norm = Literal["group", "batch", "none"]
Precision = Literal["float32", "bfloat16", "float16"]
COARSEST_PX = {"segmentation": 8, "classification": 4}  # an image is halved while its shorter side stays at least this
DEEPEST = 5  # levels that the image's size asks for at most; more can be asked for by number
MIN_STD = 1e-6  # a channel that is constant in training is only shifted


@dataclass(frozen=True)
class Network:
    """A network's shape. Two equal ones have equal lists of weights.

    space : (rows, cols) or (slices, rows, cols), px      weights don't depend on it
    mean, std : per channel, in feed values               the first layer makes (x - mean) / std
    outputs : channels of the last layer: one per label; for exclusive masks one more, the background, first
    """

    task: Literal["segmentation", "classification"]
    space: tuple[int, ...]
    channels: int
    labels: int
    exclusive: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int
    depth: int
    blocks: int
    residual: bool
    norm: Norm
    dropout: float
    precision: Precision = "float32"

    @property
    def outputs(self) -> int:
        return self.labels + (self.exclusive and self.task == "segmentation")

    def at(self, space: Sequence[int]) -> Network:
        """The same network for images of another size."""
        return replace(self, space=tuple(int(side) for side in space))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse(said: dict[str, Any]) -> Network:
    """Inverse of `Network.to_dict`, also through JSON."""
    return Network(**{**said, **{name: tuple(said[name]) for name in ("space", "mean", "std")}})


def of(card: Card, train: Train) -> Network:
    """The network that a feed's card and the settings ask for."""
    return Network(
        task=card.task,
        space=card.image.space,
        channels=card.image.shape[-1],
        labels=len(card.labels),
        exclusive=card.exclusive,
        mean=card.mean,
        std=tuple(max(value, MIN_STD) for value in card.std),
        width=train.width,
        depth=train.depth or levels(card.image.space, COARSEST_PX[card.task]),
        blocks=train.blocks,
        residual=train.residual,
        norm=train.norm,
        dropout=train.dropout,
        precision=train.precision,
    )


def levels(space: Sequence[int], coarsest_px: int) -> int:
    """How often an image of this size can be halved, plus one: down to 8 px, 28 px -> 2, 64 -> 4, 128 and more -> 5."""
    side, count = min(space[-2:]), 1
    while side // 2 >= coarsest_px and count < DEEPEST:
        side, count = side // 2, count + 1
    return count


def build(network: Network) -> Any:
    """The Keras model: feed values in, logits out, float32 whatever the precision inside."""
    import tensorflow as tf

    from medspark.train import resnet, unet

    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("float32" if network.precision == "float32" else f"mixed_{network.precision}")
    try:
        return (unet if network.task == "segmentation" else resnet).build(network)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
