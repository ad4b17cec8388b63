"""Whether a run fits before it starts: bytes of weights, activations and batches against what a rank may use."""

from __future__ import annotations

import logging
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medspark.config import Train
from medspark.errors import BadRequest
from medspark.feed.card import Card
from medspark.train.network import Network

log = logging.getLogger("medspark.train")

RUNTIME_BYTES = 700 << 20  # TensorFlow, Horovod, Arrow and Python themselves: 0.5 GiB before the first step on a CPU
BATCHES_AHEAD = 4  # decoded and waiting, in the reader, the loop and TensorFlow
SLOTS = {"adam": 2, "adamw": 2, "sgd": 1}  # copies of the weights that an optimiser keeps
BACKWARD = 1.25  # outputs kept for the way back, and the gradients of the largest of them; 1 was seen on a CPU (docs/training.md)
MiB = 1 << 20


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank. weights : with gradients and the optimiser's slots"""

    weights: int
    activations: int
    batches: int
    runtime: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.batches + self.runtime

    def __str__(self) -> str:
        said = f"weights {self.weights // MiB}, activations {self.activations // MiB}, batches {self.batches // MiB}, runtime {self.runtime // MiB}"
        return f"{self.total / 2**30:.1f} GiB ({said} MiB)"


def estimate(model: Any, network: Network, card: Card, batch_size: int, train: Train, on_gpu: bool = False) -> Estimate:
    """Of a training step. Activations are the outputs of all layers: an upper bound of what was seen to be used (docs/training.md)."""
    wide = 4 if network.precision == "float32" else 2
    outputs = 0
    for layer in model.layers:
        shape = layer.output_shape[0] if isinstance(layer.output_shape, list) else layer.output_shape
        size = 1
        for side in shape[1:]:
            size *= int(side)
        outputs += size
    pixels = 1
    for side in network.space:
        pixels *= side
    item = {"uint8": 1, "int16": 2, "float32": 4}[card.image.dtype]
    sample = pixels * (network.channels * item + (network.labels + 1) * (network.task == "segmentation"))
    return Estimate(
        weights=model.count_params() * 4 * (2 + SLOTS[train.optimizer] + (train.accumulate > 1)),
        activations=int(outputs * wide * batch_size * BACKWARD),
        batches=sample * batch_size * (1 if on_gpu else BATCHES_AHEAD),
        runtime=RUNTIME_BYTES,
    )


def available(ranks_here: int, gpu: bool = False) -> int:
    """Bytes that one of ``ranks_here`` ranks may use: of its GPU, else of what the machine and this control group have free."""
    if gpu:
        asked = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.split()
        return min(int(word) for word in said) * MiB
    free = _meminfo("MemAvailable")
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            folder = Path("/sys/fs/cgroup")
            free = min(free, int((folder / limit).read_text()) - int((folder / used).read_text()))
        except (OSError, ValueError):
            continue  # no such hierarchy, or "max"
    return max(0, free) // max(1, ranks_here)


def _meminfo(name: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check(needed: Estimate, free: int, train: Train) -> None:
    """Raises `BadRequest` (or warns, by ``train.memory_check``) where a rank needs more than it has."""
    limit = int(train.memory_gib * 2**30) or free
    if needed.total <= limit:
        return
    text = (
        f"a rank needs about {needed} and has {limit / 2**30:.1f} GiB; take a smaller --batch-size with train.accumulate, a smaller "
        "train.width, or --set train.memory_check=warn to try it nevertheless"
    )
    if train.memory_check == "refuse":
        raise BadRequest(text)
    log.warning(text)
