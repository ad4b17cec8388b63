"""The lake that the tests of reading share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lake import reading


@pytest.fixture(scope="session")
def built(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> reading.Built:
    return reading.build(spark, tmp_path_factory.mktemp("reading"))
