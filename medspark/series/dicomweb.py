"""DICOMweb without a network: addresses, what a search answers, how an instance's bytes lie in an answer (DICOM PS3.18 8, 10.4, 10.6).

An address is written ``dicomweb+https://host/dicom-web[/studies/UID[/series/UID[/instances/UID]]]``. It never holds a user, a password or a
token, and plain ``dicomweb+http://`` is for this machine only: everything else would carry patients' data unencrypted.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from email.message import Message
from urllib.parse import urlsplit

from medspark.config import Config
from medspark.errors import BadRequest

TOKEN = "MEDSPARK_DICOMWEB_TOKEN"  # environment variable, the only place that a token is taken from
PREFIX = "dicomweb+"
LEVELS = ("study", "series", "instance")
PLURAL = {"study": "studies", "series": "series", "instance": "instances"}
UID_TAGS = {"study": "0020000D", "series": "0020000E", "instance": "00080018"}
UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
"""PS3.5 9.1 allows 64 digits and dots; archives with letters and longer ones exist. Nothing that could leave its place in a path."""
HEADERS_BYTES = 1 << 16  # of what comes before a part's payload; a server sends a few hundred
DICOM_TYPES = ("application/dicom", "application/octet-stream", "")


class Broken(ValueError):
    """An answer that is none, or that ended early; asking again may help."""


@dataclass(frozen=True)
class Address:
    """A place on a DICOMweb server. ``base``: the service's URL (``https://host/dicom-web``); UIDs are empty from some level on."""

    base: str
    study: str = ""
    series: str = ""
    instance: str = ""

    @property
    def url(self) -> str:
        """What is asked over HTTP."""
        return self.base + "".join(f"/{PLURAL[level]}/{uid}" for level in LEVELS if (uid := getattr(self, level)))

    @property
    def uri(self) -> str:
        """What ``--input`` and the ledger say."""
        return PREFIX + self.url

    @property
    def below(self) -> str:
        """The level that a search at this address lists; empty below an instance."""
        return next((level for level in LEVELS if not getattr(self, level)), "")

    @property
    def search_url(self) -> str:
        """QIDO-RS, PS3.18 10.6."""
        return f"{self.url}/{PLURAL[self.below]}"

    def child(self, uid: str) -> Address:
        return replace(self, **{self.below: uid})

    @property
    def host(self) -> str:
        return urlsplit(self.base).hostname or ""


@dataclass(frozen=True)
class Access:
    """What a task needs to bring an instance: the token and the bounds (config section ``dicomweb``, ``guard.max_file_bytes``)."""

    token: str = field(default="", repr=False)
    max_bytes: int = 1 << 31
    attempts: int = 6
    pause_s: float = 0.5
    timeout_s: float = 60.0
    page: int = 1000

    @classmethod
    def of(cls, settings: Config) -> Access:
        """The driver's: with the token of its environment."""
        web = settings.dicomweb
        token = os.environ.get(TOKEN, "").strip()
        return cls(token, settings.guard.max_file_bytes, web.attempts, web.pause_s, web.timeout_s, web.page)


