"""U-Net (Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28) with same-size convolutions: images or volumes in, a logit per label and pixel out.

Two and a half dimensions are neighbouring slices as channels. Sizes that the levels don't divide are padded with the channels' means and cut
again, so that masks come out as large as images went in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medspark.train.layers import SCORE, activated, convolution, halving, images, normal
from medspark.train.network import Network


def padding(space: Sequence[int], depth: int) -> tuple[tuple[int, int], ...]:
    """(before, after) per axis, px, such that each level divides the padded size."""
    factors, sides = [1] * len(space), list(space)
    for _ in range(depth - 1):
        shrink = halving(sides)
        factors = [factor * by for factor, by in zip(factors, shrink)]
        sides = [-(-side // by) for side, by in zip(sides, shrink)]
    lacking = [-side % factor for side, factor in zip(space, factors)]
    return tuple((lack // 2, lack - lack // 2) for lack in lacking)


def block(network: Network, x: Any, channels: int) -> Any:
    """Two convolutions; with ``residual`` their input is added to their output (He et al. 2016, arXiv:1512.03385)."""
    from tensorflow.keras import layers

    first = activated(network, x, channels)
    if not network.residual:
        return activated(network, first, channels)
    second = normal(network, convolution(network, first, channels, bias=network.norm == "none"))
    skip = x if x.shape[-1] == channels else convolution(network, x, channels, side=1, bias=False)
    return layers.ReLU()(layers.Add()([second, skip]))


def build(network: Network) -> Any:
    """Keras model (B, *space, C) float32 feed values -> (B, *space, outputs) float32 logits."""
    import tensorflow as tf
    from tensorflow.keras import layers

    flat = len(network.space) == 2
    pad, crop = (layers.ZeroPadding2D, layers.Cropping2D) if flat else (layers.ZeroPadding3D, layers.Cropping3D)
    pool, enlarge = (layers.MaxPooling2D, layers.UpSampling2D) if flat else (layers.MaxPooling3D, layers.UpSampling3D)
    given, x = images(network)
    margin = padding(network.space, network.depth)
    if any(map(any, margin)):
        x = pad(margin)(x)
    sides = [side + before + after for side, (before, after) in zip(network.space, margin)]
    fine: list[tuple[Any, tuple[int, ...]]] = []
    for level in range(network.depth - 1):
        x = block(network, x, network.width << level)
        by = halving(sides)
        fine.append((x, by))
        x = pool(by)(x)
        sides = [side // shrink for side, shrink in zip(sides, by)]
    x = block(network, x, network.width << (network.depth - 1))
    if network.dropout:
        x = layers.Dropout(network.dropout)(x)
    for level, (skip, by) in reversed(list(enumerate(fine))):
        x = activated(network, enlarge(by)(x), network.width << level)
        x = block(network, layers.Concatenate()([skip, x]), network.width << level)
    x = convolution(network, x, network.outputs, side=1, name=SCORE)
    if any(map(any, margin)):
        x = crop(margin)(x)
    return tf.keras.Model(given, layers.Activation("linear", dtype="float32", name="logits")(x), name="unet")
