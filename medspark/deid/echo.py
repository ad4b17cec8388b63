"""The echo guard: what a file says about who was seen, by whom and where, must not come back in a text that is kept.

Technicians type names into protocol names, series descriptions and code strings. A list of allowed words does not know that "Head" is this
patient's name, and a maker's model may be called like the hospital; so the words of the identifying attributes are looked for in every kept text.
"""

from __future__ import annotations

import re
from functools import lru_cache

import pydicom

from medspark.deid.text import VOCABULARY
from medspark.deid.values import BULK_BYTES, charset_of, raw_values

IDENTITY = (
    0x00080050,  # AccessionNumber
    0x00080080,  # InstitutionName
    0x00080081,  # InstitutionAddress
    0x00080090,  # ReferringPhysicianName
    0x00081010,  # StationName
    0x00081048,  # PhysiciansOfRecord
    0x00081050,  # PerformingPhysicianName
    0x00081060,  # NameOfPhysiciansReadingStudy
    0x00081070,  # OperatorsName
    0x00100010,  # PatientName
    0x00100020,  # PatientID
    0x00100030,  # PatientBirthDate
    0x00101000,  # OtherPatientIDs
    0x00101001,  # OtherPatientNames
    0x00101005,  # PatientBirthName
    0x00101040,  # PatientAddress
    0x00101060,  # PatientMotherBirthName
    0x00102154,  # PatientTelephoneNumbers
    0x00102297,  # ResponsiblePerson
    0x00181000,  # DeviceSerialNumber
    0x00321032,  # RequestingPhysician
    0x00700084,  # ContentCreatorName
)
"""What the file itself says about who was seen, by whom and where: none of these words may come back in a kept text."""
_MAKERS = frozenset(
    "siemens healthineers ge medical systems healthcare philips toshiba canon hitachi fujifilm fuji agfa hologic carestream kodak konica minolta "
    "shimadzu samsung aperio leica hamamatsu ventana roche elekta bruker esaote mindray aloka neusoft united imaging".split()
)
"""A station called after its maker does not make the maker a secret."""
HARMLESS = VOCABULARY | _MAKERS
NAMES = frozenset(
    {
        0x00080090,
        0x00081048,
        0x00081050,
        0x00081060,
        0x00081070,
        0x00100010,
        0x00101001,
        0x00101005,
        0x00101060,
        0x00102297,
        0x00321032,
        0x00700084,
    }
)
"""Those that are names of persons (VR PN), where two letters are a whole name (Li, Wu, Ng)."""
SHORTEST_ECHO, SHORTEST_NAME = 3, 2  # letters; words of the vocabulary ("Head^Phantom") do not count
_IDEOGRAPHS = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")
"""Han, kana, hangul: one of them is a whole family name, and no blank stands between a name and the words beside it."""

Identity = tuple[bool, bytes | str]
"""(is it a person's name, the value: bytes where raw, str where converted)."""


def identity_values(ds: pydicom.Dataset) -> tuple[Identity, ...]:
    """The identifying values of ``ds`` as they stand there; blank ones left out."""
    elements = ds._dict
    values = [(tag in NAMES, getattr(elements[tag], "value", None)) for tag in IDENTITY if tag in elements]  # type: ignore[index]
    return tuple([(name, value if isinstance(value, bytes) else str(value)) for name, value in values if value])


def echoes(ds: pydicom.Dataset) -> re.Pattern[str] | None:
    """A pattern that finds any word by which the data set identifies its subject; None where it says none.

    For texts that are kept outside the header's JSON (columns of ``series`` and ``slices``).
    """
    return echo_pattern(identity_values(ds), charset_of(ds, ("iso8859",)))


@lru_cache(maxsize=1024)
def echo_pattern(values: tuple[Identity, ...], charset: tuple[str, ...]) -> re.Pattern[str] | None:
    """A pattern that finds any word of ``values``, or None where they hold none."""
    words: set[str] = set()
    for is_name, value in values:
        if isinstance(value, bytes):
            value = (raw_values("LT", value[:BULK_BYTES], True, charset) or [""])[0]
        for word in re.split(r"[\W_]+", value):
            if len(word) >= _shortest(word, is_name) and word.lower() not in HARMLESS:
                words.add(word)
    if not words:
        return None
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    joined = [re.escape(word) for word in longest_first if _IDEOGRAPHS.search(word)]
    apart = [re.escape(word) for word in longest_first if not _IDEOGRAPHS.search(word)]
    patterns = joined + ([r"(?<![^\W_])(?:" + "|".join(apart) + r")(?![^\W_])"] if apart else [])
    return re.compile("|".join(patterns), re.IGNORECASE)


def _shortest(word: str, is_name: bool) -> int:
    if _IDEOGRAPHS.search(word):
        return 1 if is_name else SHORTEST_NAME
    return SHORTEST_NAME if is_name and word.isalpha() else SHORTEST_ECHO
