"""DICOMweb as a place where inputs lie: QIDO-RS lists it, WADO-RS brings an instance to the task that reads it. Knows no Spark.

What does not come is asked for again, with growing pauses, and then is `Unavailable`: a matter of the network, never of the file, so that
nothing of it is written and the next run asks again. The token travels to the tasks by closure; it goes to the address's own host alone.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.util import Retry

from medspark.errors import Rejected, Unavailable
from medspark.series.dicomweb import TOKEN, Access, Address, Broken, is_loopback, parse, payload, uids

log = logging.getLogger("medspark.dicomweb")

CONNECT_S = 10.0
LONGEST_PAUSE_S = 60.0  # between two tries, whatever a server asks for
ANSWER_S = 120.0  # for one answer to come whole ...
SLOWEST_BYTES_PER_S = 1e5  # ... and more for what has come: a server that sends a byte a minute must not hold a task for ever
SEARCH_BYTES = 64 << 20  # of one page of a search
PIECE_BYTES = 1 << 18
SLACK_BYTES = 1 << 17  # headers and delimiters around the payload; the file itself is checked again by whoever parses it
GIVE_UP = 3  # instances in a row that never came; from then on the process asks once each until one comes, or a dead server costs hours
MAX_REDIRECTS = 5
ACCEPTS = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',  # as stored: no server shall transcode (PS3.18 8.7.3.5.2)
    'multipart/related; type="application/dicom"',
    "application/dicom; transfer-syntax=*",
    "application/dicom",
)
"""Tried in this order while the server answers 406 or 415; the one that worked is remembered."""
T = TypeVar("T")


class _Again(Exception):
    """The server said to come back later; ``pause_s`` where it said when."""

    def __init__(self, status: int, pause_s: float | None) -> None:
        super().__init__(f"it answers {status}")
        self.pause_s = pause_s


class _NotAcceptable(Unavailable):
    """Not in this media type."""

    def __init__(self) -> None:
        super().__init__("the server answers in no media type that is asked for")


class Bearer(requests.auth.AuthBase):
    """The token as a header of the first request. requests drops it where a redirect leaves the host, the port or https; without a token a .netrc is not asked either."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def _checked_redirect(response: requests.Response, *_: object, **__: object) -> None:
    """Refuses a redirect that would bring images over plain http."""
    if response.is_redirect:
        target = urlsplit(urljoin(response.url, response.headers["location"]))
        if target.scheme != "https" and not (target.scheme == "http" and is_loopback(target.hostname or "")):
            raise Unavailable("the server redirects to an address that is not https")


