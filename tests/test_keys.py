"""Laws of identity, and golden values: an id that changes makes every lake there is unreadable by the next version."""

from __future__ import annotations

import hmac
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medspark.keys import ID_DIGITS, PARENT_DIGITS, Ids, rng

KEY = bytes(range(32))
TEXT = st.text(max_size=20)
PARTS = st.lists(TEXT, min_size=1, max_size=4)
KEYS = st.one_of(st.none(), st.binary(min_size=32, max_size=32))
HEX = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")


@given(KEYS, TEXT, PARTS)
def test_ids_are_lower_case_hex_and_repeat(key: bytes | None, kind: str, parts: list[str]) -> None:
    first = Ids(key).digest(kind, *parts)
    assert HEX.fullmatch(first)
    assert first == Ids(key).digest(kind, *parts)


@given(st.binary(min_size=1, max_size=130), TEXT)
def test_digests_are_hmac_sha256_of_the_length_prefixed_parts(key: bytes, part: str) -> None:
    raw = part.encode("utf-8")
    message = b"4:kind" + str(len(raw)).encode() + b":" + raw
    assert Ids(key).digest("kind", part) == hmac.digest(key, message, "sha256").hex()[:ID_DIGITS]


@given(PARTS, PARTS)
def test_different_parts_give_different_ids(one: list[str], two: list[str]) -> None:
    """Also where their texts run together: ("ab", "c") and ("a", "bc")."""
    assert (Ids(KEY).digest("x", *one) == Ids(KEY).digest("x", *two)) == (one == two)


@given(PARTS, TEXT, TEXT)
def test_kinds_do_not_meet(parts: list[str], one: str, two: str) -> None:
    assert (Ids(KEY).digest(one, *parts) == Ids(KEY).digest(two, *parts)) == (one == two)


@given(PARTS)
def test_the_key_matters(parts: list[str]) -> None:
    assert len({Ids(key).digest("x", *parts) for key in (None, KEY, KEY[::-1])}) == 3


def test_text_that_is_no_unicode_has_an_id() -> None:
    """File names on Linux are bytes; Python carries those that are no UTF-8 as surrogates."""
    assert HEX.fullmatch(Ids(KEY).source("d", "file:///\udcff.dcm", "00"))


@given(KEYS, TEXT, PARTS)
def test_image_ids_begin_with_their_parent(key: bytes | None, what: str, parts: list[str]) -> None:
    ids = Ids(key)
    parent = ids.slide("d", what)
    image = ids.image(parent, *parts)
    assert HEX.fullmatch(image)
    assert image[:PARENT_DIGITS] == parent[:PARENT_DIGITS]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
def test_uids_become_valid_uids(numbers: list[int]) -> None:
    uid = "1.2." + ".".join(map(str, numbers))
    assert Ids(None).uid(uid) == uid
    pseudonym = Ids(KEY).uid(uid)
    assert re.fullmatch(r"2\.25\.(0|[1-9][0-9]*)", pseudonym)  # PS3.5 B.2
    assert len(pseudonym) <= 64
    assert Ids(KEY).uid(uid + "\0") == pseudonym == Ids(KEY).uid(f" {uid} ")  # padding is no part of a UID


@given(TEXT)
def test_days_move_back_by_less_than_ten_years(subject: str) -> None:
    assert -3650 <= Ids(KEY).day_shift(subject) <= -1
    assert Ids(None).day_shift(subject) == 0


def test_fingerprint_tells_keys_apart() -> None:
    assert Ids(None).fingerprint == "none"
    assert len({Ids(key).fingerprint for key in (None, KEY, KEY[::-1])}) == 3
    assert KEY.hex() not in Ids(KEY).fingerprint


def test_ids_are_those_of_version_1() -> None:
    plain, keyed = Ids(None), Ids(KEY)
    assert plain.source("d", "file:///a.dcm", "ab" * 32) == "ef3d49f616e9d0aa26454620facc7af9"
    assert plain.slide("d", "1.2.3") == "ebd73ea200c0677a6b3ec9530295a8cd"
    assert plain.series("d", "1.2.3", "1.2.4", "1.00", "512x512") == "a31a2306859e4081eb1f17ca8cb2f3b3"
    assert plain.token("case1") == "057345489adc0f740dc9d6fca29b4a8f"
    assert keyed.source("d", "file:///a.dcm", "ab" * 32) == "7764d2f9e8eb2fad32d99bc4576ad8b9"
    series = keyed.series("d", "1.2.3", "1.2.4", "1.00", "512x512")
    assert series == "b824bb9fab19c32d074e40c818cee721"
    assert keyed.image(series, "d", "sop", "1.2.5", 1) == "b824bb9fab19c32dd64794a81dc51b70"
    assert keyed.grid(keyed.slide("d", "1.2.3"), "fp") == "7105ca389170c472ef712261f4a20970"
    assert keyed.subject("hospital", "123") == "38838dbcdffc606e2e92265077fa9f00"
    assert keyed.uid("1.2.840.1") == "2.25.68758338976123240597267402134171988510"
    assert keyed.annotator("A") == "b02c503f2ab37c9aab7622c4aca688ac"
    assert keyed.day_shift("k") == -3407
    assert keyed.fingerprint == "f7fc3276903dccab4317380df910d733"


@given(st.integers(0, 2**40), PARTS)
def test_randomness_is_a_function_of_names(seed: int, names: list[str]) -> None:
    draws = [rng(seed, *names).integers(0, 2**63, 4) for _ in range(2)]
    assert np.array_equal(*draws)
    assert not np.array_equal(draws[0], rng(seed + 1, *names).integers(0, 2**63, 4))
    assert not np.array_equal(draws[0], rng(seed, *names, "more").integers(0, 2**63, 4))


def test_randomness_is_that_of_version_1() -> None:
    assert rng(7, "augment", 3, "x").integers(0, 1000, 5).tolist() == [963, 545, 825, 523, 630]
