"""The key file: made once, by one of many, readable by its owner alone."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from medspark.deid import load_key
from medspark.errors import BadRequest


def test_created_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "deid.key"
    key = load_key(path, create=True)
    assert len(key) == 32
    assert load_key(path, create=False) == load_key(path, create=True) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_text().strip() == key.hex()
    assert [entry.name for entry in path.parent.iterdir()] == ["deid.key"]
    assert load_key(tmp_path / "other.key", create=True) != key


def _load(path: str, barrier, queue) -> None:  # type: ignore[no-untyped-def]
    barrier.wait()
    queue.put(load_key(Path(path), create=True))


def test_two_jobs_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    n_jobs = 6
    barrier, queue = context.Barrier(n_jobs), context.Queue()
    jobs = [context.Process(target=_load, args=(str(tmp_path / "new" / "deid.key"), barrier, queue)) for _ in range(n_jobs)]
    for job in jobs:
        job.start()
    keys = {queue.get(timeout=20) for _ in jobs}
    for job in jobs:
        job.join()
    assert len(keys) == 1


def test_missing_without_create(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no such file"):
        load_key(tmp_path / "deid.key", create=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n" + "b" * 64])
def test_malformed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deid.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(BadRequest, match="64 hexadecimal digits") as caught:
        load_key(path, create=True)
    assert not text or text not in str(caught.value).replace(str(path), "")
    assert path.read_text() == text


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_open_to_others(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "deid.key"
    path.write_text("a" * 64)
    path.chmod(mode)
    with pytest.raises(BadRequest, match="chmod 600"):
        load_key(path, create=True)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        load_key(tmp_path, create=True)
