"""DICOMweb without a network: addresses, pages of a search, bodies cut at every place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medspark.errors import BadRequest
from medspark.series.dicomweb import Address, Broken, parse, payload, uids

MULTIPART = 'multipart/related; type="application/dicom"; boundary=XyZ'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dicomweb+https://pacs.org/dicom-web", Address("https://pacs.org/dicom-web")),
        ("dicomweb+https://pacs.org/dicom-web/studies/", Address("https://pacs.org/dicom-web")),
        ("dicomweb+https://pacs.org:8443/a/b/studies/1.2", Address("https://pacs.org:8443/a/b", "1.2")),
        ("dicomweb+https://pacs.org/studies/1.2/series", Address("https://pacs.org", "1.2")),
        ("dicomweb+https://pacs.org/w/studies/1.2/series/3.4/", Address("https://pacs.org/w", "1.2", "3.4")),
        ("dicomweb+http://127.0.0.1:80/w/studies/1.2/series/3/instances/4", Address("http://127.0.0.1:80/w", "1.2", "3", "4")),
        ("dicomweb+http://localhost/w", Address("http://localhost/w")),
        ("dicomweb+http://[::1]:8042/w", Address("http://[::1]:8042/w")),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert parse(text) == expected
    assert parse(expected.uri) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dicomweb+https://user:secret@pacs.org/w", "MEDSPARK_DICOMWEB_TOKEN"),
        ("dicomweb+https://secret@pacs.org/w", "must not hold a user"),
        ("dicomweb+https://pacs.org/w?token=secret", "ends with its path"),
        ("dicomweb+http://pacs.org/w", "unencrypted"),
        ("dicomweb+http://127.0.0.1.evil.org/w", "unencrypted"),
        ("dicomweb+ftp://pacs.org/w", "expected dicomweb+https"),
        ("dicomweb+https:///w", "expected dicomweb+https"),
        ("dicomweb+https://pacs.org/w/studies/../admin", "expected .../studies/UID"),
        ("dicomweb+https://pacs.org/w/studies/1.2/instances/3", "expected .../studies/UID"),
        ("dicomweb+https://pacs.org/w/studies/1.2/series/3/frames/3", "expected .../studies/UID"),
    ],
)
def test_addresses_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(text)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_levels() -> None:
    address = Address("https://h/w")
    assert address.search_url == "https://h/w/studies"
    assert address.child("1").search_url == "https://h/w/studies/1/series"
    assert address.child("1").child("2").search_url == "https://h/w/studies/1/series/2/instances"
    assert address.child("1").child("2").child("3").uri == "dicomweb+https://h/w/studies/1/series/2/instances/3"
    assert address.child("1").child("2").child("3").below == ""


def test_results_of_a_search() -> None:
    good = {"00080018": {"vr": "UI", "Value": ["1.2.3"]}, "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}}
    bad = [{}, {"00080018": {"vr": "UI"}}, {"00080018": {"Value": ["../../x"]}}, {"00080018": {"Value": [3]}}, "text"]
    assert uids(json.dumps([good, *bad]).encode(), "instance") == (["1.2.3"], len(bad))
    assert uids(b"", "study") == ([], 0)
    assert uids(b" [] ", "study") == ([], 0)
    for text in (b"{}", b"<html>", b"\xff\xfe"):
        with pytest.raises(Broken):
            uids(text, "study")


def cut(body: bytes, places: list[int]) -> Iterator[bytes]:
    edges = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    for start, end in pairwise(edges):
        yield body[start:end]


def multipart(data: bytes, preamble: bytes = b"", headers: bytes = b"Content-Type: application/dicom\r\n") -> bytes:
    return preamble + b"--XyZ\r\n" + headers + b"\r\n" + data + b"\r\n--XyZ--\r\n"


nasty = st.lists(st.sampled_from([b"\r\n", b"--", b"XyZ", b"\r\n--Xy", b"\0", b"DICM", b"-", b"\r", b"\n"])).map(b"".join)
"""Bytes that look like the beginning of a delimiter, and never are one."""


@given(nasty.filter(lambda data: b"\r\n--XyZ" not in b"\r\n" + data), st.lists(st.integers(0, 4000), max_size=40), st.booleans())
def test_a_part_comes_out_whole_wherever_the_chunks_are_cut(data: bytes, places: list[int], early: bool) -> None:
    body = multipart(data, preamble=b"a preamble\r\n" if early else b"")
    assert b"".join(payload(cut(body, places), MULTIPART, True)) == data


@given(st.binary(min_size=1, max_size=300).filter(lambda data: b"--XyZ" not in data), st.integers(0, 10_000))
def test_a_body_that_ends_early_is_broken_and_never_a_shorter_file(data: bytes, place: int) -> None:
    body = multipart(data)
    short = body[: place % body.rindex(b"--XyZ--")]
    with pytest.raises(Broken):
        list(payload([short], MULTIPART, True))


def test_a_part_without_headers() -> None:
    assert b"".join(payload([multipart(b"abc", headers=b"")], MULTIPART, True)) == b"abc"


def test_single_part() -> None:
    assert b"".join(payload([b"ab", b"c"], "application/dicom; transfer-syntax=1.2.840.10008.1.2.1", True)) == b"abc"
    with pytest.raises(Broken, match="how long"):
        list(payload([b"ab"], "application/dicom", False))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", b"<html>log in</html>"),
        ("", b"abc"),
        ("multipart/related", multipart(b"abc")),
        (MULTIPART, multipart(b"{}", headers=b"Content-Type: application/json\r\n")),
        (MULTIPART, b"--XyZ--\r\n"),
        (MULTIPART, b"x" * 200_000),
    ],
)
def test_other_answers_are_broken(content_type: str, body: bytes) -> None:
    with pytest.raises(Broken):
        list(payload([body], content_type, True))


def test_memory_is_bounded_by_a_chunk() -> None:
    """A gigabyte streams through; no piece is larger than a chunk and a delimiter."""

    def chunks() -> Iterator[bytes]:
        yield b"--XyZ\r\n\r\n"
        for _ in range(256):
            yield b"\0" * (1 << 16)
        yield b"\r\n--XyZ--"

    sizes = [len(piece) for piece in payload(chunks(), MULTIPART, True)]
    assert sum(sizes) == 256 << 16
    assert max(sizes) <= (1 << 16) + 64
