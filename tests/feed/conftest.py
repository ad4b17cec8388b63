"""The lake that the tests of feeds share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.feed import lakes


@pytest.fixture(scope="session")
def filled(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lakes.fill(spark, tmp_path_factory.mktemp("feeds"))
