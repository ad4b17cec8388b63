"""The process that workers are forked from: which pyspark it takes, what it has imported, that its children can work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyspark
import pytest

from medspark.lake import daemon

HOME = Path(pyspark.__file__).parent
ARCHIVES = [str(path) for path in (HOME / "python" / "lib").glob("*.zip")]


def test_the_installed_pyspark_wins_over_its_own_archive(monkeypatch):
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", [*ARCHIVES, *before])
    daemon.prefer_installed()
    assert len(ARCHIVES) >= 2 and sys.path == before


def test_another_sparks_archive_stays(monkeypatch, tmp_path):
    path = [str(tmp_path / "pyspark.zip"), *sys.path]
    monkeypatch.setattr(sys, "path", list(path))
    daemon.prefer_installed()
    assert sys.path == path


def test_without_an_installed_pyspark_the_archive_stays(monkeypatch):
    monkeypatch.setattr(sys, "path", list(ARCHIVES))
    daemon.prefer_installed()
    assert sys.path == ARCHIVES


@pytest.mark.parametrize("name", daemon.PRELOADED)
def test_what_is_preloaded_exists(name):
    __import__(name)


def test_a_child_of_it_computes_writes_and_encodes(tmp_path):
    """The libraries' threads do not survive a fork; a child must start its own."""
    code = f"""
import faulthandler, os
from medspark.lake import daemon
daemon.preload()
import blosc2, numpy, pyarrow, pyarrow.parquet, pyarrow.dataset
pid = os.fork()
if pid == 0:
    faulthandler.dump_traceback_later(60, exit=True)
    values = numpy.random.rand(300, 300)
    table = pyarrow.table({{"a": (values @ values).ravel()}})
    pyarrow.parquet.write_table(table, {str(tmp_path / "t.parquet")!r})
    assert pyarrow.dataset.dataset({str(tmp_path / "t.parquet")!r}).to_table().equals(table)
    assert len(blosc2.decompress2(blosc2.compress2(values, typesize=8, nthreads=1))) == values.nbytes
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
