"""What the pure explodes yield: columns of rows for a table, or a rejection. The engine alone knows where they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from medspark.tables.catalog import TABLES

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
                array = values if isinstance(values, pa.Array) else pa.array(values, field.type, from_pandas=False)
                if array.type != field.type:
                    array = array.cast(field.type)
            else:
                array = pa.nulls(count, field.type)
            if array.null_count and not field.nullable:
                raise ValueError(f"{self.table}.{field.name} is null in {array.null_count} of {count} rows")
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


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
