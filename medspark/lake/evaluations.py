"""Rows of ``evaluations`` into the lake: staged in files while they are made, then put in the place of an earlier evaluation of the same."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medspark.lake.files import DataFile
from medspark.lake.store import Lake
from medspark.tables.rows import Rows

TABLE = "evaluations"


@dataclass
class Evaluations:
    """Collects rows of one evaluation. Final."""

    lake: Lake
    run_id: str
    batch_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    rows: int = 0
    _files: list[DataFile] = field(default_factory=list)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a file that nobody sees yet."""
        batch = Rows.of(TABLE, rows).to_arrow(self.run_id, self.batch_id)
        file = self.lake.write_file(TABLE, [batch], f"part-{self.batch_id}-{len(self._files)}.parquet")
        self._files += [file] if file else []
        self.rows += len(rows)

    def commit(self, model_uri: str, feed: str, feed_version: int, part: str) -> None:
        """One transaction: what was there of this model, feed version and part goes, the new rows come."""
        same = {"model_uri": model_uri, "feed": feed, "part": part}

        def without(rows: pa.Table) -> pa.Table:
            old = pc.equal(rows.column("feed_version"), feed_version)
            for name, value in same.items():
                old = pc.and_(old, pc.equal(rows.column(name), value))
            return rows.filter(pc.invert(old)) if pc.any(old).as_py() else rows

        self.lake.ensure([TABLE])
        self.lake.rewrite(TABLE, without, "model_uri", [model_uri], lambda: self._files)
