"""What the pure explodes yield: columns of rows for a table, or a rejection. The engine alone knows where they go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.tables.catalog import TABLES

MAX_BINARY = (1 << 31) - 1  # 32-bit offsets

Stage = str  # "scan" | "plan" | "explode" | "link": where in the engine a source failed


@dataclass(frozen=True)
class Rows:
    """Rows of one table, column by column.

    columns : name -> list, numpy array or Arrow array, all of one length
        Nullable columns may be left out; ``run_id`` and ``batch_id`` always are (the engine writes them).
    """

    table: str
    columns: Mapping[str, Any]

    @classmethod
    def of(cls, table: str, records: Sequence[Mapping[str, Any]]) -> Rows:
        """From row dictionaries that share their keys."""
        names = list(records[0]) if records else []
        return cls(table, {name: [record[name] for record in records] for name in names})

    def __len__(self) -> int:
        for values in self.columns.values():
            return len(values)
        return 0

    def to_arrow(self, run_id: str, batch_id: str) -> pa.RecordBatch:
        """The record batch in the table's exact schema; raises ValueError where a column is unknown, missing or null against the schema."""
        table, count = TABLES[self.table], len(self)
        unknown = set(self.columns) - set(table.names)
        if unknown:
            raise ValueError(f"{self.table} has no column {sorted(unknown)}")
        schema, arrays = table.arrow(), []
        for field in schema:
            if field.name in ("run_id", "batch_id"):
                array = pa.array([run_id if field.name == "run_id" else batch_id] * count, field.type)
            elif field.name in self.columns:
                values = self.columns[field.name]
                if isinstance(values, pa.Array):
                    array = values
                elif pa.types.is_binary(field.type):
                    array = binary_array(values)
                else:
                    array = pa.array(values, field.type, from_pandas=False)
                if array.type != field.type:
                    array = array.cast(field.type)
            else:
                array = pa.nulls(count, field.type)
            if array.null_count and not field.nullable:
                raise ValueError(f"{self.table}.{field.name} is null in {array.null_count} of {count} rows")
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def binary_array(values: Sequence[bytes | None]) -> pa.Array:
    """An Arrow binary array by one join: a tenth of what ``pa.array`` costs on payloads (it grows its buffer blob by blob)."""
    if any(value is None for value in values):
        return pa.array(values, pa.binary())
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values if value is not None], out=offsets[1:])
    if offsets[-1] >= MAX_BINARY:
        raise ValueError(f"{offsets[-1]} bytes in one batch of a binary column; Arrow's limit is {MAX_BINARY}")
    data = b"".join(value for value in values if value is not None)
    return pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)])


@dataclass(frozen=True)
class Rejection:
    """A source (or a part of it) that did not become rows.

    code : one of `medspark.errors.REJECTION_CODES`
    message : one sentence without any header value
    images : how many images of the source are lost with it (0: the whole source, before its images were known)
    """

    source_id: str
    uri: str
    stage: Stage
    code: str
    message: str
    images: int = 0


def rejected_rows(
    rejections: Sequence[Rejection], dataset: Callable[[Rejection], str], address: Callable[[str], str], at: datetime
) -> Rows:
    """Rows of ``rejected``. ``dataset`` of a rejection's source; ``address``: uri -> what the lake keeps of it."""
    return Rows.of(
        "rejected",
        [
            {
                "source_id": item.source_id,
                "uri": address(item.uri),
                "dataset": dataset(item),
                "stage": item.stage,
                "code": item.code,
                "message": item.message,
                "rejected_at": at,
            }
            for item in rejections
        ],
    )
