"""Encoded rows to batches: every image is decoded straight into its place in the batch's array, by all cores.

Threads, not processes (docs/decisions/0024): the decoders let go of the interpreter's lock. blosc2's own ``decompress`` does too, but takes a lock
of its own (two threads are slower than one), so imagecodecs' is used, which opens a context a call.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from medspark.feed.card import Card, ImageSpec
from medspark.feed.pages import Stored
from medspark.feed.reader import BadRow, Batch
from medspark.feed.rows import unpack_masks
from medspark.keys import rng
from medspark.pixels.codecs import decode

if TYPE_CHECKING:
    from medspark.feed.augment import Augmentation

SPARE = 8  # arrays of one kind that are kept: those in work, and what the network's queue holds
ALIGNED = 64  # bytes
HELD_BY_POOL = 2  # references to an array that nobody else holds: the list's and the one that asks


Payload = bytes | memoryview | Stored


class Scratch(threading.local):
    """Memory of a thread for payloads that still lie in their files: used again, so that it stays in the core's cache."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def bytes(self, payload: Payload) -> bytes | memoryview:
        """The payload, until this thread asks for the next one. Raises ValueError and OSError as `Stored.read`."""
        if not isinstance(payload, Stored):
            return payload
        if payload.size > len(self._memory):
            self._memory = memoryview(bytearray(payload.size * 5 // 4))
        return payload.read(self._memory)


@dataclass(frozen=True)
class Rows:
    """Encoded samples of one row group, ``n`` of them.

    targets : (n, L) float32; weights : (n,) float32; masks, images : n payloads
    """

    row_ids: Sequence[str]
    targets: np.ndarray
    weights: np.ndarray
    masks: Sequence[Payload]
    images: Sequence[Payload]

    def __len__(self) -> int:
        return len(self.row_ids)

    def part(self, start: int, stop: int) -> Rows:
        taken = slice(start, stop)
        return Rows(self.row_ids[taken], self.targets[taken], self.weights[taken], self.masks[taken], self.images[taken])

    def drawn(self, order: np.ndarray) -> Rows:
        """Its rows in another order; payloads are not copied."""
        places = order.tolist()
        return Rows(
            [self.row_ids[place] for place in places],
            self.targets[order],
            self.weights[order],
            [self.masks[place] for place in places],
            [self.images[place] for place in places],
        )


def joined(parts: Sequence[Rows]) -> Rows:
    """All rows of the parts, in order; at least one part. Payloads are not copied."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        [row_id for part in parts for row_id in part.row_ids],
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.weights for part in parts]),
        [mask for part in parts for mask in part.masks],
        [image for part in parts for image in part.images],
    )


def cores() -> int:
    """Cores that this process may use: a rank that is pinned to one gets one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_into(out: np.ndarray, data: bytes | memoryview, image: ImageSpec) -> None:
    """Fills ``out`` (image.shape, C order); ValueError where the bytes hold another image."""
    if image.codec == "blosc2":
        import imagecodecs

        flat: Any = out.reshape(-1).view(np.uint8)
        try:
            got: Any = imagecodecs.blosc2_decode(cast(Any, data), numthreads=1, out=flat)
        except imagecodecs.Blosc2Error as error:
            raise ValueError(str(error)) from None
        if len(got) != len(flat):
            raise ValueError(f"payload holds {len(got)} bytes, {image.dtype}{image.shape} needs {len(flat)}")
    elif image.codec == "jpeg":
        import simplejpeg

        colours = "GRAY" if image.shape[-1] == 1 else "RGB"
        got = simplejpeg.decode_jpeg(data, colours, fastdct=False, fastupsample=False, buffer=out)
        if got.shape != image.shape:
            raise ValueError(f"payload decodes to {got.shape}, the card says {image.shape}")
    else:
        stored = image.shape[:-1] if image.shape[-1] == 1 else image.shape
        out[...] = decode(bytes(data), image.codec, image.dtype, stored).reshape(image.shape)


class Arrays:
    """Memory of batches, used again once nobody holds a batch or a view of it any more.

    A new array of some megabytes comes from the kernel page by page, each page cleared first: a quarter of the time that decoding into it takes.
    Memory is free when its only reference is the pool's (a view keeps it alive, and so does a tensor that shares it). It begins on a cache line:
    TensorFlow shares such arrays and copies others (``EIGEN_MAX_ALIGN_BYTES``).
    """

    def __init__(self) -> None:
        self._made: dict[int, list[np.ndarray]] = {}

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """As ``numpy.empty``: what it holds is undefined."""
        size = prod(shape) * np.dtype(dtype).itemsize
        owner = self._owner(size)
        first = -owner.ctypes.data % ALIGNED
        return owner[first : first + size].view(dtype).reshape(shape)  # every view's base is the owner

    def _owner(self, size: int) -> np.ndarray:
        made = self._made.setdefault(size, [])
        for place in range(len(made)):
            if sys.getrefcount(made[place]) == HELD_BY_POOL:
                return made[place]
        owner = np.empty(size + ALIGNED, np.uint8)
        if len(made) < SPARE:
            made.append(owner)
        return owner


class Pending:
    """A batch that is being filled."""

    def __init__(self, batch: Batch, tasks: Sequence[Future[None]]) -> None:
        self._batch = batch
        self._tasks = tasks

    def finish(self) -> Batch:
        """Waits; raises what a task raised."""
        for task in self._tasks:
            task.result()
        return self._batch

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class Decoder:
    """Fills batches on ``workers`` threads. What comes out does not depend on their number."""

    def __init__(
        self,
        card: Card,
        workers: int | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
        bad_rows: Literal["stop", "skip"] = "stop",
    ) -> None:
        self.workers = workers or cores()
        self.bad: dict[str, str] = {}
        self._card = card
        self._augment = augment
        self._seed = seed
        self._skips = bad_rows == "skip"
        self._pool = ThreadPoolExecutor(self.workers, "decode")
        self._arrays = Arrays()
        self._scratch = Scratch()

    def start(self, rows: Rows, epoch: int | None) -> Pending:
        """Begins a batch. epoch : names the augmentation's randomness; None: not augmented."""
        image, n = self._card.image, len(rows)
        segments = self._card.task == "segmentation"
        batch = Batch(
            images=self._arrays.empty((n, *image.shape), image.dtype),
            masks=self._arrays.empty((n, *image.space, len(self._card.labels)), "uint8") if segments else None,
            known=self._arrays.empty((n, *image.space, 1), "uint8") if segments else None,
            targets=rows.targets,
            weights=rows.weights,
            row_ids=tuple(rows.row_ids),
        )
        places = iter(range(n))  # shared by the tasks, so that rows of unequal cost even out
        return Pending(batch, [self._pool.submit(self._fill, batch, rows, places, epoch) for _ in range(min(self.workers, n))])

    def _fill(self, batch: Batch, rows: Rows, places: Iterator[int], epoch: int | None) -> None:
        for at in places:
            try:
                self._sample(batch, at, rows.images[at], rows.masks[at])
            except ValueError as error:
                if not self._skips:
                    raise BadRow(batch.row_ids[at], str(error)) from None
                self.bad[batch.row_ids[at]] = str(error)
                self._blank(batch, at)
                continue
            if self._augment is not None and epoch is not None:
                masks, known = (None, None) if batch.masks is None or batch.known is None else (batch.masks[at], batch.known[at])
                self._augment.apply(batch.images[at], masks, known, rng(self._seed, "augment", epoch, batch.row_ids[at]))

    def _sample(self, batch: Batch, at: int, image: Payload, mask: Payload) -> None:
        decode_into(batch.images[at], self._scratch.bytes(image), self._card.image)
        if batch.masks is not None and batch.known is not None:
            labels, known = unpack_masks(self._scratch.bytes(mask), len(self._card.labels), self._card.image.space)
            batch.masks[at] = np.moveaxis(labels, 0, -1)
            batch.known[at, ..., 0] = known

    @staticmethod
    def _blank(batch: Batch, at: int) -> None:
        batch.images[at] = 0
        batch.targets[at] = np.nan
        batch.weights[at] = 0
        if batch.masks is not None and batch.known is not None:
            batch.masks[at] = 0
            batch.known[at] = 0

    def metrics(self) -> Mapping[str, float]:
        return {"reader/bad_rows": float(len(self.bad))}

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
