"""Probabilities over an image of any size from a network that sees windows of one size. Pure.

Windows overlap; each counts less towards its rims, where a network sees little of the surroundings, and the weights of a pixel sum to 1. So the stitched
result of a network that looks at single pixels equals the network on the whole image. Rows leave from the top as soon as no further window
meets them: memory holds one window's height, however tall the image is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np

from medspark.feed.sample import cut, grid

OVERLAP = 0.25  # of a window's side, between neighbours
Network = Callable[[np.ndarray], np.ndarray]
"""(B, rows, cols, C) -> (B, rows, cols, L), of one size in and out."""


def strides(window: tuple[int, int], overlap: float = OVERLAP) -> tuple[int, int]:
    """(rows, cols) px from window to window. ValueError for an overlap outside 0 .. 0.9."""
    if not 0.0 <= overlap <= 0.9:
        raise ValueError(f"overlap {overlap}: expected 0 to 0.9 of a window's side")
    return max(1, round(window[0] * (1 - overlap))), max(1, round(window[1] * (1 - overlap)))


def weights(window: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """(rows, cols) float32 > 0: 1 inside, falling towards the rims over what neighbours share."""

    def ramp(side: int, step: int) -> np.ndarray:
        shared = max(side - step, 0) + 1
        place = np.arange(side)
        return np.minimum(1.0, np.minimum(place + 1, side - place) / shared)

    return np.outer(ramp(window[0], stride[0]), ramp(window[1], stride[1])).astype(np.float32)


def stripes(
    image: np.ndarray, window: tuple[int, int], network: Network, overlap: float = OVERLAP, batch: int = 8
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, (n, cols, L) float32), from the top to the bottom of the image, without gaps.

    image : (rows, cols, C); one smaller than the window is filled up by its edge pixels, and cut again
    batch : windows in one call of the network
    """
    size, stride = (image.shape[0], image.shape[1]), strides(window, overlap)
    if size[0] <= window[0] and size[1] <= window[1]:  # one window: the network's own answer, not divided by its own weights
        yield 0, np.asarray(network(cut(image, 0, 0, window)[None])[0, : size[0], : size[1]], np.float32)
        return
    weight = weights(window, stride)[..., None]
    wide = max(size[1], window[1])
    sums: np.ndarray | None = None  # of the rows from `top` on
    total = np.zeros((window[0], wide, 1), np.float32)
    top = 0
    for row0, corners in groupby(grid(size, window, stride), key=lambda corner: corner[0]):
        if sums is not None and row0 > top:
            yield from _finished(sums, total, top, row0 - top, size)
            sums, total = _moved(sums, row0 - top), _moved(total, row0 - top)
        top = row0
        columns = [col0 for _, col0 in corners]
        for start in range(0, len(columns), batch):
            here = columns[start : start + batch]
            found = network(np.stack([cut(image, row0, col0, window) for col0 in here]))
            if sums is None:
                sums = np.zeros((window[0], wide, found.shape[-1]), np.float32)
            for col0, one in zip(here, found, strict=True):
                sums[:, col0 : col0 + window[1]] += one * weight
                total[:, col0 : col0 + window[1]] += weight
    assert sums is not None  # a grid has one window at least
    yield from _finished(sums, total, top, window[0], size)


def stitched(image: np.ndarray, window: tuple[int, int], network: Network, overlap: float = OVERLAP, batch: int = 8) -> np.ndarray:
    """(rows, cols, L) float32 of the whole image; arguments as `stripes`."""
    return np.concatenate([rows for _, rows in stripes(image, window, network, overlap, batch)])


def _finished(sums: np.ndarray, total: np.ndarray, top: int, rows: int, size: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    rows = min(rows, size[0] - top)
    if rows > 0:
        yield top, sums[:rows, : size[1]] / total[:rows, : size[1]]


def _moved(kept: np.ndarray, rows: int) -> np.ndarray:
    """What is left after the first rows are done, with zeros below."""
    after = np.zeros_like(kept)
    if rows < len(kept):
        after[: len(kept) - rows] = kept[rows:]
    return after
