"""The images that labels may belong to, how a reference finds them, and what was found off on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from medspark.labels.label_rows import Group, column
from medspark.tables.rows import Rejection
from medspark.tables.work import SourceFile


class Images:
    """Slices of a series, or photos, by the names that ``ref_image`` calls them (medspark/labels/pairs.py)."""

    def __init__(self, slices: pa.Table) -> None:
        self.ids: list[str] = column(slices, "image_id")
        self.every = list(range(len(self.ids)))
        self._frames = column(slices, "frame_number")
        self._folders = column(slices, "folder_token")
        self._index = {name: _index(column(slices, name)) for name in ("image_id", "sop_instance_id", "file_token")}

    def of(self, ref: str) -> list[int]:
        """The images that a reference names one by one, empty where an instance is not here; all where it names what holds them."""
        kind, _, rest = ref.partition(":")
        if kind == "sop":
            sop, _, frame = rest.partition("#")
            found = self._index["sop_instance_id"].get(sop, [])
            return found if frame in ("", "0") else [at for at in found if self._frames[at] == int(frame)]
        if kind == "image":
            return self._index["image_id"].get(rest) or self.every
        if kind == "name":
            return self._index["file_token"].get(rest) or self.every
        if kind == "path":
            folder, _, stem = rest.partition("/")
            named = self._index["file_token"].get(stem, [])
            return [at for at in named if self._folders[at] == folder] or named or self.every
        return self.every


def _index(values: list[str | None]) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {}
    for at, value in enumerate(values):
        found.setdefault(value, []).append(at)
    return found


@dataclass
class Structures:
    """Counts of what was judged and what was off, per structure (label, instance_key), in the order of the file."""

    total: dict[tuple[str, str | None], int] = field(default_factory=dict)
    off: dict[tuple[str, str | None], list[tuple[str, float]]] = field(default_factory=dict)

    def count(self, group: Group) -> None:
        key = (group.label, group.instance_key)
        self.total[key] = self.total.get(key, 0) + 1

    def fault(self, group: Group, code: str, off_mm: float = float("nan")) -> None:
        self.off.setdefault((group.label, group.instance_key), []).append((code, off_mm))

    def bad(self, group: Group) -> bool:
        return (group.label, group.instance_key) in self.off

    def rejections(self, source: SourceFile) -> Iterator[Rejection]:
        """One per structure of which anything was off; its number in the file stands for its name."""
        for number, (key, total) in enumerate(self.total.items(), start=1):
            faults = self.off.get(key)
            if faults:
                size = all(code == "LABEL_SIZE" for code, _ in faults)
                how = "of another size than their images" if size else "off the images that they belong to"
                far = [off for _, off in faults if np.isfinite(off)]
                distance = f", by up to {max(far):.2f} mm" if far else ""
                reason = f"structure {number}: {len(faults)} of {total} contours or planes are {how}{distance}; none of it is used"
                yield Rejection(source.source_id, source.uri, "link", "LABEL_SIZE" if size else "LABEL_GEOMETRY", reason)
