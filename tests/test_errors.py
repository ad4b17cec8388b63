"""The error tree: codes are closed, errors survive the way from a worker to the driver."""

from __future__ import annotations

import pickle

import pytest

from medspark.errors import REJECTION_CODES, UNCOUNTED_CODES, BadRequest, MedsparkError, Rejected, SkippedSource, unexpected
from medspark.tables.verdicts import SEVERITY


@pytest.mark.parametrize("code", sorted(REJECTION_CODES))
def test_rejections_pickle(code: str) -> None:
    back = pickle.loads(pickle.dumps(Rejected(code, "a reason")))
    assert (type(back), back.code, back.reason, str(back)) == (Rejected, code, "a reason", f"{code}: a reason")


def test_skips_pickle() -> None:
    back = pickle.loads(pickle.dumps(SkippedSource("use another job")))
    assert (type(back), back.hint) == (SkippedSource, "use another job")


def test_an_unknown_code_is_a_bug() -> None:
    with pytest.raises(ValueError, match="unknown rejection code"):
        Rejected("NO_SUCH_CODE", "a reason")


def test_codes_are_words() -> None:
    assert UNCOUNTED_CODES < REJECTION_CODES
    assert all(code == code.upper() and code.replace("_", "").isalpha() for code in REJECTION_CODES)
    assert REJECTION_CODES & set(SEVERITY) == {"BURNED_IN"}, "one word, one meaning: only BURNED_IN is both, by deid.burned_in"


def test_one_tree() -> None:
    for kind in (BadRequest, Rejected, SkippedSource):
        assert issubclass(kind, MedsparkError)
    assert not issubclass(Rejected, BadRequest) and not issubclass(BadRequest, Rejected)


def test_what_nobody_foresaw_is_told_without_its_text() -> None:
    """An exception may quote the file: its kind and place are enough."""
    try:
        int("Doe^Jane")
    except ValueError as error:
        said = unexpected(error)
    assert "ValueError" in said and "test_errors.py:" in said
    assert "Doe" not in said and "\n" not in said
