"""Runs in a real MLflow store: what is said arrives, also past a server that goes away, and into a run that is resumed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medspark.errors import BadRequest
from medspark.track import outbox, runs
from medspark.track.runs import MlflowTracker
from tests.track.test_identity import who


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "2")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.where(None, str(tmp_path_factory.mktemp("lake")))


def begin(uri: str, **changes: Any) -> str:
    return runs.begin(uri, who(**changes), ["--feed=lungs"], {"deid": {"profile": "basic", "key_file": "/doe"}}, "small", {"rate": 1e-3})


def test_where_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs.where(None, str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert runs.where(None, "s3a://bucket/lake") == "http://tracking:5000"
    assert runs.where("sqlite:///x.db", str(tmp_path)) == f"sqlite:///{Path.cwd()}/x.db"
    with pytest.raises(BadRequest, match="expected sqlite"):
        runs.where("tracking.example", str(tmp_path))


def test_a_run_says_who_it_is_and_what_it_measured(store: str, tmp_path: Path) -> None:
    run_id = begin(store)
    tracker: MlflowTracker = pickle.loads(pickle.dumps(MlflowTracker(store, run_id, machine=False)))
    with runs.running(tracker):
        for step in range(1500):
            tracker.metrics({"loss": 1 / (1 + step), "bad name?": float("nan")}, step)
        (tmp_path / "sheet.png").write_bytes(b"png")
        tracker.artifact(tmp_path / "sheet.png", "pictures")
        tracker.artifact(tmp_path / "not there.png")
        tracker.text("hello", "notes/a.txt")
        tracker.params({"rate": 2e-3, "batch": 8})  # as a resumed run might say
    client = runs.client(store)
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["rate"] == "0.001" and found.data.params["batch"] == "8" and found.data.tags["resumed.rate"] == "0.002"
    assert found.data.params["package/numpy"] and found.data.tags["feed"] == "lungs"
    assert len(client.get_metric_history(run_id, "loss")) == 1500
    assert found.inputs.dataset_inputs[0].dataset.name == "lungs"
    repeat = json.loads(Path(client.download_artifacts(run_id, runs.REPEAT)).read_text())
    assert repeat["arguments"] == ["--feed=lungs"] and repeat["settings"] == {"deid": {"profile": "basic"}} and repeat["feed_version"] == 4
    assert Path(client.download_artifacts(run_id, "notes/a.txt")).read_text() == "hello"
    assert {item.path for item in client.list_artifacts(run_id, "pictures")} == {"pictures/sheet.png"}
    hits = client.search_runs([found.info.experiment_id], "tags.feed = 'lungs' and tags.within_subject = 'no' and params.seed = '7'")
    assert [run.info.run_id for run in hits] == [run_id]
    assert client.get_experiment(found.info.experiment_id).name == "classification: opacity"


def test_how_a_run_ends_and_is_opened_again(store: str) -> None:
    run_id = begin(store)
    tracker = MlflowTracker(store, run_id)
    with pytest.raises(ZeroDivisionError), runs.running(tracker):
        time.sleep(0.6)
        raise ZeroDivisionError
    found = runs.client(store).get_run(run_id)
    assert found.info.status == "FAILED" and found.data.metrics["system/cpu_utilization_percentage"] >= 0
    runs.again(store, run_id)
    assert runs.client(store).get_run(run_id).info.status == "RUNNING"
    with pytest.raises(BadRequest, match="not in the tracking store"):
        runs.again(store, "0" * 32)


def test_copies_of_a_killed_process_are_removed_and_those_of_a_live_one_stay(tmp_path: Path) -> None:
    script = (
        "from medspark.track.runs import MlflowTracker; from pathlib import Path; import sys, os, signal; "
        "t = MlflowTracker('http://127.0.0.1:9', 'a' * 32, machine=False); t.text('pixels', 'pictures/x.txt'); os.kill(os.getpid(), 9)"
    )
    alive = MlflowTracker("http://127.0.0.1:9", "b" * 32, machine=False)
    alive.text("pixels", "pictures/x.txt")
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    kept = tmp_path / "cache" / "medspark" / "unsent"
    assert len(list(kept.iterdir())) == 2 and all(stat.S_IMODE(place.stat().st_mode) == 0o700 for place in kept.iterdir())
    assert runs.sweep() == 1
    assert [place.name[:8] for place in kept.iterdir()] == ["b" * 8]
    assert not alive.close(patience_s=0.1) and runs.sweep() == 0, "what a run has left for the next one stays"


def test_an_executor_without_a_home_has_a_place_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tracker = MlflowTracker("http://127.0.0.1:9", "a" * 32, machine=False)
    tracker.text("x", "x.txt")
    assert not tracker.close(patience_s=0.1)
    assert len(list(tmp_path.glob(f"medspark-{os.getuid()}/medspark/unsent/*/entries.jsonl"))) == 1
    tracker.text("said too late", "y.txt")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Any, Any]]:
    """(address, start, stop) of a real MLflow server."""
    port, processes = free_port(), []
    address = f"http://127.0.0.1:{port}"

    def start() -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "kept")]
        with (tmp_path / "server.log").open("a") as log:
            processes.append(subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log))
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).read()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((tmp_path / "server.log").read_text()[-2000:])

    def stop() -> None:
        os.killpg(processes[-1].pid, signal.SIGKILL)
        processes.pop().wait()

    start()
    yield address, start, stop
    while processes:
        stop()


@pytest.mark.slow
def test_a_server_that_goes_away_stops_nothing(server: tuple[str, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, start, stop = server
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_S", 1.0)
    run_id = begin(address)
    tracker, other = MlflowTracker(address, run_id, machine=False), MlflowTracker(address, run_id, machine=False)
    tracker.metrics({"loss": 1.0}, 0)
    assert tracker.flush(20)
    stop()
    slowest = 0.0
    for step in range(1, 200):
        called = time.perf_counter()
        tracker.metrics({"loss": 1.0}, step)
        tracker.text("seen", f"pictures/{step % 3}.txt")
        slowest = max(slowest, time.perf_counter() - called)
    assert slowest < 0.5, "no call waits for the server"
    other.tags({"left": "behind"})
    assert not other.close(patience_s=1.0)
    with pytest.raises(BadRequest, match="does not answer"):
        begin(address)
    start()
    assert tracker.close("FINISHED", patience_s=60)
    assert runs.deliver(address) == 1 and runs.deliver(address) == 0
    client = runs.client(address)
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED" and found.data.tags["left"] == "behind"
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == list(range(200))
    assert len(client.list_artifacts(run_id, "pictures")) == 3
