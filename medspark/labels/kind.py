"""Annotations as a kind of data: scan tells the format, plan makes one unit per file, explode yields rows of ``regions`` and ``planes``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.config import Config
from medspark.errors import BadRequest, Rejected, SkippedSource
from medspark.keys import Ids
from medspark.labels.codebook import Codebook, read_codebook
from medspark.labels.formats import FORMATS, reader
from medspark.labels.formats.sniff import sniff
from medspark.labels.pairs import Pairs, read_pairs
from medspark.labels.regions import Context, Item, MaskPlane, Region
from medspark.tables.catalog import REGIONS
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import Plan, SourceFile, Unit, Watch

CHUNK_BYTES = 32 << 20
"""Rows are handed over in pieces of about this size."""
MAX_REJECTIONS = 100
"""Bad shapes of one file that get a row each; the rest is one row with their number."""
SECONDS_PER_MB = 0.5
"""Cost of a file, roughly: XML and JSON parse at 2 to 5 MB/s, masks inflate faster."""


@dataclass(frozen=True)
class LabelsKind:
    """The `medspark.tables.work.Kind` of ``import_labels``."""

    format: str = "auto"
    pairs: Pairs = Pairs()
    classes: Codebook = Codebook()
    explicit_dataset: bool = False
    job: str = "import_labels"
    source_kind: str = "annotation"
    sections: tuple[str, ...] = ("labels", "deid")
    archives: bool = True

    @property
    def fingerprint(self) -> str:
        """What changes this job's rows besides its config sections: the options and the contents of their files."""
        return repr((self.format, sorted(self.pairs.images.items()), self.classes.entries, self.explicit_dataset))

    def scan(self, path: str, uri: str, ids: Ids, settings: Config) -> dict[str, Any]:
        found = sniff(path, self._context(uri, "", ids, settings))
        if self.format not in ("auto", found["format"]):
            raise SkippedSource(f"a {found['format']} file, and --format {self.format} was asked for")
        return dict(found)

    def plan(self, files: list[SourceFile], ids: Ids, settings: Config) -> Plan:
        units = tuple(
            Unit(file.source_id, (file.bare(),), cost=0.01 + SECONDS_PER_MB * file.size_bytes / 1e6, images=0, work=file.header["format"])
            for file in files
        )
        return Plan(units=units)

    def explode(self, unit: Unit, ids: Ids, settings: Config, watch: Watch) -> Iterator[Rows | Rejection]:
        for source in unit.sources:
            context = self._context(source.uri, source.dataset, ids, settings, lambda what="", source=source: watch(source, what))
            yield from self._rows(source, str(unit.work), context)

    def _rows(self, source: SourceFile, name: str, context: Context) -> Iterator[Rows | Rejection]:
        regions: list[tuple[int, Region]] = []
        planes: list[tuple[int, MaskPlane]] = []
        n_bytes = index = n_bad = 0
        bad: Rejected | None = None
        try:
            for item in _items(source, name, context):
                if isinstance(item, Rejected):
                    n_bad, bad = n_bad + 1, item
                    if n_bad <= MAX_REJECTIONS:
                        yield _rejection(source, item.code, f"shape {index}: {item.reason}")
                elif isinstance(item, Region):
                    regions.append((index, item))
                    n_bytes += item.n_bytes
                else:
                    planes.append((index, item))
                    n_bytes += item.n_bytes
                index += 1  # bad shapes count, so that the ids of the others do not depend on them
                if n_bytes >= CHUNK_BYTES:
                    yield from self._flush(regions, planes, source, context)
                    regions, planes, n_bytes = [], [], 0
        except Rejected as error:
            yield _rejection(source, error.code, error.reason)
        yield from self._flush(regions, planes, source, context)
        if bad is not None and n_bad > MAX_REJECTIONS:
            yield _rejection(source, bad.code, f"{n_bad - MAX_REJECTIONS} more shapes of the file were refused")

    def _flush(
        self, regions: list[tuple[int, Region]], planes: list[tuple[int, MaskPlane]], source: SourceFile, context: Context
    ) -> Iterator[Rows]:
        dataset = source.dataset if self.explicit_dataset else None
        if regions:
            columns = _columns("region", regions, source, context.ids, dataset)
            columns["rings"] = rings_array([item.rings for _, item in regions])
            columns["properties"] = [list(item.properties.items()) for _, item in regions]
            yield Rows("regions", columns)
        if planes:
            yield Rows("planes", _columns("plane", planes, source, context.ids, dataset))

    def _context(self, uri: str, dataset: str, ids: Ids, settings: Config, watch: Any = None) -> Context:
        context = Context(ids, settings, uri, dataset, self.explicit_dataset, self.classes, self.pairs)
        return context if watch is None else Context(**{**context.__dict__, "watch": watch})


def labels_kind(
    format: str = "auto", pairs: str | Path | None = None, classes: str | Path | None = None, explicit_dataset: bool = False
) -> LabelsKind:
    """The kind for the options of ``import_labels``; raises `BadRequest` for an unknown format or a file that cannot be read."""
    if format != "auto" and format not in FORMATS:
        raise BadRequest(f"--format {format}: expected auto, {', '.join(FORMATS)}")
    return LabelsKind(
        format,
        read_pairs(pairs) if pairs is not None else Pairs(),
        read_codebook(classes) if classes is not None else Codebook(),
        explicit_dataset,
    )


LABELS = LabelsKind()
"""``import_labels`` without options."""


def _items(source: SourceFile, name: str, context: Context) -> Iterator[Item]:
    with source.opened() as path:
        yield from reader(name)(path, context)


def rings_array(rings: Sequence[tuple[np.ndarray, ...]]) -> pa.Array:
    """Column ``regions.rings`` from arrays (n, 2 or 3), without a Python object per point."""
    dtype = REGIONS.arrow().field("rings").type
    flat = [ring for one in rings for ring in one]
    places = np.concatenate(flat_xyz) if (flat_xyz := [_xyz(ring) for ring in flat]) else np.zeros((0, 3))
    missing = np.concatenate([np.full(len(ring), ring.shape[1] == 2) for ring in flat]) if flat else np.zeros(0, bool)
    columns = [pa.array(places[:, 0]), pa.array(places[:, 1]), pa.array(places[:, 2], mask=missing)]
    structs = pa.StructArray.from_arrays(columns, fields=list(dtype.value_type.value_type))
    inner = pa.array(np.cumsum([0, *map(len, flat)]), pa.int32())
    outer = pa.array(np.cumsum([0, *map(len, rings)]), pa.int32())
    lists = pa.ListArray.from_arrays(inner, structs, type=dtype.value_type)
    return pa.ListArray.from_arrays(outer, lists, type=dtype)


def _xyz(ring: np.ndarray) -> np.ndarray:
    return ring if ring.shape[1] == 3 else np.column_stack([ring, np.zeros(len(ring))])


def _columns(what: str, items: Sequence[tuple[int, Any]], source: SourceFile, ids: Ids, dataset: str | None) -> dict[str, Any]:
    names = [one.name for one in fields(items[0][1]) if one.name not in ("rings", "properties")]
    return {
        f"{what}_id": [ids.digest(what, source.source_id, index) for index, _ in items],
        "source_id": [source.source_id] * len(items),
        "ref_dataset": [dataset] * len(items),
        **{name: [getattr(item, name) for _, item in items] for name in names},
    }


def _rejection(source: SourceFile, code: str, message: str) -> Rejection:
    return Rejection(source.source_id, source.uri, "explode", code, message)
