"""A compact residual network (He et al. 2016, arXiv:1512.03385) for image-level labels: 28 px to 256 px and beyond, images or volumes."""

from __future__ import annotations

from typing import Any

from medspark.train.layers import SCORE, activated, convolution, halving, images, normal
from medspark.train.network import Network

LARGE_PX = 96  # a larger image is halved by the first convolution already


def block(network: Network, x: Any, channels: int, stride: tuple[int, ...]) -> Any:
    from tensorflow.keras import layers

    first = activated(network, x, channels, stride)
    second = normal(network, convolution(network, first, channels, bias=network.norm == "none"))
    changed = x.shape[-1] != channels or any(by > 1 for by in stride)
    skip = normal(network, convolution(network, x, channels, stride, side=1, bias=False)) if changed else x
    return layers.ReLU()(layers.Add()([second, skip]))


def build(network: Network) -> Any:
    """Keras model (B, *space, C) float32 feed values -> (B, labels) float32 logits."""
    import tensorflow as tf
    from tensorflow.keras import layers

    flat = len(network.space) == 2
    one = (1,) * len(network.space)
    given, x = images(network)
    sides = list(network.space)

    def shrink() -> tuple[int, ...]:
        nonlocal sides
        by = halving(sides)
        sides = [-(-side // factor) for side, factor in zip(sides, by)]
        return by

    x = activated(network, x, network.width, shrink() if min(sides[-2:]) > LARGE_PX else one)
    for level in range(network.depth):
        for number in range(network.blocks):
            x = block(network, x, network.width << level, shrink() if number == 0 and level else one)
    x = (layers.GlobalAveragePooling2D if flat else layers.GlobalAveragePooling3D)()(x)
    if network.dropout:
        x = layers.Dropout(network.dropout)(x)
    x = layers.Dense(network.outputs, name=SCORE)(x)
    return tf.keras.Model(given, layers.Activation("linear", dtype="float32", name="logits")(x), name="resnet")
