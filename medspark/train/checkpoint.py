"""What a killed run goes on from: arrays and a state by global step, in the lake's own store, whole or not there.

A checkpoint is a folder of two files. The arrays come first, under their final name; the state comes last, by a rename, and holds the arrays'
sha256. A folder without a sound state is no checkpoint. Works on every file system that Arrow knows.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyarrow import fs as pafs

from medspark.lake.files import PRIVATE, locate

log = logging.getLogger("medspark.train")

ARRAYS, STATE = "arrays.npz", "state.json"


def run_folder(lake: str, run: str) -> str:
    """URI of what a run leaves in its lake."""
    return f"{lake.rstrip('/')}/{PRIVATE}/runs/{run}"


def put(folder: str, name: str, data: bytes) -> None:
    """Writes a file of a run; readers see the old one or the new one, never a part."""
    filesystem, root, _ = locate(folder)
    path = f"{root}/{name}"
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with filesystem.open_output_stream(temporary) as stream:
        stream.write(data)
    filesystem.move(temporary, path)


def get(folder: str, name: str) -> bytes | None:
    """A file of a run; None where there is none."""
    filesystem, root, _ = locate(folder)
    try:
        with filesystem.open_input_stream(f"{root}/{name}") as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        return None


def names(folder: str, under: str) -> list[str]:
    """Names in ``folder/under``, sorted; empty where there is no such folder."""
    filesystem, root, _ = locate(folder)
    found = filesystem.get_file_info(pafs.FileSelector(f"{root}/{under}", allow_not_found=True))
    return sorted(item.base_name for item in found)


@dataclass(frozen=True)
class Checkpoint:
    """step : updates made · arrays : by name · state : what JSON holds"""

    step: int
    arrays: Mapping[str, np.ndarray]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """Those of one run. ``folder`` : URI of the run's folder."""

    folder: str

    def save(self, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        raw = io.BytesIO()
        np.savez(raw, **arrays)  # type: ignore[arg-type]
        data = raw.getvalue()
        said = {"step": step, "arrays_sha256": hashlib.sha256(data).hexdigest(), "state": state}
        text = json.dumps(said)
        put(self.folder, f"checkpoints/{step}/{ARRAYS}", data)
        put(self.folder, f"checkpoints/{step}/{STATE}", text.encode())

    def steps(self) -> list[int]:
        """Steps that have a folder, ascending; one that was killed in the making among them."""
        return sorted(int(name) for name in names(self.folder, "checkpoints") if name.isdigit())

    def load(self, step: int) -> Checkpoint | None:
        """None where that checkpoint is missing, unfinished or damaged."""
        text = get(self.folder, f"checkpoints/{step}/{STATE}")
        data = get(self.folder, f"checkpoints/{step}/{ARRAYS}")
        if text is None or data is None:
            return None
        said = json.loads(text)
        if hashlib.sha256(data).hexdigest() != said["arrays_sha256"]:
            log.warning("checkpoint %d is damaged; an older one is taken", step)
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as packed:
            return Checkpoint(step, dict(packed), said["state"])

    def newest(self) -> Checkpoint | None:
        for step in reversed(self.steps()):
            if (found := self.load(step)) is not None:
                return found
        return None

    def prune(self, keep: int, best: int | None) -> None:
        """Removes all but the ``keep`` newest and ``best``; the state first, so that no half of one is ever taken for whole."""
        filesystem, root, _ = locate(self.folder)
        for step in self.steps()[:-keep]:
            if step != best:
                if get(self.folder, f"checkpoints/{step}/{STATE}") is not None:
                    filesystem.delete_file(f"{root}/checkpoints/{step}/{STATE}")
                filesystem.delete_dir(f"{root}/checkpoints/{step}")
