"""Real files beside the project, where they are present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("MEDSPARK_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def shared_data(relative: str = "") -> Path:
    """The path of a real file or folder; the test is skipped where the collection is not present."""
    path = ROOT / relative
    if not path.exists():
        pytest.skip(f"real data not present: {relative or 'the whole collection'}")
    return path
