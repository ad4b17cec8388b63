"""CSV files that options name: read in one way, refused in one sentence."""

from __future__ import annotations

import csv
from pathlib import Path

from medspark.errors import BadRequest


def read_csv(option: str, path: str | Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """(columns, rows) of a UTF-8 CSV file with a header; `BadRequest` names the option where it is none."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns, rows = tuple(reader.fieldnames or ()), list(reader)
    except OSError:
        raise BadRequest(f"{option} {path}: cannot be read") from None
    except (UnicodeDecodeError, csv.Error):
        raise BadRequest(f"{option} {path}: not a CSV file in UTF-8") from None
    return columns, rows
