"""A standalone Spark cluster on loopback: a master and two workers, each a process of its own, give the rows of local mode."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.lake import harness
from tests.phantoms import series as phantoms
from tests.phantoms import slides_work

pytestmark = [pytest.mark.spark, pytest.mark.slow]

BIN = Path(sys.executable).parent
START_S = 60  # until both workers have registered; a JVM needs 3 s of an idle core
WORKERS = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def daemon(log: Path, kind: str, *options: object) -> Iterator[None]:
    """A master or worker, ended with all its children (the executors) at the end."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [str(BIN / "spark-class"), f"org.apache.spark.deploy.{kind}", *map(str, options)],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "SPARK_NO_DAEMONIZE": "1", "SPARK_DAEMON_MEMORY": "256m"},
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(address of a master with two workers of 1 core and 1 GB, the file of the secret that all of them share)."""
    where = tmp_path_factory.mktemp("cluster")
    secret = where / "secret.conf"
    secret.touch(0o600)
    secret.write_text(f"spark.authenticate true\nspark.authenticate.secret {secrets.token_hex(32)}\nspark.network.crypto.enabled true\n")
    port, page = free_port(), free_port()
    url = f"spark://127.0.0.1:{port}"
    both = ("--host", "127.0.0.1", "--properties-file", secret)
    small = ("-c", 1, "-m", "1g")
    with ExitStack() as running:
        running.enter_context(daemon(where / "master.log", "master.Master", *both, "--port", port, "--webui-port", page))
        for number in range(WORKERS):
            options = (*both, *small, "--webui-port", free_port(), "-d", where / f"work-{number}", url)
            running.enter_context(daemon(where / f"worker-{number}.log", "worker.Worker", *options))
        _await_workers(f"http://127.0.0.1:{page}/json/", where)
        yield url, secret


def _await_workers(page: str, where: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(page, timeout=2) as answer:
                if answer.read().decode().replace(" ", "").count('"state":"ALIVE"') >= WORKERS:
                    return
        except OSError:
            pass
        time.sleep(0.25)
    said = "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(where.glob("*.log")))
    pytest.fail(f"no {WORKERS} workers after {START_S} s\n{said}")


def submitted(cluster: tuple[str, Path], name: str, *arguments: object) -> dict[str, Any]:
    """A job on the cluster; its summary."""
    master, secret = cluster
    done = subprocess.run(
        [
            *(str(BIN / "spark-submit"), "--master", master, "--driver-memory", "1g", "--executor-memory", "700m"),
            *("--properties-file", str(secret), "--load-spark-defaults"),
            *("--conf", "spark.driver.host=127.0.0.1", "--conf", "spark.driver.bindAddress=127.0.0.1"),
            *(str(ROOT / "jobs" / f"{name}.py"), *map(str, arguments)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_rows_of_local_mode(cluster: tuple[str, Path], tmp_path: Path) -> None:
    series = phantoms.write_series(tmp_path / "ct", [2.0 * k for k in range(12)])
    image, _ = slides_work.stained(700, 500, [(50, 60, 400, 380)])
    slide = slides_work.write_svs(tmp_path / "slide-a.svs", [image], tile_px=128)
    far, local = tmp_path / "cluster", tmp_path / "local"
    shared = ("--conf", ROOT / "conf" / "cluster.toml")
    said = submitted(cluster, "explode_series", "--lake", far, "--input", series, *shared)
    assert said["written"]["slices"] == 12
    said = submitted(cluster, "tile_slides", "--lake", far, "--input", slide, *shared)
    assert said["written"]["tiles"] == 6
    harness.ended(harness.job("explode_series", "--lake", local, "--input", series, *shared, submit=True))
    harness.ended(harness.job("tile_slides", "--lake", local, "--input", slide, *shared, submit=True))
    harness.same(far, local)
    harness.keys_unique(far)


def test_a_cluster_without_a_secret_is_one_sentence(cluster: tuple[str, Path], tmp_path: Path) -> None:
    series = phantoms.write_series(tmp_path / "ct", [0.0])
    done = subprocess.run(
        [
            *(str(BIN / "spark-submit"), "--master", cluster[0], "--driver-memory", "1g", str(ROOT / "jobs" / "explode_series.py")),
            *("--lake", str(tmp_path / "lake"), "--input", str(series), "--conf", str(ROOT / "conf" / "cluster.toml")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    said = done.stdout + done.stderr  # spark-submit sends both to its own standard output
    assert "--properties-file secret.conf" in said
    assert "Traceback" not in said
