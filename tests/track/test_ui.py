"""``medspark compare`` and ``medspark mlflow`` on a lake with a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from medspark.__main__ import main as medspark
from medspark.errors import BadRequest
from medspark.lake.card import CARD
from medspark.track import runs, ui
from tests.conftest import ROOT
from tests.track.test_runs import begin, free_port


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ui")
    (place / CARD).parent.mkdir(parents=True)
    (place / CARD).write_text(json.dumps({"key": "none"}))
    begin(runs.where(None, str(place)))
    return place


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_pages_are_files_too(lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert medspark(["compare", "--lake", str(lake), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path}/classification-opacity.html"
    assert "classification: opacity" in (tmp_path / "classification-opacity.html").read_text()
    assert medspark(["compare", "--lake", str(tmp_path / "nothing")]) == 2


def test_a_taken_port_is_named() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ui.free(port, other=True) != port
        with pytest.raises(BadRequest, match="is in use"):
            ui.free(port, other=False)


@pytest.mark.slow
def test_the_pages_open_and_end_with_the_command(lake: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "medspark", "mlflow", "--lake", str(lake), "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        for _ in range(600):
            try:
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).read().decode()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.2)
        assert "MLflow" in text
        body = json.dumps({"max_results": 10}).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", body, {"Content-Type": "application/json"}
        )
        names = {one["name"] for one in json.loads(urllib.request.urlopen(asked, timeout=20).read())["experiments"]}
        assert {"classification: opacity", "comparison pages"} <= names
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
