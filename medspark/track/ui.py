"""``make mlflow``: MLflow's pages on a lake's runs, on loopback, with KPIs and comparison pages brought up to date before."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from medspark.errors import BadRequest
from medspark.lake.card import key_of
from medspark.track import kpis, page
from medspark.track.runs import ARTIFACTS, where

log = logging.getLogger("medspark.track")

PORT = 5000


def refresh(lake: str, tracking_uri: str | None, folder: str | Path | None = None) -> tuple[str, list[str]]:
    """Copies new KPIs, makes all comparison pages anew (also as files in ``folder``); returns (tracking store, experiments)."""
    if key_of(lake) is None and tracking_uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise BadRequest(f"--lake {lake}: no lake there")
    uri = where(tracking_uri, lake)
    if key_of(lake) is not None:
        kpis.mirror(lake, uri)
    names = page.experiments(uri)
    for name in names:
        page.publish(uri, name, folder)
    return uri, names


def serve(lake: str, tracking_uri: str | None, port: int | None, say: Callable[[str], None]) -> int:
    """Becomes MLflow's server, until Ctrl-C. A store that is a server has its own pages: their address is said, nothing is started."""
    uri, _ = refresh(lake, tracking_uri)
    if uri.startswith("http"):
        say(uri)
        return 0
    chosen = free(PORT if port is None else port, port is None)
    say(f"http://127.0.0.1:{chosen}/#/experiments?workflowType=machine_learning")  # the pages for training, not those for chats
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(chosen), "--workers", "1"]
    command += ["--backend-store-uri", uri]
    if uri.startswith("sqlite:///"):
        command += ["--default-artifact-root", (Path(uri.removeprefix("sqlite:///")).parent / ARTIFACTS).as_uri()]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # MLflow starts uvicorn by its name
    environment = {**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.execve(sys.executable, command, environment)  # in this process's place: whoever stops it stops the server


def free(port: int, other: bool) -> int:
    """The port, or another one where it is taken and that is allowed; raises `BadRequest` else."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            if not other:
                raise BadRequest(f"--port {port}: is in use; name another, or leave the option out") from None
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
