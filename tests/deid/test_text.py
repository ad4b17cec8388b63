"""Descriptors: names, dates, ids and numbers go, what was imaged stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medspark.deid.text import VOCABULARY, clean_text, harmless_code, technical_text

NAMES = (
    "Smith Johnson Williams Brown Jones Garcia Miller Davis Rodriguez Martinez Hernandez Lopez Gonzalez Wilson Anderson Thomas Taylor Moore "
    "Jackson Martin Lee Perez Thompson White Harris Sanchez Clark Ramirez Lewis Robinson Walker Young Allen King Wright Scott Torres Nguyen "
    "Hill Flores Adams Nelson Baker Rivera Campbell Mitchell Carter Roberts Mueller Schmidt Schneider Fischer Weber Meyer Wagner Becker "
    "Schulz Hoffmann Ivanov Petrov Kim Park Choi Wang Li Zhang Liu Chen Yang Huang Zhao Wu Zhou Tanaka Suzuki Sato Silva Santos Rossi Russo "
    "James Mary Robert Patricia John Jennifer Michael Linda David Elizabeth William Barbara Richard Susan Joseph Jessica Sarah Karen Lisa "
    "Nancy Betty Sandra Ashley Emily Donna Anna Maria Hans Peter Klaus Ursula Renate Monika Petra Sabine Wolfgang Rose Grace May June Long Doe"
).split()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("AX T2 FLAIR 5mm", "AX T2 FLAIR 5mm"),
        ("t2_tse_sag_384", "t2_tse_sag_384"),
        ("CT, HEAD/BRAIN W/O CONTRAST", "CT HEAD/BRAIN W/O CONTRAST"),
        ("MR-Brain w/o Contrast", "MR-Brain w/o Contrast"),
        ("Thorax 1.5 B30f", "Thorax 1.5 B30f"),
        ("Kopf nativ", "Kopf nativ"),
        ("Dr. Smith CT Chest", "Chest"),
        ("CT Chest 12.03.1950 John Doe", "CT Chest"),
        ("John_Smith_Head", "Head"),
        ("doe^john", None),
        ("head 555-123-4567", "head"),
        ("knee 5/7/61", "knee"),
        ("thorax 4 Apr 1961", "thorax"),
        ("abdomen May 2004", "abdomen"),
        ("liver someone@clinic.org", "liver"),
        ("head 12345678", "head"),
        ("Patient: Maria Lopez abdomen", "abdomen"),
        ("1.3.12.2.1107.5.2.19.45152", None),
        ("2004", None),
        ("head 04.1961", "head"),
        ("head 04/1961", "head 04"),
        ("TE 2.52 TR 2000ms", "TE 2.52 TR 2000ms"),
        ("", None),
        (None, None),
        ("MARROW 3mm", "MARROW 3mm"),
    ],
)
def test_examples(text: str | None, kept: str | None) -> None:
    assert clean_text(text) == kept


@pytest.mark.parametrize("name", NAMES)
def test_common_names_go(name: str) -> None:
    for text in (name, name.upper(), name.lower(), f"{name}_", f"{name}12", f"{name}-{name}", f"({name})", f"{name}s"):
        assert clean_text(text) is None
    assert clean_text(f"chest 5mm {name}") == "chest 5mm"


@given(st.dates())
def test_no_notation_of_a_date_stays(day) -> None:  # type: ignore[no-untyped-def]
    for notation in ("%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%m/%d/%y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%Y.%m.%d", "%B %Y"):
        assert clean_text("head " + day.replace(year=max(day.year, 1000)).strftime(notation)) == "head"


@given(st.text(max_size=80))
def test_only_known_pieces_come_out(text: str) -> None:
    kept = clean_text(text)
    assert kept is None or set(kept.lower().replace(" ", "")) <= set(text.lower())


@given(st.integers(100_000, 10**15))
def test_long_numbers_go(number: int) -> None:
    assert clean_text(f"head {number}") == "head"
    assert technical_text(f"model {number}") is None


def test_technical_names() -> None:
    for name in ("GE MEDICAL SYSTEMS", "syngo MR D11", "HiSpeed Dual", "07MW11.10", "B30f", "DR-ID 300CL APL Software V11.0"):
        assert technical_text(name) == name
    for name in ("Dr Who's scanner", "v 2007-03-05", "SN 1234567", "a@b.c", "Doe^John", "Build 20010925", "x" * 200):
        assert technical_text(name) is None


def test_codes() -> None:
    for code in ("MR", "DR", "ORIGINAL", "PRIMARY", "M_SE", "CT_SOM5 SPI", "PATIENT", "MONOCHROME2", "HEAD", "knee"):
        assert harmless_code(code)
    for code in ("Doe John", "DOE^JOHN", "77413380", "smith"):
        assert not harmless_code(code)


def test_vocabulary_is_lower_case() -> None:
    assert all(word == word.lower() for word in VOCABULARY)
