"""One Spark session per test process, bounded in cores and memory; a configuration folder of the tests' own."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="medspark-tests-")  # the de-identification key of the tests
KEY = bytes(range(32))
"""One key for jobs that are programs and for those within the process: they write into one lake, which knows its key."""
_key_file = Path(os.environ["XDG_CONFIG_HOME"]) / "medspark" / "deid.key"
_key_file.parent.mkdir(mode=0o700)
_key_file.write_text(KEY.hex())
_key_file.chmod(0o600)
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # workers import test kinds
os.environ.setdefault("MEDSPARK_MASTER", "local[2,4]")
os.environ.setdefault("PYSPARK_SUBMIT_ARGS", "--driver-memory 2g pyspark-shell")
os.environ["PYSPARK_PYTHON"] = sys.executable


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    """The test process's Spark session (``local[2]``, a task is tried four times, 2 GB)."""
    from medspark.lake import session

    built = session.build("medspark tests")
    yield built
    built.stop()


@pytest.fixture(scope="session")
def demo_folder(spark: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` leaves behind from its embedded files, without the training; what it said is in ``said.txt``."""
    import io

    from rich.console import Console

    from medspark.demo import run, samples

    out, said = tmp_path_factory.mktemp("demo") / "demo", io.StringIO()
    assert run(str(out), samples.EMBEDDED, spark, Console(file=said, width=140), train=False) == 0  # type: ignore[arg-type]
    (out / "said.txt").write_text(said.getvalue())
    return out
