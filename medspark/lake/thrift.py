"""A lake over JDBC: Spark's Thrift server on loopback, started from Python so that the functions over masks and payload are there, too."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from medspark.errors import BadRequest
from medspark.lake import register
from medspark.lake.sql import opened, register_functions
from medspark.lake.store import Lake

HOST = "127.0.0.1"  # it asks nobody for a password
PORT = 10_000  # where JDBC tools look for a Thrift server
DATABASE = "lake"
ANSWER_S = 1.0  # a server on loopback that does not take a connection within it is not there


def address(port: int, database: str) -> str:
    return f"jdbc:hive2://{HOST}:{port}/{database}"


def choose_port(port: int | None) -> int:
    """The port asked for, which must be free; None: `PORT`, or any free one where that is taken; 0: any free one."""
    for wanted in (PORT, 0) if port is None else (port,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, wanted))
            except (OSError, OverflowError):
                continue
            return int(probe.getsockname()[1])
    raise BadRequest(f"--port {port}: not free; leave it out and a free one is taken")


@contextmanager
def served(uri: str, port: int | None = None, database: str = DATABASE) -> Iterator[str]:
    """A running server over a lake; yields its JDBC address, and stops server and session on leaving.

    The lake is checked before Spark starts (`BadRequest`). All connections share one session, so that all see its functions.
    """
    opened(None, uri)
    register.check(database)
    chosen = choose_port(port)
    from medspark.lake import session

    spark = session.build(
        "medspark thrift",
        {
            "spark.sql.catalogImplementation": "in-memory",
            "spark.sql.hive.thriftServer.singleSession": "true",
            "spark.hadoop.hive.server2.thrift.port": str(chosen),
            "spark.hadoop.hive.server2.thrift.bind.host": HOST,
        },
    )
    try:
        register.register(spark, Lake(spark, uri), database, keep=False)
        spark.catalog.setCurrentDatabase(database)
        register_functions(spark)
        started = spark._jvm.org.apache.spark.sql.hive.thriftserver.HiveThriftServer2.startWithContext(spark._jsparkSession.sqlContext())
        try:
            yield address(chosen, database)
        finally:
            started.stop()
    finally:
        spark.stop()


def serve(uri: str, port: int | None, database: str, say: Callable[[str], None]) -> None:
    """Runs a server until Ctrl-C or SIGTERM; meanwhile `beeline` finds it by a note in the user's folder."""
    stop = threading.Event()
    with served(uri, port, database) as url:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        note = _note()
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        note.write_text(json.dumps({"url": url, "lake": Lake(None, uri).uri, "process": os.getpid()}))  # type: ignore[arg-type]
        try:
            say(url)
            stop.wait()
        finally:
            note.unlink(missing_ok=True)


def beeline(uri: str, arguments: Sequence[str]) -> int:
    """Spark's JDBC shell on a lake: on its running server, else on one that is started for it. Returns beeline's status."""
    opened(None, uri)
    url = _running(uri)
    if url is not None:
        return _beeline(url, arguments)
    with served(uri, port=0) as started:
        return _beeline(started, arguments)


def _beeline(url: str, arguments: Sequence[str]) -> int:
    # Ctrl-C is beeline's own affair; a handler, unlike SIG_IGN, is not inherited by it.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run([str(Path(sys.executable).parent / "beeline"), "-u", url, *arguments], check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def _note() -> Path:
    return register.folder() / "thrift.json"


def _running(uri: str) -> str | None:
    """Address of this user's server over this lake, if one answers."""
    try:
        said = json.loads(_note().read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if said["lake"] != Lake(None, uri).uri:  # type: ignore[arg-type]
        return None
    port = int(said["url"].rsplit(":", 1)[1].split("/")[0])
    try:
        socket.create_connection((HOST, port), ANSWER_S).close()
    except OSError:
        return None
    return str(said["url"])
