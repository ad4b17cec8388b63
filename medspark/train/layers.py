"""The few layers that the networks share, in two dimensions or three."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medspark.train.network import Network

GROUP_CHANNELS = 8  # channels that are normalised together, where the width allows it (Wu and He 2018, doi:10.1007/978-3-030-01261-8_1)
SCORE = "score"  # name of the last layer with weights: its biases begin at what is known before any image is seen
FEW_SLICES = 8  # a volume with fewer is not halved along its slices: it is thick there already


def images(network: Network) -> tuple[Any, Any]:
    """(input of feed values (B, *space, C), the same as (x - mean) / std)."""
    from tensorflow.keras import layers

    given = layers.Input((*network.space, network.channels), name="image", dtype="float32")
    scale = [1.0 / value for value in network.std]
    offset = [-mean / value for mean, value in zip(network.mean, network.std)]
    return given, layers.Rescaling(scale, offset, name="standardise", dtype="float32")(given)


def convolution(
    network: Network, x: Any, channels: int, stride: Sequence[int] | int = 1, side: int = 3, bias: bool = True, name: str | None = None
) -> Any:
    """``stride``: per axis; a short volume is not strided along its slices."""
    from tensorflow.keras import layers

    kind = layers.Conv3D if len(network.space) == 3 else layers.Conv2D
    return kind(channels, side, stride, padding="same", use_bias=bias, kernel_initializer="he_normal", name=name)(x)


def normal(network: Network, x: Any) -> Any:
    """Group normalisation knows one sample at a time, so that what a rank computes does not depend on how samples fell into batches."""
    from tensorflow.keras import layers

    if network.norm == "none":
        return x
    if network.norm == "batch":
        return layers.BatchNormalization(momentum=0.9)(x)
    channels = x.shape[-1]
    groups = max(1, channels // GROUP_CHANNELS)
    while channels % groups:
        groups -= 1
    return layers.GroupNormalization(groups, epsilon=1e-5)(x)


def activated(network: Network, x: Any, channels: int, stride: Sequence[int] | int = 1) -> Any:
    """Convolution, normalisation, ReLU."""
    from tensorflow.keras import layers

    return layers.ReLU()(normal(network, convolution(network, x, channels, stride, bias=network.norm == "none")))


def halving(space: Sequence[int]) -> tuple[int, ...]:
    """By how much each axis shrinks at the next level."""
    return tuple(1 if axis == len(space) - 3 and side < FEW_SLICES else 2 for axis, side in enumerate(space))
