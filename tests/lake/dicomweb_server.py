"""A DICOMweb server on loopback over real files: QIDO-RS with paging, WADO-RS, a token, and faults as they happen between hospitals.

Small, but real: HTTP/1.1 over sockets, kept-open connections, multipart bodies. `tests.lake.test_dicomweb` checks it with a foreign client.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom

BOUNDARY = "4f6e--boundary"
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"


class Server(ThreadingHTTPServer):
    """``faults``: instance or search path -> what its next answers do (a status, or reset, cut, slow, redirect:<url>); used up one by one."""

    daemon_threads = True

    def __init__(
        self, files: Iterable[Path], token: str = "", cap: int = 1000, single: bool = False, certificate: Path | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if certificate is not None:  # a PEM file with the key in it
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket, self.scheme = context.wrap_socket(self.socket, server_side=True), "https"
        self.files: dict[tuple[str, str, str], Path] = {}
        for path in sorted(files):
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            self.files[(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)] = path
        self.token, self.cap, self.single = token, cap, single
        self.faults: dict[str, list[Any]] = defaultdict(list)
        self.log: list[tuple[str, dict[str, str]]] = []
        self.retry_after = "0.1"
        self.slow_s = 0.05

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/dicom-web"

    @property
    def uri(self) -> str:
        return "dicomweb+" + self.url

    def paths(self) -> list[str]:
        return [f"/studies/{study}/series/{series}/instances/{instance}" for study, series, instance in self.files]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/dicom-web")
        self.server.log.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._answer(401, b"")
        fault = self.server.faults[path].pop(0) if self.server.faults[path] else None
        if isinstance(fault, int):
            return self._answer(fault, b"", headers={"Retry-After": self.server.retry_after} if fault in (429, 503) else {})
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        if isinstance(fault, str) and fault.startswith("redirect:"):
            return self._answer(302, b"", headers={"Location": fault.removeprefix("redirect:") + path})
        names = path.strip("/").split("/")
        uids = tuple(names[1::2])
        if len(names) % 2:
            return self._search(uids, (STUDY, SERIES, INSTANCE)[len(uids)], parse_qs(parts.query))
        if uids in self.server.files:
            return self._instance(self.server.files[uids], fault)
        return self._answer(404, b"")

    def _search(self, uids: tuple[str, ...], tag: str, query: dict[str, list[str]]) -> None:
        level = len(uids)
        found = list(dict.fromkeys(key[level] for key in self.server.files if key[:level] == uids))
        offset = int(query.get("offset", ["0"])[0])
        limit = min(int(query.get("limit", ["100"])[0]), self.server.cap)
        page = found[offset : offset + limit]
        if not page:
            return self._answer(204, b"")
        body = json.dumps([{tag: {"vr": "UI", "Value": [uid]}} for uid in page]).encode()
        return self._answer(200, body, "application/dicom+json")

    def _instance(self, path: Path, fault: Any) -> None:
        data, accept = path.read_bytes(), self.headers.get("Accept", "")
        if self.server.single:
            if accept.startswith("multipart"):
                return self._answer(406, b"")
            return self._answer(200, data, "application/dicom", fault)
        if not accept.startswith("multipart/related"):
            return self._answer(406, b"")
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom; transfer-syntax=*\r\n\r\n".encode()
        body = head + data + f"\r\n--{BOUNDARY}--\r\n".encode()
        return self._answer(200, body, f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"', fault)

    def _answer(
        self, status: int, body: bytes, content_type: str = "text/plain", fault: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut":  # half a body, then the connection ends
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "slow":
            for start in range(0, len(body), max(1, len(body) // 10)):
                self.wfile.write(body[start : start + max(1, len(body) // 10)])
                self.wfile.flush()
                time.sleep(self.server.slow_s)
        else:
            self.wfile.write(body)


@contextmanager
def serving(files: Iterable[Path], **options: Any) -> Iterator[Server]:
    """A server in a thread of this process, on a free port of 127.0.0.1, for as long as the context lasts."""
    server = Server(files, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