def is_address(text: str) -> bool:
    return text.startswith(PREFIX)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse(text: str) -> Address:
    """The typed address; raises `BadRequest` for one that cannot be served, or must not be (the message never repeats a secret)."""
    parts = urlsplit(text.removeprefix(PREFIX))
    if parts.username is not None or parts.password is not None:
        raise BadRequest(
            f"--input {PREFIX}{parts.scheme}://{parts.hostname}: an address must not hold a user or a password; "
            f"put a token into the environment variable {TOKEN}"
        )
    if parts.query or parts.fragment:
        raise BadRequest(
            f"--input {PREFIX}{parts.scheme}://{parts.hostname}: an address ends with its path; what follows a ? or # is not taken"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(f"--input {text}: expected {PREFIX}https://host/path")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise BadRequest(
            f"--input {text}: plain http would send images of patients unencrypted; expected {PREFIX}https:// (http: this machine only)"
        )
    found = re.fullmatch(r"(.*?)(?:/studies(?:/([^/]+)(?:/series(?:/([^/]+)(?:/instances(?:/([^/]+))?)?)?)?)?)?/*", parts.path)
    assert found is not None  # every part is optional and the first takes anything
    uids = [uid or "" for uid in found.groups()[1:]]
    if "/studies/" in found[1] or any(uid and not UID.fullmatch(uid) for uid in uids):
        raise BadRequest(f"--input {text}: expected .../studies/UID/series/UID/instances/UID, or a part of it from the left")
    return Address(f"{parts.scheme}://{parts.netloc}{found[1].rstrip('/')}", *uids)


def uids(body: bytes, level: str) -> tuple[list[str], int]:
    """(UIDs of a search's answer in its order, number of results without a usable one).  DICOM JSON model, PS3.18 F.

    Raises Broken for what is no list of results.
    """
    try:
        results = json.loads(body) if body.strip() else []
    except ValueError:
        raise Broken("the search's answer is not JSON") from None
    if not isinstance(results, list):
        raise Broken("the search's answer is no list")
    found: list[str] = []
    for result in results:
        element = result.get(UID_TAGS[level]) if isinstance(result, dict) else None
        values = element.get("Value") if isinstance(element, dict) else None
        uid = values[0] if isinstance(values, list) and values else None
        if isinstance(uid, str) and UID.fullmatch(uid.strip(" \0")):
            found.append(uid.strip(" \0"))
    return found, len(results) - len(found)


def payload(chunks: Iterable[bytes], content_type: str, sized: bool) -> Iterator[bytes]:
    """The DICOM file in an answer, piece by piece: the first part of ``multipart/related``, or the whole body of ``application/dicom``.

    sized : whether the transport knows the body's end (a length, or chunks); a body that is not multipart must be, else a cut one looks whole
    Raises Broken for another media type, and for a body that ends early.
    """
    kind, boundary = _media_type(content_type)
    if kind.startswith("multipart/"):
        if not boundary:
            raise Broken("a multipart answer without a boundary")
        yield from _first_part(iter(chunks), boundary.encode("latin-1", "replace"))
    elif kind in DICOM_TYPES and kind:
        if not sized:
            raise Broken("an answer that does not say how long it is")
        yield from chunks
    else:
        raise Broken(f"an answer of another media type than application/dicom ({kind[:40] or 'none'})")


def _media_type(text: str) -> tuple[str, str]:
    """(type/subtype in lower case, boundary or empty)."""
    message = Message()
    message["content-type"] = text
    kind = text.split(";", 1)[0].strip().lower()
    return kind, message.get_boundary("") or ""


def _first_part(chunks: Iterator[bytes], boundary: bytes) -> Iterator[bytes]:
    """Payload of the first part (RFC 2046 5.1.1); at most a chunk and a delimiter are held."""
    delimiter = b"\r\n--" + boundary
    held = b"\r\n"  # so that a delimiter at the very beginning is found like any other
    start = -1
    while start < 0:
        first = held.find(delimiter)
        if first >= 0 and held[first + len(delimiter) :].startswith(b"--"):
            raise Broken("a multipart answer without a part")
        end = held.find(b"\r\n\r\n", first + len(delimiter)) if first >= 0 else -1
        if end >= 0:
            start = end + 4
            break
        if len(held) > HEADERS_BYTES:
            raise Broken("a multipart answer without a part")
        held += _next(chunks)
    headers = Message()
    for line in held[first + len(delimiter) : start].decode("latin-1").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    kind = _media_type(str(headers.get("content-type", "")))[0]
    if kind not in DICOM_TYPES:
        raise Broken(f"a part of another media type than application/dicom ({kind[:40]})")
    held = held[start:]
    while True:
        end = held.find(delimiter)
        if end >= 0:
            yield held[:end]
            return
        keep = len(delimiter) - 1  # the delimiter may lie across two chunks
        if len(held) > keep:
            yield held[:-keep]
            held = held[-keep:]
        held += _next(chunks)


def _next(chunks: Iterator[bytes]) -> bytes:
    chunk = next(chunks, None)
    if chunk is None:
        raise Broken("the answer ends early")
    return chunk