class Client:
    """One server, as one process asks it; connections are kept open. Final."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.session = requests.Session()
        self.session.auth = Bearer(access.token)
        self.session.max_redirects = MAX_REDIRECTS
        self.session.hooks["response"].append(_checked_redirect)
        self.session.headers["Accept-Encoding"] = "identity"  # no inflation: what is counted is what is sent
        self._accept = 0
        self._lost = 0  # in a row

    # ---- search

    def search(self, address: Address) -> list[str]:
        """UIDs of all that lies one level below, each once. Pages are asked for until one brings nothing new.

        A page that is short is no sign of the end (servers cap ``limit`` silently); one that repeats is (servers ignore ``offset``).
        """
        found: dict[str, None] = {}
        offset = 0
        while True:
            page, unusable = self._tried(lambda: self._page(address, offset))  # noqa: B023 (called before offset changes)
            if unusable:
                log.warning("results of a search without a usable UID are left out", extra={"said": {"results": unusable}})
            fresh = [uid for uid in page if uid not in found]
            found.update(dict.fromkeys(fresh))
            offset += len(page) + unusable
            if not fresh:
                return list(found)

    def _page(self, address: Address, offset: int) -> tuple[list[str], int]:
        query = {"limit": self.access.page, "offset": offset}
        with self._asked(address.search_url, "application/dicom+json", query) as response:
            if response.status_code == 204:
                return [], 0
            body = b"".join(_bounded(response, SEARCH_BYTES, lambda: Unavailable("a page of the search is larger than 64 MB")))
        return uids(body, address.below)

    # ---- fetch

    def fetch(self, address: Address, path: str) -> None:
        """Writes an instance's file, as the server holds it. Raises `Unavailable`, or Rejected TOO_LARGE."""
        while True:
            try:
                return self._tried(lambda: self._fetch(address, path))
            except _NotAcceptable:
                if self._accept + 1 == len(ACCEPTS):
                    raise
                self._accept += 1

    def _fetch(self, address: Address, path: str) -> None:
        too_large = lambda: Rejected("TOO_LARGE", "the instance is larger than guard.max_file_bytes")
        with self._asked(address.url, ACCEPTS[self._accept]) as response, open(path, "wb") as stream:
            sized = "content-length" in response.headers or response.headers.get("transfer-encoding", "").lower() == "chunked"
            pieces = _bounded(response, self.access.max_bytes, too_large)
            for piece in payload(pieces, response.headers.get("content-type", ""), sized):
                stream.write(piece)

    # ---- asking

    @contextmanager
    def _asked(self, url: str, accept: str, query: dict[str, int] | None = None) -> Iterator[requests.Response]:
        timeout = (min(CONNECT_S, self.access.timeout_s), self.access.timeout_s)
        with self.session.get(url, params=query, headers={"Accept": accept}, stream=True, timeout=timeout) as response:
            status = response.status_code
            if status == 429 or status == 408 or status >= 500:
                raise _Again(status, _retry_after(response))
            if status in (406, 415):
                raise _NotAcceptable
            if status in (401, 403):
                raise Unavailable(f"the server refuses access ({status}); is the right token in the environment variable {TOKEN}?")
            if status not in (200, 204):
                raise Unavailable(f"the server answers {status}")
            yield response

    def _tried(self, work: Callable[[], T]) -> T:
        """``work`` until it succeeds, at most ``attempts`` times (once where the server seems dead); then `Unavailable`."""
        tries = 1 if self._lost >= GIVE_UP else self.access.attempts
        why = ""
        for turn in range(tries):
            pause = min(self.access.pause_s * 2**turn, LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)  # tasks must not come back all at once
            try:
                result = work()
            except _Again as error:
                why = str(error)
                pause = pause if error.pause_s is None else error.pause_s
            except requests.exceptions.SSLError:
                raise Unavailable(
                    "the server's certificate is not accepted; REQUESTS_CA_BUNDLE may name the authorities to trust"
                ) from None
            except requests.exceptions.TooManyRedirects:
                raise Unavailable("the server redirects for ever") from None
            except (requests.RequestException, Broken) as error:
                why = str(error) if isinstance(error, Broken) else f"the connection failed ({type(error).__name__})"
            else:
                self._lost = 0
                return result
            if turn + 1 < tries:
                time.sleep(pause)
        self._lost += 1
        raise Unavailable(f"{why}; asked {tries} times")


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks for (RFC 9110 10.2.3: a number or a date), bounded; None where it does not."""
    said = response.headers.get("retry-after")
    try:
        return None if said is None else min(max(0.0, Retry().parse_retry_after(said)), LONGEST_PAUSE_S)
    except Exception:  # urllib3 raises its own InvalidHeader, and what date parsing raises; a header that nobody can read asks for nothing
        return None


def _bounded(response: requests.Response, most: int, too_large: Callable[[], Exception]) -> Iterator[bytes]:
    """The body in pieces; stops a body that is too large, or that takes for ever."""
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most + SLACK_BYTES:
        raise too_large()
    count, started = 0, time.monotonic()
    for piece in response.iter_content(PIECE_BYTES):
        count += len(piece)
        if count > most + SLACK_BYTES:
            raise too_large()
        if time.monotonic() - started > ANSWER_S + count / SLOWEST_BYTES_PER_S:
            raise Broken("the answer takes too long")
        yield piece


@functools.lru_cache(maxsize=16)
def client(base: str, access: Access) -> Client:
    """The process's client of a server (a task's connections outlive the task)."""
    return Client(access)


def listing(uri: str, access: Access) -> tuple[list[str], list[str]]:
    """(addresses to list further, addresses of instances) one level below an address: studies, their series, their instances."""
    address = parse(uri)
    if not address.below:
        return [], [address.uri]
    children = [address.child(uid).uri for uid in client(address.base, access).search(address)]
    return ([], children) if address.below == "instance" else (children, [])


@contextmanager
def brought(uri: str, access: Access) -> Iterator[str]:
    """Path of an instance's file in a folder of its own (mode 0700), which goes with the context."""
    address = parse(uri)
    if address.below:
        raise Unavailable("the server could not list it")  # see `medspark.lake.scan.walk`
    with tempfile.TemporaryDirectory(prefix="medspark-") as folder:
        path = os.path.join(folder, "instance.dcm")
        client(address.base, access).fetch(address, path)
        yield path
