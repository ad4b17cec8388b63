"""The Thrift server as users start it: a subprocess on a free port, queried over JDBC by Spark's own beeline, stopped by Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medspark.errors import BadRequest
from medspark.lake import thrift
from tests.conftest import ROOT
from tests.lake import harness, reading


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind((thrift.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadRequest, match=f"--port {port}: not free"):
            thrift.choose_port(port)
        assert thrift.choose_port(0) != port
    with pytest.raises(BadRequest, match="--port 70000"):
        thrift.choose_port(70_000)


def beeline(url: str, query: str) -> list[str]:
    """The rows of an answer, tab-separated."""
    program = str(Path(sys.executable).parent / "beeline")
    command = [program, "-u", url, "--silent=true", "--outputformat=tsv2", "--showHeader=false", "-e", query]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = (re.sub(r"^0: jdbc:\S+> ", "", line) for line in done.stdout.splitlines())  # the first row follows the prompt
    return [line for line in lines if line.strip()]


@pytest.mark.spark
@pytest.mark.slow
def test_tables_and_functions_over_jdbc(built: reading.Built, tmp_path: Path) -> None:
    env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "PYSPARK_SUBMIT_ARGS": "--driver-memory 1500m pyspark-shell"}
    command = [sys.executable, "-m", "medspark", "thrift", "--lake", str(built.uri), "--port", "0"]
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=env, start_new_session=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url.startswith("jdbc:hive2://127.0.0.1:") and url.endswith("/lake"), (tmp_path / "log").read_text()[-3000:]
        assert json.loads((tmp_path / "medspark" / "sql" / "thrift.json").read_text())["url"] == url
        slices = harness.rows(built.uri, "slices")
        assert beeline(url, "SELECT count(*) FROM slices") == [str(len(slices))]
        query = "SELECT label, sum(mask_area(mask, rows, cols)), sum(area_px) FROM slices_labelled GROUP BY label"
        label, area, measured = beeline(url, query)[0].split("\t")
        assert label == "Nodule" and area == measured == str(
            sum(row["area_px"] for row in harness.rows(built.uri, "labels") if row["label"] == label)
        )
        # The tool finds the running server: nothing else would answer within seconds.
        tool = [sys.executable, "-m", "medspark", "beeline", "--lake", str(built.uri), "--silent=true", "-e", "SHOW TABLES"]
        said = subprocess.run(tool, capture_output=True, text=True, cwd=ROOT, env=env, timeout=200)
        assert said.returncode == 0 and "series_summary" in said.stdout
        os.kill(server.pid, signal.SIGINT)
        assert server.wait(60) == 0
        assert not (tmp_path / "medspark" / "sql" / "thrift.json").exists()
        deadline = time.monotonic() + 20
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((thrift.HOST, port)):
                    return
            time.sleep(0.5)
        pytest.fail("the port still answers after the server ended")
    finally:
        log.close()
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(20)
