"""What a lake holds and what is going on in it: tables, versions, open and dead batches, rejections. Needs no Spark session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medspark.errors import BadRequest
from medspark.lake.batch import gone, open_batches
from medspark.lake.store import Lake
from medspark.tables.catalog import TABLES


@dataclass(frozen=True)
class Status:
    """tables : name -> {version, rows, files, bytes};  batches : open work with its state;  rejected : code -> rows"""

    lake: str
    tables: dict[str, dict[str, int]]
    batches: list[dict[str, Any]] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)


def status(uri: str) -> Status:
    """Reads the logs of all tables; raises `BadRequest` where there is no lake."""
    lake = Lake(None, uri)  # type: ignore[arg-type]  # reading needs the log only
    tables: dict[str, dict[str, int]] = {}
    for name in TABLES:
        snapshot = lake.snapshot(name)
        if snapshot is None:
            continue
        actions = lake.add_actions(name)
        assert actions is not None
        rows = [count or 0 for count in actions.column("num_records").to_pylist()] if actions.num_rows else []
        sizes = actions.column("size_bytes").to_pylist() if actions.num_rows else []
        tables[name] = {"version": snapshot.version(), "rows": sum(rows), "files": len(rows), "bytes": sum(sizes)}
    if not tables:
        raise BadRequest(f"--lake {uri}: no lake there")
    batches = []
    for batch_id, entry in open_batches(lake).items():
        until = entry["lease_until"]
        state = "stale" if gone(entry) else str(entry["state"])
        left = (until.astimezone(UTC) - datetime.now(UTC)).total_seconds() if isinstance(until, datetime) else 0.0
        batches.append(
            {"batch_id": batch_id, "run_id": entry["run_id"], "state": state, "claims": entry["sources"], "lease_s": round(left)}
        )
    statuses: Counter[str] = Counter()
    if "sources" in tables:
        for row in _counts(lake, "sources", ["job", "status"]):
            statuses[f"{row['job']}: {row['status']}"] += row["n"]
    codes: Counter[str] = Counter()
    for row in _counts(lake, "rejected", ["code"]) if "rejected" in tables else ():
        codes[row["code"]] += row["n"]
    return Status(lake.uri, tables, batches, dict(sorted(statuses.items())), dict(codes.most_common()))


def _counts(lake: Lake, table: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows by value of the columns, piece by piece (a ledger may have 21 million rows)."""
    for piece in lake.scan(table, columns, pc.scalar(True)):
        counted = pa.Table.from_batches([piece]).group_by(columns).aggregate([([], "count_all")])
        yield from counted.rename_columns([*columns, "n"] if counted.column_names[-1] == "count_all" else ["n", *columns]).to_pylist()


def render(found: Status) -> str:
    """The status as text for people."""
    lines = [f"lake {found.lake}", "", f"{'table':<12}{'version':>8}{'rows':>14}{'files':>8}{'size':>12}"]
    lines += [
        f"{name:<12}{entry['version']:>8}{entry['rows']:>14,}{entry['files']:>8,}{_size(entry['bytes']):>12}"
        for name, entry in found.tables.items()
    ]
    lines += ["", "batches: " + ("none open" if not found.batches else "")]
    for batch in found.batches:
        after = "the next job recovers it" if batch["state"] == "stale" else f"lease {batch['lease_s']} s"
        lines.append(f"  {batch['batch_id']}  {batch['state']:<7} {batch['claims']} claims, {after}")
    lines += ["", "sources:", *(f"  {name:<32}{count:>10,}" for name, count in found.sources.items())]
    lines += ["", "rejected: " + ("nothing" if not found.rejected else "")]
    lines += [f"  {code:<32}{count:>10,}" for code, count in found.rejected.items()]
    return "\n".join(lines)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
